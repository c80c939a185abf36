// The selective scan, forward and backward, for one range of channels of one sequence. See kernels.cpp for the arguments.
// Included once for each instruction set, inside its namespace.

// Frames between two states that the forward pass keeps; the backward pass computes those between again.
constexpr int kChunk = 32;

INLINE int64_t frame_of(const Scan& s, int64_t length, int64_t i) { return s.reverse ? length - 1 - i : i; }

// Each block reads one cache line a frame, too far apart for the processor to see them coming: it is told of those that
// are read (or written) so many frames later, here or, near the end, in what comes next.
constexpr int64_t kAhead = 6;

// From one frame's numbers to those of the next, in the order of the scan.
INLINE int64_t stride_of(const Scan& s) { return s.reverse ? -s.channels : s.channels; }

INLINE int64_t soon(int64_t at, int64_t left, int64_t stride, int64_t next) {
  return left > kAhead ? at + kAhead * stride : next + (kAhead - left) * stride;
}

INLINE void expect(const float* rows, int64_t at) { __builtin_prefetch(rows + at); }

INLINE void expect_to_write(float* rows, int64_t at) { __builtin_prefetch(rows + at, 1); }

// The place of a frame's numbers.
INLINE int64_t place_of(const Scan& s, int64_t sequence, int64_t length, int64_t i, int channel) {
  return (sequence * s.time + frame_of(s, length, i)) * s.channels + channel;
}

INLINE Vec raw_step(const Scan& s, int64_t at, const Block& block) {
  Vec raw = load_some(s.delta + at, block.count);
  if (s.bias) raw += load_some(s.bias + block.channel, block.count);
  return raw;
}

// A block's numbers by n and then by channel; from: by channel and then by n, null for zeros.
INLINE void load_state(const float* from, const Scan& s, const Block& block, Vec* state) {
  if (from && block.count == kWidth && s.states % 4 == 0)
    return transpose(from, kWidth, s.states, reinterpret_cast<float*>(state));
  for (int n = 0; n < s.states; ++n) {
    state[n] = splat(0.0f);
    if (from)
      for (int c = 0; c < block.count; ++c) state[n][c] = from[c * s.states + n];
  }
}

INLINE void store_state(float* to, const Scan& s, const Block& block, const Vec* state) {
  if (block.count == kWidth && s.states % 4 == 0)
    return transpose(reinterpret_cast<const float*>(state), s.states, kWidth, to);
  for (int n = 0; n < s.states; ++n)
    for (int c = 0; c < block.count; ++c) to[c * s.states + n] = state[n][c];
}

// A[channel][n] * log2(e).
INLINE void load_rates(const Scan& s, const Block& block, Vec* rates) {
  load_state(s.A + block.channel * s.states, s, block, rates);
  for (int n = 0; n < s.states; ++n) rates[n] *= kLog2E;
}

// One frame: h = exp2(step * rates) h + step u B; returns C h. N: states, 0 if known at run time only.
template <int N>
INLINE Vec advance(Vec* h, const Vec* rates, Vec step, Vec u, const float* B, const float* C, int states) {
  const int count = N ? N : states;
  const Vec drive = step * u;
  Vec y = splat(0.0f), y2 = splat(0.0f);
#pragma GCC unroll 16
  for (int n = 0; n < count; ++n) {
    h[n] = exp2_(step * rates[n]) * h[n] + drive * B[n];
    if (n & 1)
      y2 += h[n] * C[n];
    else
      y += h[n] * C[n];
  }
  return y + y2;
}

// Frames that all blocks go through before any goes on: few enough for their rows, and the next ones, to stay at hand.
constexpr int64_t kTile = kChunk;

// The rows of the next tile, on their way to the second cache: line by line in the order of memory, one with each frame
// of each block of this tile. A block's own order, one line of each row, is slow wherever the rows are not in a cache.
struct Later {
  int64_t at, lines;             // the place of the next line; how many are still to come
  int64_t column, columns, gap;  // lines of a row: those behind, and all; from the end of a row to the next one
};

// Columns of blocks, frames first to end - 1.
static Later rows_of(const Scan& s, int64_t sequence, int64_t length, const std::vector<Block>& blocks, int64_t first,
                     int64_t end) {
  const int64_t row = sequence * s.time + (s.reverse ? length - end : first);  // the first in memory
  const int64_t width = blocks.back().channel + blocks.back().count - blocks.front().channel;
  const int64_t columns = (width + kWidth - 1) / kWidth;
  return {row * s.channels + blocks.front().channel, (end - first) * columns, 0, columns,
          s.channels - columns * kWidth};
}

INLINE void expect_line(const Scan& s, Later& later) {
  if (!later.lines) return;
  --later.lines;
  __builtin_prefetch(s.delta + later.at, 0, 2);
  __builtin_prefetch(s.u + later.at, 0, 2);
  __builtin_prefetch(s.y + later.at, 0, 2);
  if (s.z) __builtin_prefetch(s.z + later.at, 0, 2);
  later.at += kWidth;
  if (++later.column == later.columns) {
    later.column = 0;
    later.at += later.gap;
  }
}

// Frames first to end - 1 of one block. next: the place that comes next; held: the block's rates and its state, (2,
// states, width); later: rows of the next tile.
template <int N>
static void forward_tile(const Scan& s, int64_t sequence, const Block& block, int64_t first, int64_t end, int64_t next,
                         float* held, Later& later) {
  Vec rates[kMaxStates], h[kMaxStates];
  const int states = N ? N : s.states;
  const int64_t length = s.lengths ? s.lengths[sequence] : s.time;
  const Vec skip = s.D ? load_some(s.D + block.channel, block.count) : splat(0.0f);
  for (int n = 0; n < states; ++n) rates[n] = load(held + n * kWidth);
  for (int n = 0; n < states; ++n) h[n] = load(held + (states + n) * kWidth);
  for (int64_t i = first; i < end; ++i) {
    if (s.kept && i % kChunk == 0) {
      float* to = s.kept + ((sequence * s.chunks + i / kChunk) * s.channels + block.channel) * states;
      if (block.count == kWidth)  // by state and then by channel, unlike other states: nobody else reads it
        for (int n = 0; n < states; ++n) store(to + n * kWidth, h[n]);
      else
        store_state(to, s, block, h);
    }
    const int64_t row = sequence * s.time + frame_of(s, length, i);
    const int64_t at = row * s.channels + block.channel;
    const int64_t shared = (row * s.groups + block.group) * states;
    const int64_t then = soon(at, end - i, stride_of(s), next);
    expect(s.delta, then);
    expect(s.u, then);
    expect_to_write(s.y, then);
    if (s.z) expect(s.z, then);
    expect_line(s, later);
    Vec step = raw_step(s, at, block);
    if (s.softplus) step = softplus(step);
    const Vec u = load_some(s.u + at, block.count);
    Vec y = advance<N>(h, rates, step, u, s.B + shared, s.C + shared, states);
    if (s.D) y += skip * u;
    if (s.z) {
      const Vec z = load_some(s.z + at, block.count);
      y *= z * sigmoid(z);
    }
    store_some(s.y + at, y, block.count);
  }
  for (int n = 0; n < states; ++n) store(held + (states + n) * kWidth, h[n]);
}

template <int N>
static void forward_blocks(const Scan& s, int64_t sequence, const std::vector<Block>& blocks) {
  const int states = N ? N : s.states;
  const int64_t length = s.lengths ? s.lengths[sequence] : s.time, room = 2 * states * kWidth;
  std::vector<float> held(blocks.size() * room);
  Vec values[kMaxStates];
  for (size_t b = 0; b < blocks.size(); ++b) {
    load_rates(s, blocks[b], values);
    for (int n = 0; n < states; ++n) store(&held[b * room + n * kWidth], values[n]);
    const int64_t state_at = (sequence * s.channels + blocks[b].channel) * states;
    load_state(s.initial ? s.initial + state_at : nullptr, s, blocks[b], values);
    for (int n = 0; n < states; ++n) store(&held[b * room + (states + n) * kWidth], values[n]);
  }
  for (int64_t first = 0; first < length; first += kTile) {
    const int64_t end = std::min(first + kTile, length);
    Later later = rows_of(s, sequence, length, blocks, end, std::min(end + kTile, length));
    for (size_t b = 0; b < blocks.size(); ++b) {
      const bool last = b + 1 == blocks.size();
      const int64_t next = place_of(s, sequence, length, last ? end : first, blocks[last ? 0 : b + 1].channel);
      forward_tile<N>(s, sequence, blocks[b], first, end, next, &held[b * room], later);
    }
  }
  for (size_t b = 0; b < blocks.size(); ++b) {
    for (int64_t t = length; t < s.time; ++t)
      store_some(s.y + (sequence * s.time + t) * s.channels + blocks[b].channel, splat(0.0f), blocks[b].count);
    if (!s.last) continue;
    for (int n = 0; n < states; ++n) values[n] = load(&held[b * room + (states + n) * kWidth]);
    store_state(s.last + (sequence * s.channels + blocks[b].channel) * states, s, blocks[b], values);
  }
}

// The exponentials of a scan, added up over time and states: y is (batch, channels).
template <int N>
static void exponentials_block(const Scan& s, int64_t sequence, const Block& block) {
  Vec rates[kMaxStates];
  const int states = N ? N : s.states;
  load_rates(s, block, rates);
  Vec sums[4] = {};
  for (int64_t t = 0; t < s.time; ++t) {
    const Vec step = load_some(s.delta + (sequence * s.time + t) * s.channels + block.channel, block.count);
    int n = 0;
#pragma GCC unroll 4
    for (; n + 4 <= states; n += 4)
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) sums[k] += exp2_(step * rates[n + k]);
    for (; n < states; ++n) sums[0] += exp2_(step * rates[n]);
  }
  store_some(s.y + sequence * s.channels + block.channel, sums[0] + sums[1] + sums[2] + sums[3], block.count);
}

// What the backward pass of one block carries from chunk to chunk, and what it adds up.
struct Carry {
  Vec rates[kMaxStates], dh[kMaxStates], dA[kMaxStates], dD, dbias;
};

// Room for one chunk of one block.
struct Work {
  std::vector<float> states, decays, y;      // (frames + 1, states, width), (frames, states, width), (frames, width)
  std::vector<float> steps, inputs;          // (frames, width)
  std::vector<float> dB, dC;                 // (frames, states, width): sums over the blocks of a group
};

// Frames first to end - 1 of one chunk, last to first; adds to work.dB and work.dC. next: the place that comes next.
template <int N>
static void backward_chunk(const Scan& s, const Gradients& g, int64_t sequence, const Block& block, int64_t first,
                           int64_t end, int64_t next, Carry& carry, Work& work) {
  const int states = N ? N : s.states;
  const int64_t length = s.lengths ? s.lengths[sequence] : s.time;
  const float* kept = s.kept + ((sequence * s.chunks + first / kChunk) * s.channels + block.channel) * states;
  const int64_t stride = stride_of(s);
  Vec h[kMaxStates];
  if (block.count == kWidth)
    for (int n = 0; n < states; ++n) h[n] = load(kept + n * kWidth);
  else
    load_state(kept, s, block, h);
  for (int n = 0; n < states; ++n) store(&work.states[n * kWidth], h[n]);
  for (int64_t i = first; i < end; ++i) {  // again, this time keeping what the way back needs
    const int64_t row = sequence * s.time + frame_of(s, length, i), k = i - first;
    const int64_t at = row * s.channels + block.channel;
    const int64_t shared = (row * s.groups + block.group) * states;
    const float *B = s.B + shared, *C = s.C + shared;
    if (end - i > kAhead) {
      expect(s.delta, at + kAhead * stride);
      expect(s.u, at + kAhead * stride);
    }
    expect(g.y, at);  // the way back begins with the last frames; all are here by then
    expect_to_write(g.u, at);
    expect_to_write(g.delta, at);
    if (s.z) expect(s.z, at);
    Vec step = raw_step(s, at, block);
    if (s.softplus) step = softplus(step);
    const Vec u = load_some(s.u + at, block.count), drive = step * u;
    Vec y = splat(0.0f);
#pragma GCC unroll 16
    for (int n = 0; n < states; ++n) {
      const Vec decay = exp2_(step * carry.rates[n]);
      h[n] = decay * h[n] + drive * B[n];
      y += h[n] * C[n];
      store(&work.decays[(k * states + n) * kWidth], decay);
      store(&work.states[((k + 1) * states + n) * kWidth], h[n]);
    }
    store(&work.y[k * kWidth], y);
    store(&work.steps[k * kWidth], step);
    store(&work.inputs[k * kWidth], u);
  }
  const Vec skip = s.D ? load_some(s.D + block.channel, block.count) : splat(0.0f);
  for (int64_t i = end - 1; i >= first; --i) {
    const int64_t row = sequence * s.time + frame_of(s, length, i), k = i - first;
    const int64_t at = row * s.channels + block.channel;
    const int64_t shared = (row * s.groups + block.group) * states;
    const float *B = s.B + shared, *C = s.C + shared;
    if (i - first < kAhead) {
      expect(s.delta, next + (i - first) * stride);
      expect(s.u, next + (i - first) * stride);
    }
    const Vec step = load(&work.steps[k * kWidth]), u = load(&work.inputs[k * kWidth]);
    Vec dy = load_some(g.y + at, block.count);
    if (s.z) {
      const Vec z = load_some(s.z + at, block.count), gate = sigmoid(z);
      const Vec y = load(&work.y[k * kWidth]) + skip * u;
      store_some(g.z + at, dy * y * (gate + z * gate * (1.0f - gate)), block.count);
      dy *= z * gate;
    }
    Vec dstep = splat(0.0f), dB_sum = splat(0.0f);
    const Vec drive = step * u;
#pragma GCC unroll 16
    for (int n = 0; n < states; ++n) {
      const int64_t place = (k * states + n) * kWidth;
      const Vec before = load(&work.states[place]), decay = load(&work.decays[place]);
      const Vec after = load(&work.states[place + states * kWidth]);
      const Vec dh = carry.dh[n] + dy * C[n];
      const Vec kept_part = dh * before * decay;  // dh * d(decay * before) / d(step * A)
      store(&work.dC[place], load(&work.dC[place]) + dy * after);
      store(&work.dB[place], load(&work.dB[place]) + dh * drive);
      carry.dA[n] += kept_part * step;
      dstep += kept_part * carry.rates[n];
      dB_sum += dh * B[n];
      carry.dh[n] = dh * decay;
    }
    store_some(g.u + at, dB_sum * step + dy * skip, block.count);
    carry.dD += dy * u;
    dstep = dstep * (1.0f / kLog2E) + dB_sum * u;
    if (s.softplus) dstep *= 1.0f - exp_(-step);  // sigmoid(x) = 1 - exp(-softplus(x))
    carry.dbias += dstep;
    store_some(g.delta + at, dstep, block.count);
  }
}

// Blocks of one sequence that one thread has; its sums over channels go to g.B and g.C of its own share.
template <int N>
static void backward_blocks(const Scan& s, const Gradients& g, int64_t sequence, const std::vector<Block>& blocks,
                            float* dB, float* dC) {
  const int states = N ? N : s.states;
  const int64_t length = s.lengths ? s.lengths[sequence] : s.time;
  const int64_t room = int64_t{kChunk} * states * kWidth;
  Work work;
  work.states.resize(room + states * kWidth);
  work.decays.resize(room);
  work.dB.resize(room);
  work.dC.resize(room);
  work.y.resize(kChunk * kWidth);
  work.steps.resize(kChunk * kWidth);
  work.inputs.resize(kChunk * kWidth);
  std::vector<Carry> carries(blocks.size());
  for (size_t b = 0; b < blocks.size(); ++b) {
    const Block& block = blocks[b];
    const int64_t state_at = (sequence * s.channels + block.channel) * states;
    load_rates(s, block, carries[b].rates);
    load_state(g.last ? g.last + state_at : nullptr, s, block, carries[b].dh);
    for (int n = 0; n < states; ++n) carries[b].dA[n] = splat(0.0f);
    carries[b].dD = carries[b].dbias = splat(0.0f);
  }
  const int64_t chunks = (length + kChunk - 1) / kChunk;
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t first = chunk * kChunk, end = first + kChunk < length ? first + kChunk : length;
    for (size_t b = 0; b < blocks.size(); ++b) {
      if (!b || blocks[b].group != blocks[b - 1].group) {
        std::fill(work.dB.begin(), work.dB.end(), 0.0f);
        std::fill(work.dC.begin(), work.dC.end(), 0.0f);
      }
      const bool last = b + 1 == blocks.size();
      const int64_t then = std::max<int64_t>(last ? first - kChunk : first, 0);
      const int64_t next = place_of(s, sequence, length, then, blocks[last ? 0 : b + 1].channel);
      backward_chunk<N>(s, g, sequence, blocks[b], first, end, next, carries[b], work);
      if (b + 1 < blocks.size() && blocks[b].group == blocks[b + 1].group) continue;
      for (int64_t i = first; i < end; ++i) {
        const int64_t row = sequence * s.time + frame_of(s, length, i);
        for (int n = 0; n < states; ++n) {
          const int64_t to = (row * s.groups + blocks[b].group) * states + n;
          const int64_t place = ((i - first) * states + n) * kWidth;
          dB[to] += sum(load(&work.dB[place]));
          dC[to] += sum(load(&work.dC[place]));
        }
      }
    }
  }
  for (size_t b = 0; b < blocks.size(); ++b) {
    const Block& block = blocks[b];
    const int64_t state_at = (sequence * s.channels + block.channel) * states;
    store_state(g.initial + state_at, s, block, carries[b].dh);
    store_state(g.A + state_at, s, block, carries[b].dA);
    store_some(g.D + sequence * s.channels + block.channel, carries[b].dD, block.count);
    store_some(g.bias + sequence * s.channels + block.channel, carries[b].dbias, block.count);
    for (int64_t t = length; t < s.time; ++t) {
      const int64_t at = (sequence * s.time + t) * s.channels + block.channel;
      store_some(g.u + at, splat(0.0f), block.count);
      store_some(g.delta + at, splat(0.0f), block.count);
      if (s.z) store_some(g.z + at, splat(0.0f), block.count);
    }
  }
}

static void forward_range(const Scan& s, int64_t sequence, const std::vector<Block>& blocks) {
  if (s.states == 16)
    forward_blocks<16>(s, sequence, blocks);
  else
    forward_blocks<0>(s, sequence, blocks);
}

static void exponentials_range(const Scan& s, int64_t sequence, const std::vector<Block>& blocks) {
  for (const Block& block : blocks) {
    if (s.states == 16)
      exponentials_block<16>(s, sequence, block);
    else
      exponentials_block<0>(s, sequence, block);
  }
}

static void backward_range(const Scan& s, const Gradients& g, int64_t sequence, const std::vector<Block>& blocks,
                           float* dB, float* dC) {
  if (s.states == 16)
    backward_blocks<16>(s, g, sequence, blocks, dB, dC);
  else
    backward_blocks<0>(s, g, sequence, blocks, dB, dC);
}
