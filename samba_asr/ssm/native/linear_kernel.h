// The product of a few rows with a packed matrix, as in a decoder's step: the matrix is read once, in order. Included
// once for each instruction set, inside its namespace.

constexpr int kColumns = 32, kMaxRows = 8;  // outputs that lie side by side in the packed matrix; rows at a time

// y[r][c] = bias[c] + sum over k of x[r][k] weights[k][c], of kColumns outputs, of which `count` are written.
template <int R>
INLINE void linear_columns(const float* x, int64_t in, const float* weights, const float* bias, float* y, int64_t out,
                           int count) {
  constexpr int V = kColumns / kWidth;
  Vec sums[R][V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    const int left = std::clamp(count - v * kWidth, 0, kWidth);
    const Vec start = bias ? load_some(bias + v * kWidth, left) : splat(0.0f);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[r][v] = start;
  }
  for (int64_t k = 0; k < in; ++k) {
    Vec row[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) row[v] = load(weights + k * kColumns + v * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[r][v] += x[r * in + k] * row[v];
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v)
      if (count > v * kWidth) store_some(y + r * out + v * kWidth, sums[r][v], std::min(kWidth, count - v * kWidth));
}

template <int R>
static void linear_block(const Linear& l, int64_t first) {
  for (int64_t c = 0; c < l.out; c += kColumns)
    linear_columns<R>(l.x + first * l.in, l.in, l.weights + c * l.in, l.bias ? l.bias + c : nullptr, l.y + first * l.out + c,
                      l.out, static_cast<int>(std::min<int64_t>(kColumns, l.out - c)));
}

static void linear(const Linear& l) {
  for (int64_t first = 0; first < l.rows; first += kMaxRows) switch (std::min<int64_t>(kMaxRows, l.rows - first)) {
      case 1: linear_block<1>(l, first); break;
      case 2: linear_block<2>(l, first); break;
      case 3: linear_block<3>(l, first); break;
      case 4: linear_block<4>(l, first); break;
      case 5: linear_block<5>(l, first); break;
      case 6: linear_block<6>(l, first); break;
      case 7: linear_block<7>(l, first); break;
      default: linear_block<8>(l, first);
    }
}
