// Two attention results over disjoint keys into one.
//
//   m = max(lse_a, lse_b)    w_x = e^(lse_x - m)
//   out = (w_a a + w_b b) / (w_a + w_b)    lse = m + ln(w_a + w_b)
//
// A side whose lse is -inf saw no keys: the other one is copied, bit for bit, and its own out is not
// even read. One lane moves 16 bytes of a row; a block holds as many rows as fit, so that short rows
// fill it too. The lanes of a row compute its weights each for itself, from the same two numbers.
//
// Floor: one pass, (3 dim elements + 12 bytes) a row at the memory's bandwidth.
#include <kernel.cuh>
#include <types.cuh>

namespace {

constexpr int kThreads = 256;

template <class T>
__device__ __forceinline__ void merge(const MergeStatesParams& p) {
  constexpr int kLane = kLane16<T>;
  const int lanes = p.dim / kLane;  // of a row
  const int64_t chunk = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t index = chunk / lanes;  // row * heads + head
  const int d = static_cast<int>(chunk % lanes) * kLane;
  const int64_t row = index / p.heads;
  const int head = static_cast<int>(index % p.heads);
  if (row >= p.rows) return;

  const float lse_a = load(address<const float>(p.a_lse) + row * p.a_lse_stride + head);
  const float lse_b = load(address<const float>(p.b_lse) + row * p.b_lse_stride + head);
  const T* a = address<const T>(p.a_out) + row * p.a_strides[0] + head * p.a_strides[1] + d;
  const T* b = address<const T>(p.b_out) + row * p.b_strides[0] + head * p.b_strides[1] + d;
  // No keys: -inf, or +inf as FlashAttention 2 has it.
  const bool no_a = fabsf(lse_a) == INFINITY, no_b = fabsf(lse_b) == INFINITY;
  Vec<T, kLane> merged;
  float lse = no_a ? (no_b ? -INFINITY : lse_b) : lse_a;
  if (no_a && no_b) {
#pragma unroll
    for (int i = 0; i < kLane; i++) merged[i] = from_float<T>(0.0f);
  } else if (no_a || no_b) {
    merged = load_vec<kLane>(no_a ? b : a);
  } else {
    const Vec<T, kLane> x = load_vec<kLane>(a), y = load_vec<kLane>(b);
    const float m = fmaxf(lse_a, lse_b);
    const float w_a = expf(lse_a - m), w_b = expf(lse_b - m);
    const float sum = w_a + w_b;
#pragma unroll
    for (int i = 0; i < kLane; i++) {
      merged[i] = from_float<T>((w_a * to_float(x[i]) + w_b * to_float(y[i])) / sum);
    }
    lse = m + logf(sum);
  }
  store_vec(address<T>(p.out) + row * p.out_strides[0] + head * p.out_strides[1] + d, merged);
  if (d == 0) store(address<float>(p.lse) + row * p.lse_stride + head, lse);
}

}  // namespace

PF_KERNEL(merge_states_f32, MergeStatesParams, kThreads) { merge<float>(p); }
PF_KERNEL(merge_states_f16, MergeStatesParams, kThreads) { merge<f16>(p); }
PF_KERNEL(merge_states_bf16, MergeStatesParams, kThreads) { merge<bf16>(p); }
