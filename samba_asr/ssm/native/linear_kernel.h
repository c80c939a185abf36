// The product of a few rows with a packed matrix, as in a decoder's step: the matrix is read once, in order. Included
// once for each instruction set, inside its namespace.

constexpr int kColumns = 32;                     // outputs that lie side by side in the packed matrix
constexpr int kMaxRows = kWidth == 16 ? 8 : 4;   // rows at a time, and
constexpr int kVectors = 2, kStrip = kVectors * kWidth;  // outputs: what the registers hold sums of

INLINE Vec load_weights(const float* from) { return load(from); }
INLINE Vec load_weights(const uint16_t* from) { return load_float16(from); }

// y[r][c] = bias[c] + sum over k of x[r][k] weights[k][c], of kStrip outputs; y's rows lie `stride` apart.
// Sums stay in registers only if nothing copies a part of a vector, so what is cut off is cut off elsewhere.
template <int R, class Weight>
INLINE void linear_columns(const float* x, int64_t in, const Weight* weights, const float* bias, float* y, int64_t stride) {
  Vec sums[R][kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[r][v] = load(bias + v * kWidth);
  for (int64_t k = 0; k < in; ++k) {
    Vec row[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) row[v] = load_weights(weights + k * kColumns + v * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] += x[r * in + k] * row[v];
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(y + r * stride + v * kWidth, sums[r][v]);
}

template <class Weight>
static void linear_rows(int64_t rows, const float* x, int64_t in, const Weight* weights, const float* bias, float* y,
                        int64_t stride) {
  switch (rows) {
    case 1: return linear_columns<1>(x, in, weights, bias, y, stride);
    case 2: return linear_columns<2>(x, in, weights, bias, y, stride);
    case 3: return linear_columns<3>(x, in, weights, bias, y, stride);
    case 4: return linear_columns<4>(x, in, weights, bias, y, stride);
  }
  if constexpr (kMaxRows == 8) switch (rows) {
      case 5: return linear_columns<5>(x, in, weights, bias, y, stride);
      case 6: return linear_columns<6>(x, in, weights, bias, y, stride);
      case 7: return linear_columns<7>(x, in, weights, bias, y, stride);
      case 8: return linear_columns<8>(x, in, weights, bias, y, stride);
    }
}

template <class Weight>
INLINE void linear_of(const Linear& l, const Weight* weights) {
  for (int64_t c = 0; c < l.out; c += kStrip) {
    const Weight* own = weights + c / kColumns * kColumns * l.in + c % kColumns;
    const int64_t count = std::min<int64_t>(kStrip, l.out - c);
    float bias[kStrip] = {}, part[kMaxRows * kStrip];
    if (l.bias) memcpy(bias, l.bias + c, count * sizeof(float));
    for (int64_t first = 0; first < l.rows; first += kMaxRows) {
      const int64_t rows = std::min<int64_t>(kMaxRows, l.rows - first);
      float* y = l.y + first * l.out + c;
      if (count == kStrip) {
        linear_rows(rows, l.x + first * l.in, l.in, own, bias, y, l.out);
        continue;
      }
      linear_rows(rows, l.x + first * l.in, l.in, own, bias, part, kStrip);
      for (int64_t r = 0; r < rows; ++r) memcpy(y + r * l.out, part + r * kStrip, count * sizeof(float));
    }
  }
}

static void linear(const Linear& l) {
  if (l.float16)
    linear_of(l, static_cast<const uint16_t*>(l.weights));
  else
    linear_of(l, static_cast<const float*>(l.weights));
}
