// One frame of a Mamba-2 mixer, from its first projection to its last: convolution, scan, gate, norm. Sequences lie in
// pools of states, from which a row goes on and into which what comes of it is put. See kernels.cpp for the arguments.
// Included once for each instruction set, inside its namespace.

// The convolution with SiLU: reads the state at `from`, writes the one at `to`, which may be the same.
INLINE void step_conv(const Mamba2Step& s, const float* x, const float* from, float* to, float* mixed) {
  const int64_t channels = s.channels;
  for (int64_t c = 0; c < channels; c += kWidth) {
    const Vec last = load(x + c);
    Vec sum = load(s.filters + (s.width - 1) * channels + c) * last;
    if (s.filter_bias) sum += load(s.filter_bias + c);
    for (int j = 0; j < s.width - 1; ++j) {
      const Vec seen = load(from + j * channels + c);
      sum += load(s.filters + j * channels + c) * seen;
      if (j) store(to + (j - 1) * channels + c, seen);
    }
    store(to + (s.width - 2) * channels + c, last);
    store(mixed + c, sum * sigmoid(sum));
  }
}

// One head's scan: y[p] = C h[p] + D x[p].
INLINE void step_head(const Mamba2Step& s, int head, float delta, const float* x, const float* B, const float* C,
                      const float* from, float* to, float* y) {
  const int N = s.states;
  const Vec step = softplus(splat(delta + s.dt_bias[head]));
  const Vec decay = exp2_(step * (s.A[head] * kLog2E));
  for (int p = 0; p < s.head_dim; ++p) {
    const Vec driven = step * x[p];
    Vec total = splat(0.0f);
    for (int n = 0; n < N; n += kWidth) {
      const Vec h = load(from + p * N + n) * decay + driven * load(B + n);
      store(to + p * N + n, h);
      total += h * load(C + n);
    }
    y[p] = sum(total) + s.D[head] * x[p];
  }
}

// y = rms_norm(y silu(z)) weight
INLINE void step_gate(const Mamba2Step& s, const float* z, int64_t size, float* y) {
  Vec squares = splat(0.0f);
  for (int64_t c = 0; c < size; c += kWidth) {
    const Vec gate = load(z + c), gated = load(y + c) * gate * sigmoid(gate);
    store(y + c, gated);
    squares += gated * gated;
  }
  const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + s.eps);
  for (int64_t c = 0; c < size; c += kWidth) store(y + c, load(y + c) * scale * load(s.norm + c));
}

static void mamba2_step(const Mamba2Step& s) {
  const int P = s.head_dim, N = s.states;
  const int64_t inner = s.heads * P, conv_size = (s.width - 1) * s.channels, ssm_size = inner * N;
  std::vector<float> mixed(s.channels);
  for (int64_t row = 0; row < s.rows; ++row) {
    const int64_t source = s.sources ? s.sources[row] : row, target = s.targets ? s.targets[row] : row;
    const float *z = s.projected + row * (inner + s.channels + s.heads), *delta = z + inner + s.channels;
    step_conv(s, z + inner, s.conv + source * conv_size, s.next_conv + target * conv_size, mixed.data());
    const float *B = &mixed[inner], *C = B + s.groups * N, *from = s.ssm + source * ssm_size;
    float *to = s.next_ssm + target * ssm_size, *y = s.y + row * inner;
    for (int head = 0; head < s.heads; ++head) {
      const int64_t group = head / (s.heads / s.groups);
      step_head(s, head, delta[head], &mixed[head * P], B + group * N, C + group * N, from + head * P * N,
                to + head * P * N, y + head * P);
    }
    step_gate(s, z, inner, y);
  }
}
