// The selective scan, Mamba-2's, the convolution before them, forward and backward, one frame of a Mamba-2 mixer, and the
// product of a few rows with a matrix, on CPUs. No (batch, time, channels, state) tensor is ever in memory: the forward
// pass keeps one state in 32, the backward pass computes the others again, chunk after chunk.
//
// A plain C interface, for ctypes: neither PyTorch's nor Python's headers are needed, and a build takes seconds. All
// tensors are contiguous, float32 but for the convolution's input and output, which may be bfloat16, and shaped as in
// samba_asr.ssm.scan.selective_scan and samba_asr.ssm.conv.causal_conv1d; a missing one is null.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define SAMBA_X86 1
#include <immintrin.h>
#endif

namespace {
constexpr int kMaxStates = 256, kMaxWidth = 8;

struct Block {  // neighbouring channels of one group, at most a vector of them
  int channel, count, group;
};

struct Scan {
  const float *u, *delta, *A, *B, *C, *D, *z, *bias, *initial;
  const int64_t* lengths;
  float *y, *last, *kept;  // kept: (batch, chunks, channels, states)
  int64_t batch, time, channels, groups, chunks;
  int states, softplus, reverse;
};

struct Gradients {
  const float *y, *last;
  float *u, *delta, *z, *B, *C;       // shaped like what they are gradients of, B and C (parts, ...)
  float *A, *D, *bias, *initial;      // (batch, ...): to be added up over sequences, but initial
};

struct Conv {
  const void* x;
  const float *weight, *bias, *initial;
  const int64_t* lengths;
  void* y;
  float* last;
  int64_t batch, time, channels;
  int width, reverse, bfloat16;
};

struct ConvGradients {
  const void* y;
  const float* last;
  void* x;
  float *weight, *bias, *initial;     // (batch, ...): to be added up over sequences, but initial
};

struct Ssd {
  const void *x, *delta, *B, *C;      // bfloat16 or float32; rows x_stride, ... apart
  const float *A, *D, *bias, *initial;
  const int64_t* lengths;
  void* y;                            // as x, rows heads * head_dim apart
  float *last, *kept;                 // kept: (batch, chunks, heads, states, head_dim)
  int64_t batch, time, heads, groups, chunks, x_stride, delta_stride, B_stride, C_stride;
  int head_dim, states, softplus, reverse, bfloat16;
};

struct SsdGradients {
  const void* y;
  const float* last;
  void* x;
  float *delta, *B, *C;               // B and C (parts, ...), zeros at first
  float *A, *D, *bias, *initial;      // (batch, ...)
};

struct Mamba2Step {
  const float* projected;              // (rows, heads head_dim + channels + heads): z; x, B and C; delta
  const float *conv, *ssm;             // (places, width - 1, channels), (places, heads, head_dim, states)
  float *next_conv, *next_ssm;         // alike, perhaps the same
  const int64_t *sources, *targets;    // (rows): places, no target twice or another row's source; null: row by row
  const float *filters, *filter_bias;  // (width, channels), (channels) or null
  const float *A, *D, *dt_bias;        // (heads)
  const float* norm;                   // (heads head_dim)
  float* y;                            // (rows, heads head_dim)
  int64_t rows, channels, heads, groups;
  int head_dim, states, width;
  float eps;
};

struct Linear {
  const float *x;       // (rows, in)
  const void *weights;  // (out / 32 rounded up, in, 32), float16 or float32; missing columns are 0
  const float *bias;    // (out), or null
  float *y;             // (rows, out)
  int64_t rows, in, out;
  int float16;
};

// Zeros in the columns of the rows past a sequence's length.
void fill_padding(const Ssd& s, void* rows, int64_t stride, int64_t first, int64_t end, int64_t sequence,
                  int64_t length) {
  const size_t size = s.bfloat16 ? sizeof(uint16_t) : sizeof(float);
  for (int64_t t = length; t < s.time; ++t)
    memset(static_cast<char*>(rows) + ((sequence * s.time + t) * stride + first) * size, 0, (end - first) * size);
}
}  // namespace

#ifdef SAMBA_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif
namespace avx512 {
namespace {
#define SAMBA_WIDTH 16  // floats in a register
#include "vector.h"
#include "scan_kernel.h"
#include "conv_kernel.h"
#include "ssd_kernel.h"
#include "step_kernel.h"
#include "linear_kernel.h"
}  // namespace
}  // namespace avx512
#undef INLINE
#undef SAMBA_WIDTH
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace avx2 {
namespace {
#define SAMBA_WIDTH 8
#include "vector.h"
#include "scan_kernel.h"
#include "conv_kernel.h"
#include "ssd_kernel.h"
#include "step_kernel.h"
#include "linear_kernel.h"
}  // namespace
}  // namespace avx2
#undef INLINE
#undef SAMBA_WIDTH
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace portable {
namespace {
#define SAMBA_WIDTH 4
#include "vector.h"
#include "scan_kernel.h"
#include "conv_kernel.h"
#include "ssd_kernel.h"
#include "step_kernel.h"
#include "linear_kernel.h"
}  // namespace
}  // namespace portable
#undef INLINE
#undef SAMBA_WIDTH

namespace {

int best_level() {
#ifdef SAMBA_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;  // and F16C, which is older
#endif
  return 0;
}

std::vector<Block> blocks_of(int64_t channels, int64_t groups, int lanes) {
  std::vector<Block> blocks;
  const int per_group = static_cast<int>(channels / groups);
  for (int group = 0; group < groups; ++group)
    for (int c = 0; c < per_group; c += lanes)
      blocks.push_back({group * per_group + c, std::min(lanes, per_group - c), group});
  return blocks;
}

// OpenMP's call that runs a function on each thread of its pool, if samba_use_openmp gave it.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
Parallel openmp = nullptr;

// Calls run(part) for all parts below `threads`, each on a thread of its own where one is to be had. The threads are
// PyTorch's own, if they can be had: while they wait for work they spin, for some milliseconds, on cores that other
// threads would need.
template <class Run>
void in_parallel(int threads, const Run& run) {
  struct Team {
    const Run& run;
    const int parts;
    std::atomic<int> next{0};
    static void work(void* itself) {
      Team& team = *static_cast<Team*>(itself);
      for (int part; (part = team.next++) < team.parts;) team.run(part);
    }
  } team{run, threads};
  if (threads == 1) return run(0);
  if (openmp) return openmp(Team::work, &team, 0, 0);  // a smaller team than PyTorch's would end the other threads
  std::vector<std::thread> others;
  others.reserve(threads);
  try {
    for (int t = 1; t < threads; ++t) others.emplace_back(Team::work, &team);
  } catch (const std::system_error&) {  // no more threads are to be had
  }
  Team::work(&team);
  for (auto& other : others) other.join();
}

// Splits the blocks of each sequence into `parts` and calls run(sequence, part, blocks) for all, on `threads` threads.
template <class Run>
void for_all(const std::vector<Block>& blocks, int64_t batch, int64_t parts, int threads, Run run) {
  const int64_t jobs = batch * parts, count = blocks.size();
  in_parallel(threads, [&](int thread) {
    for (int64_t job = thread * jobs / threads; job < (thread + 1) * jobs / threads; ++job) {
      const int64_t part = job % parts;
      const std::vector<Block> own(blocks.begin() + part * count / parts, blocks.begin() + (part + 1) * count / parts);
      if (!own.empty()) run(job / parts, part, own);
    }
  });
}

// The same with heads: run(sequence, part, first head, end).
template <class Run>
void for_heads(const Ssd& s, int64_t parts, int threads, Run run) {
  std::vector<Block> heads;
  for (int head = 0; head < s.heads; ++head) heads.push_back({head, 1, 0});
  for_all(heads, s.batch, parts, threads, [&](int64_t sequence, int64_t part, const std::vector<Block>& own) {
    run(sequence, part, own.front().channel, own.back().channel + 1);
  });
}

// Sequences are shared out as they are where that is even, and cut into ranges of channels where it is not.
int64_t parts_for(int64_t batch, int threads) { return batch % threads ? threads : 1; }

// The kernel of the instruction set that is asked for.
#ifdef SAMBA_X86
#define PICK(level, kernel) (level == 2 ? avx512::kernel : level == 1 ? avx2::kernel : portable::kernel)
#else
#define PICK(level, kernel) (portable::kernel)
#endif

}  // namespace

extern "C" {

// parallel: GOMP_parallel, of the OpenMP library that PyTorch uses.
void samba_use_openmp(void* parallel) { openmp = reinterpret_cast<Parallel>(parallel); }

// 2: AVX-512, 1: AVX2, 0: whatever the compiler makes of four floats (SSE2, or NEON on ARM).
int samba_level() { return best_level(); }

int samba_max_states() { return kMaxStates; }

int samba_max_width() { return kMaxWidth; }

int samba_chunk() { return portable::kChunk; }

void samba_scan_forward(const Scan* s, int threads, int level) {
  const auto kernel = PICK(level, forward_range);
  for_all(blocks_of(s->channels, s->groups, PICK(level, kWidth)), s->batch, parts_for(s->batch, threads), threads,
          [&](int64_t sequence, int64_t, const std::vector<Block>& own) { kernel(*s, sequence, own); });
}

// What no scan can do without, for measurements: reads s->delta and s->A, writes sums to s->y (batch, channels).
void samba_exponentials(const Scan* s, int threads, int level) {
  const auto kernel = PICK(level, exponentials_range);
  for_all(blocks_of(s->channels, s->groups, PICK(level, kWidth)), s->batch, parts_for(s->batch, threads), threads,
          [&](int64_t sequence, int64_t, const std::vector<Block>& own) { kernel(*s, sequence, own); });
}

// g->B and g->C hold `parts` gradients each, to be added up.
void samba_scan_backward(const Scan* s, const Gradients* g, int64_t parts, int threads, int level) {
  const auto kernel = PICK(level, backward_range);
  const int64_t share = s->batch * s->time * s->groups * s->states;
  for_all(blocks_of(s->channels, s->groups, PICK(level, kWidth)), s->batch, parts, threads,
          [&](int64_t sequence, int64_t part, const std::vector<Block>& own) {
            kernel(*s, *g, sequence, own, g->B + part * share, g->C + part * share);
          });
}

void samba_conv_forward(const Conv* c, int threads, int level) {
  const auto kernel = PICK(level, conv_forward_range);
  for_all(blocks_of(c->channels, 1, PICK(level, kWidth)), c->batch, parts_for(c->batch, threads), threads,
          [&](int64_t sequence, int64_t, const std::vector<Block>& own) { kernel(*c, sequence, own); });
}

void samba_conv_backward(const Conv* c, const ConvGradients* g, int threads, int level) {
  const auto kernel = PICK(level, conv_backward_range);
  for_all(blocks_of(c->channels, 1, PICK(level, kWidth)), c->batch, parts_for(c->batch, threads), threads,
          [&](int64_t sequence, int64_t, const std::vector<Block>& own) { kernel(*c, *g, sequence, own); });
}

int samba_ssd_chunk() { return portable::kSteps; }

void samba_ssd_forward(const Ssd* s, int threads, int level) {
  const auto kernel = PICK(level, ssd_forward_range);
  for_heads(*s, parts_for(s->batch, threads), threads,
            [&](int64_t sequence, int64_t, int first, int end) { kernel(*s, sequence, first, end); });
}

// g->B and g->C hold `parts` gradients each, to be added up.
void samba_ssd_backward(const Ssd* s, const SsdGradients* g, int64_t parts, int threads, int level) {
  const auto kernel = PICK(level, ssd_backward_range);
  const int64_t share = s->batch * s->time * s->groups * s->states;
  for_heads(*s, parts, threads, [&](int64_t sequence, int64_t part, int first, int end) {
    kernel(*s, *g, sequence, first, end, g->B + part * share, g->C + part * share);
  });
}

void samba_mamba2_step(const Mamba2Step* s, int level) { PICK(level, mamba2_step)(*s); }

// Outputs that lie side by side in a packed matrix.
int samba_linear_columns() { return portable::kColumns; }

void samba_linear(const Linear* l, int level) { PICK(level, linear)(*l); }
}
