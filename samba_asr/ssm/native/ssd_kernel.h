// Mamba-2's scan in its chunked dual form (arXiv 2405.21060, section 6), forward and backward, for some heads of one
// sequence. Within a chunk of kSteps frames it is a masked matrix product; from chunk to chunk a state goes on. Frames are
// counted in the order in which they are scanned. See kernels.cpp for the arguments. Included once for each instruction
// set, inside its namespace.

// C[m x n] (+)= A[m x k] B[k x n] for V vectors of columns and R rows at a time; row-major, the strides in floats.
template <int R, int V>
INLINE void product_rows(const float* A, int lda, const float* B, int ldb, float* C, int ldc, int k, bool add) {
  Vec sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[r][v] = add ? load(C + r * ldc + v * kWidth) : splat(0.0f);
  for (int i = 0; i < k; ++i) {
    Vec row[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) row[v] = load(B + i * ldb + v * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[r][v] += A[r * lda + i] * row[v];
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(C + r * ldc + v * kWidth, sums[r][v]);
}

enum Shape { kFull, kLower, kUpper };  // of A: where it is not 0

template <int V>
INLINE void product_columns(Shape shape, const float* A, int lda, const float* B, int ldb, float* C, int ldc, int m, int k,
                            bool add) {
  constexpr int R = 4;
  for (int r = 0; r < m; r += R) {
    const int from = shape == kUpper ? r : 0;
    const int to = shape == kLower ? (r + R < k ? r + R : k) : k;
    product_rows<R, V>(A + r * lda + from, lda, B + from * ldb, ldb, C + r * ldc, ldc, to - from, add);
  }
}

// m a multiple of 4, n of 16. As many vectors at a time as leave room in the registers: 32 of AVX-512, or 16.
static void product(Shape shape, const float* A, int lda, const float* B, int ldb, float* C, int ldc, int m, int n, int k,
                    bool add) {
  constexpr int V = kWidth == 16 ? 4 : 2;
  int column = 0;
  for (; column + V * kWidth <= n; column += V * kWidth)
    product_columns<V>(shape, A, lda, B + column, ldb, C + column, ldc, m, k, add);
  for (; column < n; column += kWidth)
    product_columns<1>(shape, A, lda, B + column, ldb, C + column, ldc, m, k, add);
}

INLINE float dot(const float* x, const float* y, int count) {
  Vec total = splat(0.0f);
  for (int i = 0; i < count; i += kWidth) total += load(x + i) * load(y + i);
  return sum(total);
}

constexpr int kSteps = 32;  // frames in a chunk

// Rows of one chunk, in the order of the scan, as floats; rows past its end are 0.
INLINE void gather_rows(const Ssd& s, const void* from, int64_t stride, int64_t column, int64_t sequence, int64_t length,
                        int64_t first, int count, int width, float* to) {
  for (int i = 0; i < kSteps; ++i) {
    const int64_t frame = s.reverse ? length - 1 - first - i : first + i;
    const int64_t at = (sequence * s.time + frame) * stride + column;
    for (int v = 0; v < width; v += kWidth) {
      Vec x = splat(0.0f);
      if (i < count)
        x = s.bfloat16 ? load_bfloat16(static_cast<const uint16_t*>(from) + at + v, kWidth)
                       : load(static_cast<const float*>(from) + at + v);
      store(to + i * width + v, x);
    }
  }
}

INLINE void scatter_rows(const Ssd& s, const float* from, int64_t stride, int64_t column, int64_t sequence, int64_t length,
                         int64_t first, int count, int width, void* to) {
  for (int i = 0; i < count; ++i) {
    const int64_t frame = s.reverse ? length - 1 - first - i : first + i;
    const int64_t at = (sequence * s.time + frame) * stride + column;
    for (int v = 0; v < width; v += kWidth) {
      const Vec x = load(from + i * width + v);
      if (s.bfloat16)
        store_bfloat16(static_cast<uint16_t*>(to) + at + v, x, kWidth);
      else
        store(static_cast<float*>(to) + at + v, x);
    }
  }
}

INLINE float delta_at(const Ssd& s, int64_t sequence, int64_t length, int64_t i, int head) {
  const int64_t frame = s.reverse ? length - 1 - i : i;
  const int64_t at = (sequence * s.time + frame) * s.delta_stride + head;
  if (!s.bfloat16) return static_cast<const float*>(s.delta)[at];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(s.delta)[at]) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// What both directions of a chunk need of a head's step sizes.
struct Decays {
  alignas(64) float step[kSteps];      // 0 past the end
  alignas(64) float log2_total[kSteps];  // log2 of the decay from the chunk's entry through each frame
  alignas(64) float entry[kSteps];     // that decay
  alignas(64) float exit[kSteps];      // decay from after each frame to the chunk's end
  float whole;                         // decay from entry to end
};

static void compute_decays(const Ssd& s, int64_t sequence, int64_t length, int64_t first, int count, int head, Decays& d) {
  const float bias = s.bias ? s.bias[head] : 0.0f, rate = s.A[head] * kLog2E;
  for (int i = 0; i < kSteps; ++i) d.step[i] = i < count ? delta_at(s, sequence, length, first + i, head) + bias : 0.0f;
  if (s.softplus)
    for (int i = 0; i < kSteps; i += kWidth) store(d.step + i, softplus(load(d.step + i)));
  float total = 0.0f;
  for (int i = 0; i < kSteps; ++i) {
    if (i >= count) d.step[i] = 0.0f;
    total += d.step[i] * rate;
    d.log2_total[i] = total;
  }
  for (int i = 0; i < kSteps; i += kWidth) {
    store(d.entry + i, exp2_(load(d.log2_total + i)));
    store(d.exit + i, exp2_(total - load(d.log2_total + i)));
  }
  d.whole = d.entry[kSteps - 1];
}

// weights[i][j] = decay from j to i, where j <= i, else 0.
static void compute_weights(const Decays& d, float* weights) {
  for (int i = 0; i < kSteps; ++i)
    for (int j = 0; j < kSteps; j += kWidth) {
      Vec index;
      for (int k = 0; k < kWidth; ++k) index[k] = static_cast<float>(j + k);
      const Vec decay = exp2_(d.log2_total[i] - load(d.log2_total + j));
      store(weights + i * kSteps + j, index <= splat(static_cast<float>(i)) ? decay : splat(0.0f));
    }
}

// States are (states, head_dim) here, and (head_dim, states) outside.
static void ssd_load_state(const float* from, const Ssd& s, float* to) {
  if (from)
    transpose(from, s.head_dim, s.states, to);
  else
    std::fill(to, to + s.head_dim * s.states, 0.0f);
}

static void ssd_store_state(float* to, const Ssd& s, const float* from) { transpose(from, s.states, s.head_dim, to); }

struct SsdWork {
  std::vector<float> B, C, turned, scores, x, weights, y, carried, state, scaled;
  explicit SsdWork(const Ssd& s)
      : B(kSteps * s.states), C(B), turned(B), scores(kSteps * kSteps), x(kSteps * s.head_dim), weights(scores), y(x),
        carried(x), state(s.states * s.head_dim), scaled(x) {}
};

// B, C, B transposed, and C Bᵀ of one group of heads in one chunk.
static void ssd_read_group(const Ssd& s, int64_t sequence, int64_t length, int64_t first, int count, int group,
                           SsdWork& w) {
  const int N = s.states;
  gather_rows(s, s.B, s.B_stride, group * N, sequence, length, first, count, N, w.B.data());
  gather_rows(s, s.C, s.C_stride, group * N, sequence, length, first, count, N, w.C.data());
  transpose(w.B.data(), kSteps, N, w.turned.data());
  product(kFull, w.C.data(), N, w.turned.data(), kSteps, w.scores.data(), kSteps, kSteps, kSteps, N, false);
}

static void ssd_forward_range(const Ssd& s, int64_t sequence, int first_head, int end_head) {
  const int N = s.states, P = s.head_dim, heads = end_head - first_head, per_group = static_cast<int>(s.heads / s.groups);
  const int64_t length = s.lengths ? s.lengths[sequence] : s.time, row = s.heads * P;
  SsdWork w(s);
  std::vector<float> states(static_cast<size_t>(heads) * N * P);
  for (int h = 0; h < heads; ++h)
    ssd_load_state(s.initial ? s.initial + (sequence * s.heads + first_head + h) * N * P : nullptr, s, &states[h * N * P]);
  Decays d;
  for (int64_t first = 0; first < length; first += kSteps) {
    const int count = static_cast<int>(std::min<int64_t>(kSteps, length - first));
    for (int h = 0; h < heads; ++h) {
      const int head = first_head + h;
      if (h == 0 || head % per_group == 0) ssd_read_group(s, sequence, length, first, count, head / per_group, w);
      float* state = &states[h * N * P];
      if (s.kept) memcpy(s.kept + (((sequence * s.chunks + first / kSteps) * s.heads) + head) * N * P, state,
                         sizeof(float) * N * P);
      gather_rows(s, s.x, s.x_stride, head * P, sequence, length, first, count, P, w.x.data());
      compute_decays(s, sequence, length, first, count, head, d);
      compute_weights(d, w.weights.data());
      for (int i = 0; i < kSteps * kSteps; i += kWidth)
        store(&w.weights[i], load(&w.weights[i]) * load(&w.scores[i]) * load(d.step + i % kSteps));
      product(kFull, w.C.data(), N, state, P, w.y.data(), P, kSteps, P, N, false);
      const float skip = s.D ? s.D[head] : 0.0f;
      for (int i = 0; i < kSteps; ++i)
        for (int p = 0; p < P; p += kWidth) {
          const int at = i * P + p;
          const Vec x = load(&w.x[at]);
          store(&w.y[at], load(&w.y[at]) * d.entry[i] + skip * x);
          store(&w.scaled[at], x * (d.exit[i] * d.step[i]));
        }
      product(kLower, w.weights.data(), kSteps, w.x.data(), P, w.y.data(), P, kSteps, P, kSteps, true);
      scatter_rows(s, w.y.data(), row, head * P, sequence, length, first, count, P, s.y);
      for (int i = 0; i < N * P; i += kWidth) store(state + i, load(state + i) * d.whole);
      product(kFull, w.turned.data(), kSteps, w.scaled.data(), P, state, P, N, P, kSteps, true);
    }
  }
  for (int h = 0; h < heads; ++h)
    ssd_store_state(s.last + (sequence * s.heads + first_head + h) * N * P, s, &states[h * N * P]);
  fill_padding(s, s.y, row, first_head * P, end_head * P, sequence, length);
}

static void ssd_backward_range(const Ssd& s, const SsdGradients& g, int64_t sequence, int first_head, int end_head,
                               float* dB_all, float* dC_all) {
  const int N = s.states, P = s.head_dim, heads = end_head - first_head, per_group = static_cast<int>(s.heads / s.groups);
  const int64_t length = s.lengths ? s.lengths[sequence] : s.time, row = s.heads * P;
  SsdWork w(s);
  std::vector<float> dstates(static_cast<size_t>(heads) * N * P), dB(kSteps * N), dC(dB), C_turned(dB);
  std::vector<float> dscores(kSteps * kSteps), dweights(dscores), matrix(dscores), matrix_turned(dscores);
  std::vector<float> dy(kSteps * P), dx(dy), x_turned(dy), faded(dy), state_turned(N * P), dstate_turned(N * P);
  std::vector<double> dA(heads, 0.0), dD(heads, 0.0), dbias(heads, 0.0);
  for (int h = 0; h < heads; ++h)
    ssd_load_state(g.last ? g.last + (sequence * s.heads + first_head + h) * N * P : nullptr, s, &dstates[h * N * P]);
  Decays d;
  const int64_t chunks = (length + kSteps - 1) / kSteps;
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t first = chunk * kSteps;
    const int count = static_cast<int>(std::min<int64_t>(kSteps, length - first));
    for (int h = 0; h < heads; ++h) {
      const int head = first_head + h, group = head / per_group;
      if (h == 0 || head % per_group == 0) {
        ssd_read_group(s, sequence, length, first, count, group, w);
        transpose(w.C.data(), kSteps, N, C_turned.data());
        std::fill(dscores.begin(), dscores.end(), 0.0f);
        std::fill(dB.begin(), dB.end(), 0.0f);
        std::fill(dC.begin(), dC.end(), 0.0f);
      }
      const float* state = s.kept + (((sequence * s.chunks + chunk) * s.heads) + head) * N * P;
      float* dstate = &dstates[h * N * P];
      gather_rows(s, s.x, s.x_stride, head * P, sequence, length, first, count, P, w.x.data());
      gather_rows(s, g.y, row, head * P, sequence, length, first, count, P, dy.data());
      compute_decays(s, sequence, length, first, count, head, d);
      compute_weights(d, w.weights.data());
      alignas(64) float dstep[kSteps] = {}, dlog[kSteps] = {};  // of step sizes, and of the log decays through each frame

      // Within the chunk.
      transpose(w.x.data(), kSteps, P, x_turned.data());
      product(kFull, dy.data(), P, x_turned.data(), kSteps, dweights.data(), kSteps, kSteps, kSteps, P, false);
      for (int i = 0; i < kSteps; ++i) {
        Vec given = splat(0.0f);
        for (int j = 0; j < kSteps; j += kWidth) {
          const int at = i * kSteps + j;
          const Vec weight = load(&w.weights[at]), step = load(d.step + j), score = load(&w.scores[at]);
          const Vec dmatrix = load(&dweights[at]);
          store(&matrix[at], weight * score * step);
          store(&dscores[at], load(&dscores[at]) + dmatrix * weight * step);
          const Vec by_step = dmatrix * weight * score;
          store(dstep + j, load(dstep + j) + by_step);
          store(dlog + j, load(dlog + j) - by_step * step);
          given += by_step * step;
        }
        dlog[i] += sum(given);
      }
      transpose(matrix.data(), kSteps, kSteps, matrix_turned.data());

      // To and from the states at the chunk's borders.
      product(kFull, w.B.data(), N, dstate, P, dx.data(), P, kSteps, P, N, false);
      product(kFull, w.C.data(), N, state, P, w.carried.data(), P, kSteps, P, N, false);
      float from_exit = d.whole * dot(dstate, state, N * P);
      const float skip = s.D ? s.D[head] : 0.0f;
      for (int i = 0; i < kSteps; ++i) {
        const float leaving = dot(&dx[i * P], &w.x[i * P], P) * d.exit[i];
        dstep[i] += leaving;
        dlog[i] += d.entry[i] * dot(&dy[i * P], &w.carried[i * P], P) - leaving * d.step[i];
        from_exit += leaving * d.step[i];
        for (int p = 0; p < P; p += kWidth) {
          const int at = i * P + p;
          const Vec x = load(&w.x[at]), dy_ = load(&dy[at]);
          store(&dx[at], load(&dx[at]) * (d.exit[i] * d.step[i]) + skip * dy_);
          store(&w.scaled[at], x * (d.exit[i] * d.step[i]));
          store(&faded[at], dy_ * d.entry[i]);
        }
      }
      dlog[kSteps - 1] += from_exit;
      product(kUpper, matrix_turned.data(), kSteps, dy.data(), P, dx.data(), P, kSteps, P, kSteps, true);
      transpose(state, N, P, state_turned.data());
      transpose(dstate, N, P, dstate_turned.data());
      product(kFull, faded.data(), P, state_turned.data(), N, dC.data(), N, kSteps, N, P, true);
      product(kFull, w.scaled.data(), P, dstate_turned.data(), N, dB.data(), N, kSteps, N, P, true);
      for (int i = 0; i < N * P; i += kWidth) store(dstate + i, load(dstate + i) * d.whole);
      product(kFull, C_turned.data(), kSteps, faded.data(), P, dstate, P, N, P, kSteps, true);
      scatter_rows(s, dx.data(), row, head * P, sequence, length, first, count, P, g.x);

      double later = 0.0;
      for (int i = kSteps - 1; i >= 0; --i) {
        later += dlog[i];
        dstep[i] += static_cast<float>(later * s.A[head]);
        dA[h] += later * d.step[i];
      }
      for (int i = 0; i < count; ++i) {
        const float draw = s.softplus ? dstep[i] * -std::expm1(-d.step[i]) : dstep[i];
        dbias[h] += draw;
        const int64_t frame = s.reverse ? length - 1 - first - i : first + i;
        g.delta[(sequence * s.time + frame) * s.heads + head] = draw;
      }
      dD[h] += dot(dy.data(), w.x.data(), kSteps * P);

      if (h + 1 < heads && (head + 1) % per_group) continue;  // the group goes on
      product(kLower, dscores.data(), kSteps, w.B.data(), N, dC.data(), N, kSteps, N, kSteps, true);
      transpose(dscores.data(), kSteps, kSteps, matrix_turned.data());
      product(kUpper, matrix_turned.data(), kSteps, w.C.data(), N, dB.data(), N, kSteps, N, kSteps, true);
      for (int i = 0; i < count; ++i) {
        const int64_t frame = s.reverse ? length - 1 - first - i : first + i;
        const int64_t at = ((sequence * s.time + frame) * s.groups + group) * N;
        memcpy(dB_all + at, &dB[i * N], sizeof(float) * N);
        memcpy(dC_all + at, &dC[i * N], sizeof(float) * N);
      }
    }
  }
  for (int h = 0; h < heads; ++h) {
    const int64_t at = sequence * s.heads + first_head + h;
    ssd_store_state(g.initial + at * N * P, s, &dstates[h * N * P]);
    g.A[at] = static_cast<float>(dA[h]);
    g.D[at] = static_cast<float>(dD[h]);
    g.bias[at] = static_cast<float>(dbias[h]);
  }
  fill_padding(s, g.x, row, first_head * P, end_head * P, sequence, length);
  for (int64_t t = length; t < s.time; ++t)
    for (int head = first_head; head < end_head; ++head) g.delta[(sequence * s.time + t) * s.heads + head] = 0.0f;
}
