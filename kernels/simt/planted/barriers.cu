// Planted bugs: barriers of a block. 128 threads, n = 128.
#include <kernel.cuh>
#include <ptx.cuh>

#include "planted.h"

namespace {

constexpr int kThreads = 128;

struct Plan {
  Shared<int, kThreads> s;
};

// out[i] = in[n - 1 - i]. Bug: nobody waits until the others have written.
template <bool Fixed>
__device__ void missing_barrier(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  int t = threadIdx.x;
  plan.s[t] = load(address<int>(p.in) + t);
  if (Fixed) __syncthreads();
  store(address<int>(p.out) + t, plan.s[p.n - 1 - t]);
}

// out[i] = 2 in[n - 1 - i] + 1, in two rounds. Bug: shared memory is written again while others still read
// what the first round left there.
template <bool Fixed>
__device__ void reused_tile(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  int t = threadIdx.x, sum = 0;
  for (int round = 0; round < 2; ++round) {
    plan.s[t] = load(address<int>(p.in) + t) + round;
    __syncthreads();
    sum += plan.s[p.n - 1 - t];
    if (Fixed) __syncthreads();
  }
  store(address<int>(p.out) + t, sum);
}

// out[i] = in[n - 1 - i]. Bug: the two halves wait at barriers of their own.
template <bool Fixed>
__device__ void divergent_barrier(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  int t = threadIdx.x;
  plan.s[t] = load(address<int>(p.in) + t);
  if (Fixed || t < kThreads / 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  store(address<int>(p.out) + t, plan.s[p.n - 1 - t]);
}

// out[i] = in[i], and 0 from n - 32 on. Bug: the threads that have no work leave before the barrier.
template <bool Fixed>
__device__ void exited_thread(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  int t = threadIdx.x;
  bool works = t < p.n - 32;
  store(address<int>(p.out) + t, 0);
  if (!Fixed && !works) return;
  if (works) plan.s[t] = load(address<int>(p.in) + t);
  __syncthreads();
  if (works) store(address<int>(p.out) + t, plan.s[t]);
}

// out[i] = in[n - 1 - i] for the second half, in[i] for the first: the first half of the threads writes
// shared memory and goes on, the second waits for it. Bug: one producer warp does not arrive.
template <bool Fixed>
__device__ void lost_arrival(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  int t = threadIdx.x;
  int value = load(address<int>(p.in) + t);
  if (t < kThreads / 2) {
    plan.s[t] = value;
    if (Fixed || t < 32) bar_arrive(1, kThreads);
  } else {
    bar_sync(1, kThreads);
    value = plan.s[p.n - 1 - t];
  }
  store(address<int>(p.out) + t, value);
}

// The same contract. Bug: producers and consumers expect different numbers of threads.
template <bool Fixed>
__device__ void barrier_counts(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  int t = threadIdx.x;
  int value = load(address<int>(p.in) + t);
  if (t < kThreads / 2) {
    plan.s[t] = value;
    bar_arrive(1, Fixed ? kThreads : kThreads - 32);
  } else {
    bar_sync(1, kThreads);
    value = plan.s[p.n - 1 - t];
  }
  store(address<int>(p.out) + t, value);
}

}  // namespace

// clang-format off
PF_KERNEL(planted_missing_barrier, PlantedParams, 128) { missing_barrier<false>(p); }
PF_KERNEL(planted_missing_barrier_fixed, PlantedParams, 128) { missing_barrier<true>(p); }
PF_KERNEL(planted_reused_tile, PlantedParams, 128) { reused_tile<false>(p); }
PF_KERNEL(planted_reused_tile_fixed, PlantedParams, 128) { reused_tile<true>(p); }
PF_KERNEL(planted_divergent_barrier, PlantedParams, 128) { divergent_barrier<false>(p); }
PF_KERNEL(planted_divergent_barrier_fixed, PlantedParams, 128) { divergent_barrier<true>(p); }
PF_KERNEL(planted_exited_thread, PlantedParams, 128) { exited_thread<false>(p); }
PF_KERNEL(planted_exited_thread_fixed, PlantedParams, 128) { exited_thread<true>(p); }
PF_KERNEL(planted_lost_arrival, PlantedParams, 128) { lost_arrival<false>(p); }
PF_KERNEL(planted_lost_arrival_fixed, PlantedParams, 128) { lost_arrival<true>(p); }
PF_KERNEL(planted_barrier_counts, PlantedParams, 128) { barrier_counts<false>(p); }
PF_KERNEL(planted_barrier_counts_fixed, PlantedParams, 128) { barrier_counts<true>(p); }
