// Some floats at once, in GCC's and Clang's portable vector type: as many as one register holds, since compilers keep
// larger vectors in memory. Included once for each instruction set, inside its namespace.

constexpr int kWidth = SAMBA_WIDTH;
typedef float Vec __attribute__((vector_size(4 * SAMBA_WIDTH), aligned(4)));
typedef Vec VecInMemory __attribute__((aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * SAMBA_WIDTH), aligned(4)));

#define INLINE static inline __attribute__((always_inline))

INLINE Vec splat(float x) { return Vec{} + x; }

// Not by memcpy: GCC copies 32 bytes as twice 16, by way of the stack, which is many times slower.
INLINE Vec load(const float* from) { return *reinterpret_cast<const VecInMemory*>(from); }

INLINE void store(float* to, Vec x) { *reinterpret_cast<VecInMemory*>(to) = x; }

// The first `count` floats; the others are 0.
INLINE Vec load_some(const float* from, int count) {
  if (count == kWidth) return load(from);
  Vec x = splat(0.0f);
  memcpy(&x, from, count * sizeof(float));
  return x;
}

INLINE void store_some(float* to, Vec x, int count) {
  if (count == kWidth) return store(to, x);
  memcpy(to, &x, count * sizeof(float));
}

typedef uint32_t BitVec __attribute__((vector_size(4 * SAMBA_WIDTH), aligned(4)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * SAMBA_WIDTH), aligned(2), may_alias));

INLINE Vec load_bfloat16(const uint16_t* from, int count) {
  if (count == kWidth) return (Vec)(__builtin_convertvector(*reinterpret_cast<const HalfVec*>(from), BitVec) << 16);
  HalfVec x = {};
  memcpy(&x, from, count * sizeof(uint16_t));
  return (Vec)(__builtin_convertvector(x, BitVec) << 16);
}

// Rounded to the nearest, ties to even; NaN stays NaN, if its payload does not overflow.
INLINE void store_bfloat16(uint16_t* to, Vec x, int count) {
  const BitVec bits = (BitVec)x;
  const HalfVec rounded = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, HalfVec);
  if (count == kWidth)
    *reinterpret_cast<HalfVec*>(to) = rounded;
  else
    memcpy(to, &rounded, count * sizeof(uint16_t));
}

// Exact, but for infinity and NaN.
INLINE Vec load_float16(const uint16_t* from) {
#if SAMBA_WIDTH == 16
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif SAMBA_WIDTH == 8
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  const BitVec bits = __builtin_convertvector(*reinterpret_cast<const HalfVec*>(from), BitVec);
  const Vec size = (Vec)((bits & 0x7fff) << 13) * 0x1p112f;  // the exponents' biases are 15 and 127
  return (Vec)((BitVec)size | ((bits & 0x8000) << 16));
#endif
}

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));

INLINE float sum(Vec x) {
  Four total = *reinterpret_cast<const Four*>(&x);
  for (int i = 1; i < kWidth / 4; ++i) total += reinterpret_cast<const Four*>(&x)[i];
  return (total[0] + total[1]) + (total[2] + total[3]);
}

#if defined(__clang__)
#define PICK_FOUR(x, y, i, j, k, l) __builtin_shufflevector(x, y, i, j, k, l)
#else
#define PICK_FOUR(x, y, i, j, k, l) __builtin_shuffle(x, y, (int32_t __attribute__((vector_size(16)))){i, j, k, l})
#endif

// Rows and columns are multiples of 4: blocks of 4 x 4 at a time.
static void transpose(const float* from, int rows, int columns, float* to) {
  for (int r = 0; r < rows; r += 4)
    for (int c = 0; c < columns; c += 4) {
      Four x[4];
      for (int i = 0; i < 4; ++i) x[i] = *reinterpret_cast<const Four*>(from + (r + i) * columns + c);
      const Four a = PICK_FOUR(x[0], x[1], 0, 4, 1, 5), b = PICK_FOUR(x[2], x[3], 0, 4, 1, 5);
      const Four c_ = PICK_FOUR(x[0], x[1], 2, 6, 3, 7), d = PICK_FOUR(x[2], x[3], 2, 6, 3, 7);
      const Four turned[4] = {PICK_FOUR(a, b, 0, 1, 4, 5), PICK_FOUR(a, b, 2, 3, 6, 7), PICK_FOUR(c_, d, 0, 1, 4, 5),
                              PICK_FOUR(c_, d, 2, 3, 6, 7)};
      for (int i = 0; i < 4; ++i) *reinterpret_cast<Four*>(to + (c + i) * rows + r) = turned[i];
    }
}
#undef PICK_FOUR

// NaN stays NaN.
INLINE Vec at_least(Vec x, float least) { return x < splat(least) ? splat(least) : x; }
INLINE Vec at_most(Vec x, float most) { return x > splat(most) ? splat(most) : x; }

// 2^x; below -126 it is 2^-126 and above 127 it is 2^127. Relative error below 2e-7.
INLINE Vec exp2_(Vec x) {
  x = at_most(at_least(x, -126.0f), 127.0f);
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = x + magic;
  const Vec r = x - (shifted - magic);  // in [-0.5, 0.5]
  Vec p = splat(1.5403530e-4f);
  p = p * r + splat(1.3333558e-3f);
  p = p * r + splat(9.6181291e-3f);
  p = p * r + splat(5.5504109e-2f);
  p = p * r + splat(2.4022651e-1f);
  p = p * r + splat(6.9314718e-1f);
  p = p * r + splat(1.0f);
  const IntVec exponent = ((IntVec)shifted - (IntVec)magic) << 23;
  return x == x ? (Vec)((IntVec)p + exponent) : x;
}

constexpr float kLog2E = 1.44269504f;

INLINE Vec exp_(Vec x) { return exp2_(x * kLog2E); }

INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp_(-x)); }

// log(1 + exp(x)), as exact relatively for steps of 1e-6 as for large ones.
INLINE Vec softplus(Vec x) {
  const Vec t = exp_(x > splat(0.0f) ? -x : x);
  const Vec s = t / (t + 2.0f);  // log(1 + t) = 2 atanh(t / (2 + t)); s <= 1/3
  const Vec q = s * s;
  Vec p = splat(1.0f / 13.0f);
  p = p * q + splat(1.0f / 11.0f);
  p = p * q + splat(1.0f / 9.0f);
  p = p * q + splat(1.0f / 7.0f);
  p = p * q + splat(1.0f / 5.0f);
  p = p * q + splat(1.0f / 3.0f);
  p = p * q + splat(1.0f);
  return at_least(x, 0.0f) + 2.0f * s * p;
}
