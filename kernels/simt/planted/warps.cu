// Planted bugs: the lanes of a warp. 32 threads, n = 32.
#include <kernel.cuh>
#include <ptx.cuh>

#include "planted.h"

namespace {

struct Plan {
  Shared<int, 32> s;
};

// out[i] = in[i ^ 1] for i < 16, in[i] above. Bug: the lower half names lanes that are not there.
template <bool Fixed>
__device__ void warp_mask(const PlantedParams& p) {
  int t = threadIdx.x;
  int value = load(address<int>(p.in) + t);
  if (t < 16) value = __shfl_xor_sync(Fixed ? 0xffffu : 0xffffffffu, value, 1);
  store(address<int>(p.out) + t, value);
}

// out[i] = the sum of in. Bug: the mask lacks half of the lanes that call.
template <bool Fixed>
__device__ void own_mask(const PlantedParams& p) {
  int t = threadIdx.x;
  int value = load(address<int>(p.in) + t);
  value = __reduce_add_sync(Fixed ? 0xffffffffu : 0xffffu, value);
  store(address<int>(p.out) + t, value);
}

// out[i] = in[i ^ 1]. Bug: odd and even lanes meet in two different shuffles.
template <bool Fixed>
__device__ void warp_divergence(const PlantedParams& p) {
  int t = threadIdx.x;
  int value = load(address<int>(p.in) + t);
  if (Fixed || t % 2 == 0) {
    value = __shfl_xor_sync(0xffffffffu, value, 1);
  } else {
    value = __shfl_xor_sync(0xffffffffu, value, 1);
  }
  store(address<int>(p.out) + t, value);
}

// out[i] = in[i + 8] for i < 8, in[i] above. Bug: a lane reads one that is not in the mask.
template <bool Fixed>
__device__ void shuffle_source(const PlantedParams& p) {
  int t = threadIdx.x;
  int value = load(address<int>(p.in) + t);
  if (t < 16) {
    int moved = __shfl_down_sync(0xffffu, value, 8, Fixed ? 16 : 32);
    if (t < 8) value = moved;
  }
  store(address<int>(p.out) + t, value);
}

// out[i] = in[n - 1 - i]. Bug: lanes of one warp are taken to run in step.
template <bool Fixed>
__device__ void missing_syncwarp(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  int t = threadIdx.x;
  plan.s[t] = load(address<int>(p.in) + t);
  if (Fixed) __syncwarp();
  store(address<int>(p.out) + t, plan.s[p.n - 1 - t]);
}

}  // namespace

// clang-format off
PF_KERNEL(planted_warp_mask, PlantedParams, 32) { warp_mask<false>(p); }
PF_KERNEL(planted_warp_mask_fixed, PlantedParams, 32) { warp_mask<true>(p); }
PF_KERNEL(planted_own_mask, PlantedParams, 32) { own_mask<false>(p); }
PF_KERNEL(planted_own_mask_fixed, PlantedParams, 32) { own_mask<true>(p); }
PF_KERNEL(planted_warp_divergence, PlantedParams, 32) { warp_divergence<false>(p); }
PF_KERNEL(planted_warp_divergence_fixed, PlantedParams, 32) { warp_divergence<true>(p); }
PF_KERNEL(planted_shuffle_source, PlantedParams, 32) { shuffle_source<false>(p); }
PF_KERNEL(planted_shuffle_source_fixed, PlantedParams, 32) { shuffle_source<true>(p); }
PF_KERNEL(planted_missing_syncwarp, PlantedParams, 32) { missing_syncwarp<false>(p); }
PF_KERNEL(planted_missing_syncwarp_fixed, PlantedParams, 32) { missing_syncwarp<true>(p); }
