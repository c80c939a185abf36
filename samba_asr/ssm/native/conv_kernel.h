// The depthwise causal convolution with SiLU, forward and backward, for one block of channels of one sequence. Frames are
// counted in the order in which they are scanned; those before the first are the initial state's. See kernels.cpp for the
// arguments. Included once for each instruction set, inside its namespace.

INLINE Vec load_x(const Conv& c, const void* from, int64_t at, int count) {
  if (!c.bfloat16) return load_some(static_cast<const float*>(from) + at, count);
  return load_bfloat16(static_cast<const uint16_t*>(from) + at, count);
}

INLINE void store_x(const Conv& c, void* to, int64_t at, Vec x, int count) {
  if (!c.bfloat16) return store_some(static_cast<float*>(to) + at, x, count);
  store_bfloat16(static_cast<uint16_t*>(to) + at, x, count);
}

INLINE int64_t conv_frame(const Conv& c, int64_t sequence, int64_t length, int64_t i) {
  return (sequence * c.time + (c.reverse ? length - 1 - i : i)) * c.channels;
}

// Where frame i < 0 stands in the initial state, and frame i >= length - (width - 1) in the last one.
INLINE int64_t initial_row(const Conv& c, int64_t sequence, int64_t i) {
  return (sequence * (c.width - 1) + (c.reverse ? -1 - i : c.width - 1 + i)) * c.channels;
}

INLINE int64_t last_row(const Conv& c, int64_t sequence, int64_t length, int64_t i) {
  return (sequence * (c.width - 1) + (c.reverse ? length - 1 - i : i - length + c.width - 1)) * c.channels;
}

INLINE Vec seen(const Conv& c, int64_t sequence, int64_t length, const Block& block, int64_t i) {
  if (i >= 0) return load_x(c, c.x, conv_frame(c, sequence, length, i) + block.channel, block.count);
  if (!c.initial) return splat(0.0f);
  return load_some(c.initial + initial_row(c, sequence, i) + block.channel, block.count);
}

// filters[j] meets the frame j frames back.
INLINE void load_filters(const Conv& c, const Block& block, Vec* filters) {
  for (int j = 0; j < c.width; ++j) {
    filters[j] = splat(0.0f);
    for (int k = 0; k < block.count; ++k) filters[j][k] = c.weight[(block.channel + k) * c.width + c.width - 1 - j];
  }
}

// W: the filters' width, 0 if known at run time only.
template <int W>
static void conv_forward_block(const Conv& c, int64_t sequence, const Block& block) {
  const int width = W ? W : c.width;
  const int64_t length = c.lengths ? c.lengths[sequence] : c.time;
  const Vec bias = c.bias ? load_some(c.bias + block.channel, block.count) : splat(0.0f);
  Vec filters[kMaxWidth], window[kMaxWidth];
  load_filters(c, block, filters);
  for (int j = 1; j < width; ++j) window[j] = seen(c, sequence, length, block, -j);
  for (int64_t i = 0; i < length; ++i) {
    const int64_t at = conv_frame(c, sequence, length, i) + block.channel;
    window[0] = load_x(c, c.x, at, block.count);
    Vec sum = bias;
    for (int j = 0; j < width; ++j) sum += filters[j] * window[j];
    store_x(c, c.y, at, sum * sigmoid(sum), block.count);
    for (int j = width - 1; j > 0; --j) window[j] = window[j - 1];
  }
  for (int64_t t = length; t < c.time; ++t)
    store_x(c, c.y, (sequence * c.time + t) * c.channels + block.channel, splat(0.0f), block.count);
  for (int64_t i = length - (width - 1); i < length; ++i)
    store_some(c.last + last_row(c, sequence, length, i) + block.channel, seen(c, sequence, length, block, i),
               block.count);
}

template <int W>
static void conv_backward_block(const Conv& c, const ConvGradients& g, int64_t sequence, const Block& block) {
  const int width = W ? W : c.width;
  const int64_t length = c.lengths ? c.lengths[sequence] : c.time;
  const Vec bias = c.bias ? load_some(c.bias + block.channel, block.count) : splat(0.0f);
  Vec filters[kMaxWidth], dfilters[kMaxWidth], dsums[kMaxWidth], dbias = splat(0.0f);
  load_filters(c, block, filters);
  for (int j = 0; j < width; ++j) dfilters[j] = dsums[j] = splat(0.0f);
  for (int64_t i = length - 1; i > -width; --i) {
    for (int j = width - 1; j > 0; --j) dsums[j] = dsums[j - 1];  // dsums[j]: of frame i + j
    dsums[0] = splat(0.0f);
    if (i >= 0) {
      Vec sum = bias, window[kMaxWidth];
      for (int j = 0; j < width; ++j) {
        window[j] = seen(c, sequence, length, block, i - j);
        sum += filters[j] * window[j];
      }
      const Vec gate = sigmoid(sum);
      const Vec dy = load_x(c, g.y, conv_frame(c, sequence, length, i) + block.channel, block.count);
      dsums[0] = dy * gate * (1.0f + sum * (1.0f - gate));
      for (int j = 0; j < width; ++j) dfilters[j] += dsums[0] * window[j];
      dbias += dsums[0];
    }
    Vec dx = splat(0.0f);
    for (int j = 0; j < width; ++j) dx += filters[j] * dsums[j];
    if (g.last && i >= length - (width - 1))
      dx += load_some(g.last + last_row(c, sequence, length, i) + block.channel, block.count);
    if (i >= 0)
      store_x(c, g.x, conv_frame(c, sequence, length, i) + block.channel, dx, block.count);
    else
      store_some(g.initial + initial_row(c, sequence, i) + block.channel, dx, block.count);
  }
  for (int64_t t = length; t < c.time; ++t)
    store_x(c, g.x, (sequence * c.time + t) * c.channels + block.channel, splat(0.0f), block.count);
  const int64_t at = sequence * c.channels + block.channel;
  store_some(g.bias + at, dbias, block.count);
  for (int j = 0; j < width; ++j)
    for (int k = 0; k < block.count; ++k) g.weight[(at + k) * width + width - 1 - j] = dfilters[j][k];
}

static void conv_forward_range(const Conv& c, int64_t sequence, const std::vector<Block>& blocks) {
  for (const Block& block : blocks)
    c.width == 4 ? conv_forward_block<4>(c, sequence, block) : conv_forward_block<0>(c, sequence, block);
}

static void conv_backward_range(const Conv& c, const ConvGradients& g, int64_t sequence,
                                const std::vector<Block>& blocks) {
  for (const Block& block : blocks)
    c.width == 4 ? conv_backward_block<4>(c, g, sequence, block) : conv_backward_block<0>(c, g, sequence, block);
}
