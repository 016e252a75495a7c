// Planted bugs: addresses and what lies there. 32 threads; out[i] = in[i] unless said otherwise.
#include <kernel.cuh>
#include <ptx.cuh>
#include <types.cuh>

#include "planted.h"

namespace {

constexpr int kThreads = 32;
constexpr int kMatrixInts = 128;  // four 8x8 matrices of 16 bits

struct Plan {
  Shared<int, kMatrixInts> s;
};

// n = 128. Bug: the last thread runs past the array.
template <bool Fixed>
__device__ void shared_index(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  int count = Fixed ? p.n : p.n + 1;
  for (int i = threadIdx.x; i < count; i += kThreads) plan.s[i] = load(address<int>(p.in) + i % p.n);
  __syncthreads();
  for (int i = threadIdx.x; i < p.n; i += kThreads) store(address<int>(p.out) + i, plan.s[i]);
}

// n = 128, shared memory for the plan alone. Bug: the same through a plain pointer.
template <bool Fixed>
__device__ void red_zone(const PlantedParams& p) {
  int* s = shared_memory<Plan>().s.data;
  int count = Fixed ? p.n : p.n + 1;
  for (int i = threadIdx.x; i < count; i += kThreads) s[i] = load(address<int>(p.in) + i % p.n);
  __syncthreads();
  for (int i = threadIdx.x; i < p.n; i += kThreads) store(address<int>(p.out) + i, s[i]);
}

// n = 128. Bug: reads what nobody wrote; it must not look like something.
template <bool Fixed>
__device__ void uninitialised(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  int count = Fixed ? p.n : p.n / 2;
  for (int i = threadIdx.x; i < count; i += kThreads) plan.s[i] = load(address<int>(p.in) + i);
  __syncthreads();
  for (int i = threadIdx.x; i < p.n; i += kThreads) store(address<int>(p.out) + i, plan.s[i]);
}

// n = 128. Bug: vectors of four from an address that is a multiple of four only.
template <bool Fixed>
__device__ void misaligned(const PlantedParams& p) {
  int i = threadIdx.x * 4;
  int shift = Fixed || i == 0 ? 0 : 1;
  Vec<int, 4> v = load_vec<4>(address<int>(p.in) + i - shift);
  for (int j = 0; j < 4; ++j) store(address<int>(p.out) + i + j, v[j]);
}

// n = 100. Bug: no test for the tail.
template <bool Fixed>
__device__ void read_past(const PlantedParams& p) {
  for (int i = threadIdx.x; i < 128; i += kThreads) {
    int value = !Fixed || i < p.n ? load(address<int>(p.in) + i) : 0;
    if (i < p.n) store(address<int>(p.out) + i, value);
  }
}

// n = 100. Bug: no test for the tail.
template <bool Fixed>
__device__ void write_past(const PlantedParams& p) {
  for (int i = threadIdx.x; i < 128; i += kThreads) {
    int value = i < p.n ? load(address<int>(p.in) + i) : 0;
    if (!Fixed || i < p.n) store(address<int>(p.out) + i, value);
  }
}

// n = 32. Bug: writes to its input.
template <bool Fixed>
__device__ void write_to_input(const PlantedParams& p) {
  int i = threadIdx.x;
  int value = load(address<int>(p.in) + i);
  store(address<int>(Fixed ? p.out : p.in) + i, value);
}

// n = 128: ldmatrix of four matrices gives lane l of matrix m word 32 m + l. Bug: rows start at a
// multiple of 8 bytes.
template <bool Fixed>
__device__ void ldmatrix_row(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  int t = threadIdx.x;
  for (int i = t; i < p.n; i += kThreads) plan.s[i] = load(address<int>(p.in) + i);
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, shared_address(&plan.s[4 * t]) + (Fixed ? 0 : 8));
  for (int m = 0; m < 4; ++m) store(address<int>(p.out) + 32 * m + t, int(r[m]));
}

// n = 1024 over 4 blocks of 256; out[0] = the sum of in (mod 2^32), out starts at 0. Bug: read, add, write.
template <bool Fixed>
__device__ void lost_update(const PlantedParams& p) {
  int value = load(address<int>(p.in) + blockIdx.x * blockDim.x + threadIdx.x);
  int* sum = address<int>(p.out);
  if (Fixed) {
    atomicAdd(sum, value);
  } else {
    store(sum, load(sum) + value);
  }
}

// n = 4 over 4 blocks, whose first threads add; the same contract. Blocks here run one after the other on
// each core, so the result is right nearly always: what finds it is ThreadSanitizer.
template <bool Fixed>
__device__ void lost_update_across_blocks(const PlantedParams& p) {
  if (threadIdx.x > 0) return;
  int value = load(address<int>(p.in) + blockIdx.x);
  int* sum = address<int>(p.out);
  if (Fixed) {
    atomicAdd(sum, value);
  } else {
    store(sum, load(sum) + value);
  }
}

// n = 32. Bug: more variables than a thread's stack holds (on a card: more local memory than it has).
template <bool Fixed>
__device__ void stack_overflow(const PlantedParams& p) {
  constexpr int kBytes = Fixed ? 8 * 1024 : 1024 * 1024 / 2;
  volatile char bytes[kBytes];
  int t = threadIdx.x;
  int value = load(address<int>(p.in) + t);
  for (int i = 0; i < 4; ++i) bytes[t * 64 + i] = static_cast<char>(value >> 8 * i);
  __syncwarp();
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= unsigned(static_cast<unsigned char>(bytes[t * 64 + i])) << 8 * i;
  store(address<int>(p.out) + t, int(result));
}

}  // namespace

// clang-format off
PF_KERNEL(planted_shared_index, PlantedParams, 32) { shared_index<false>(p); }
PF_KERNEL(planted_shared_index_fixed, PlantedParams, 32) { shared_index<true>(p); }
PF_KERNEL(planted_red_zone, PlantedParams, 32) { red_zone<false>(p); }
PF_KERNEL(planted_red_zone_fixed, PlantedParams, 32) { red_zone<true>(p); }
PF_KERNEL(planted_uninitialised, PlantedParams, 32) { uninitialised<false>(p); }
PF_KERNEL(planted_uninitialised_fixed, PlantedParams, 32) { uninitialised<true>(p); }
PF_KERNEL(planted_misaligned, PlantedParams, 32) { misaligned<false>(p); }
PF_KERNEL(planted_misaligned_fixed, PlantedParams, 32) { misaligned<true>(p); }
PF_KERNEL(planted_read_past, PlantedParams, 32) { read_past<false>(p); }
PF_KERNEL(planted_read_past_fixed, PlantedParams, 32) { read_past<true>(p); }
PF_KERNEL(planted_write_past, PlantedParams, 32) { write_past<false>(p); }
PF_KERNEL(planted_write_past_fixed, PlantedParams, 32) { write_past<true>(p); }
PF_KERNEL(planted_write_to_input, PlantedParams, 32) { write_to_input<false>(p); }
PF_KERNEL(planted_write_to_input_fixed, PlantedParams, 32) { write_to_input<true>(p); }
PF_KERNEL(planted_ldmatrix_row, PlantedParams, 32) { ldmatrix_row<false>(p); }
PF_KERNEL(planted_ldmatrix_row_fixed, PlantedParams, 32) { ldmatrix_row<true>(p); }
PF_KERNEL(planted_lost_update, PlantedParams, 256) { lost_update<false>(p); }
PF_KERNEL(planted_lost_update_fixed, PlantedParams, 256) { lost_update<true>(p); }
PF_KERNEL(planted_lost_update_across_blocks, PlantedParams, 32) { lost_update_across_blocks<false>(p); }
PF_KERNEL(planted_lost_update_across_blocks_fixed, PlantedParams, 32) { lost_update_across_blocks<true>(p); }
PF_KERNEL(planted_stack_overflow, PlantedParams, 32) { stack_overflow<false>(p); }
PF_KERNEL(planted_stack_overflow_fixed, PlantedParams, 32) { stack_overflow<true>(p); }
