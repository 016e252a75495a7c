// Planted bugs: mbarriers and the copy engine. 64 threads; thread 0 sends for boxes of 64 16-bit elements, the
// other warp writes them out. `in` is two boxes of 32 ints. out[i] = in[i], n = 64, where nothing else is said.
#include <kernel.cuh>
#include <ptx.cuh>

#include "planted.h"

namespace {

constexpr int kBox = 32;  // ints, in one row of 64 16-bit elements
constexpr int kBytes = 4 * kBox;
constexpr int kBoxes = 16;  // one after the other

struct Plan {
  alignas(1024) Shared<int, kBox> box[2];
  Shared<int, kBox> sum;
  Shared<uint64_t, 2> full;
  Shared<uint64_t, 1> empty;
};

// A map of `in` as rows of 64 elements.
TensorMap map_of(const PlantedParams& p) {
  SimtTensorMap map = {};
  map.magic = SIMT_TENSOR_MAP;
  map.address = p.in;
  map.rank = 4;
  map.element_bytes = 2;
  map.swizzle = 128;
  const uint32_t dim[] = {64, static_cast<uint32_t>(p.n) / kBox, 1, 1, 1}, box[] = {64, 1, 1, 1, 1};
  for (int d = 0; d < 5; ++d) map.dim[d] = dim[d], map.box[d] = box[d];
  for (int d = 0; d < 4; ++d) map.stride[d] = kBytes;
  TensorMap words = {};
  memcpy(&words, &map, sizeof map);
  return words;
}

__device__ void prepare(Plan& plan, int empty_arrivals = 32, bool fence = true) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) mbarrier_init(shared_address(&plan.full[i]), 1);
    mbarrier_init(shared_address(&plan.empty[0]), empty_arrivals);
    if (fence) fence_mbarrier_init();
  }
  __syncthreads();
}

__device__ void send(const TensorMap& map, Plan& plan, int stage, int row, int expected = kBytes) {
  const uint32_t full = shared_address(&plan.full[stage]);
  mbarrier_arrive_expect_tx(full, expected);
  tma_load_4d(shared_address(&plan.box[stage].data[0]), &map, full, 0, row, 0, 0);
}

__device__ void await(uint64_t* barrier, uint32_t parity) {
  while (!mbarrier_try_wait(shared_address(barrier), parity)) {
  }
}

// The second warp's lane writes its number of a box; row 0 is not swizzled.
__device__ void write_out(const PlantedParams& p, Plan& plan, int stage, int box) {
  const int lane = threadIdx.x % 32;
  store(address<int>(p.out) + box * kBox + lane, plan.box[stage][lane]);
}

// n = 512. Bug: every use of the barrier is waited for by the parity of the first.
template <bool Fixed>
__device__ void wrong_phase(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  const TensorMap map = map_of(p);
  prepare(plan);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kBoxes; ++i) {
      if (i > 0) await(&plan.empty[0], (i - 1) % 2);
      send(map, plan, 0, i);
    }
  } else if (threadIdx.x >= 32) {
    for (int i = 0; i < kBoxes; ++i) {
      await(&plan.full[0], Fixed ? i % 2 : 0);
      write_out(p, plan, 0, i);
      mbarrier_arrive(shared_address(&plan.empty[0]));
    }
    await(&plan.full[0], (kBoxes - 1) % 2);
  }
}

// n = 512. Bug: the box is overwritten while the other warp may still read it.
template <bool Fixed>
__device__ void not_released(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  const TensorMap map = map_of(p);
  prepare(plan);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kBoxes; ++i) {
      send(map, plan, 0, i);
      await(&plan.full[0], i % 2);
      if (Fixed) await(&plan.empty[0], i % 2);
    }
  } else if (threadIdx.x >= 32) {
    for (int i = 0; i < kBoxes; ++i) {
      await(&plan.full[0], i % 2);
      write_out(p, plan, 0, i);
      mbarrier_arrive(shared_address(&plan.empty[0]));
    }
  }
}

// n = 32 from here on, where nothing else is said: one box. Bug: one lane's arrival is missing.
template <bool Fixed>
__device__ void missing_arrival(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  const TensorMap map = map_of(p);
  prepare(plan);
  if (threadIdx.x == 0) {
    send(map, plan, 0, 0);
    await(&plan.empty[0], 0);
  } else if (threadIdx.x >= 32) {
    await(&plan.full[0], 0);
    write_out(p, plan, 0, 0);
    if (Fixed || threadIdx.x < 63) mbarrier_arrive(shared_address(&plan.empty[0]));
  }
}

// Bug: the barrier is told of other bytes than the box has.
template <bool Fixed, int Off>
__device__ void bytes_off(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  const TensorMap map = map_of(p);
  prepare(plan);
  if (threadIdx.x == 0) {
    send(map, plan, 0, 0, Fixed ? kBytes : kBytes + Off);
  } else if (threadIdx.x >= 32) {
    await(&plan.full[0], 0);
    write_out(p, plan, 0, 0);
  }
}

// Bug: the copy engine is not shown the barrier's initialisation.
template <bool Fixed>
__device__ void missing_init_fence(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  const TensorMap map = map_of(p);
  prepare(plan, 32, Fixed);
  if (threadIdx.x == 0) {
    send(map, plan, 0, 0);
  } else if (threadIdx.x >= 32) {
    await(&plan.full[0], 0);
    write_out(p, plan, 0, 0);
  }
}

// Bug: a thread's write to the box's place may come after the box.
template <bool Fixed>
__device__ void missing_fence_before_box(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  const TensorMap map = map_of(p);
  if (threadIdx.x >= 32) {
    store_shared(&plan.box[0].data[threadIdx.x % 32], 0);
    if (Fixed) fence_proxy_async();
  }
  prepare(plan);
  if (threadIdx.x == 0) {
    send(map, plan, 0, 0);
  } else if (threadIdx.x >= 32) {
    await(&plan.full[0], 0);
    write_out(p, plan, 0, 0);
  }
}

// Bug: the box goes to where no box may go.
template <bool Fixed>
__device__ void misaligned_box(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  const TensorMap map = map_of(p);
  prepare(plan);
  if (threadIdx.x == 0) {
    const uint32_t full = shared_address(&plan.full[0]);
    mbarrier_arrive_expect_tx(full, kBytes);
    tma_load_4d(shared_address(&plan.box[0].data[0]) + (Fixed ? 0 : 64), &map, full, 0, 0, 0, 0);
  } else if (threadIdx.x >= 32) {
    await(&plan.full[0], 0);
    write_out(p, plan, 0, 0);
  }
}

// Bug: the box begins at a column whose place in the row is no multiple of 16 bytes.
template <bool Fixed>
__device__ void misaligned_column(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  const TensorMap map = map_of(p);
  prepare(plan);
  if (threadIdx.x == 0) {
    const uint32_t full = shared_address(&plan.full[0]);
    mbarrier_arrive_expect_tx(full, kBytes);
    tma_load_4d(shared_address(&plan.box[0].data[0]), &map, full, Fixed ? 0 : -3, 0, 0, 0);
  } else if (threadIdx.x >= 32) {
    await(&plan.full[0], 0);
    write_out(p, plan, 0, 0);
  }
}

// Bug: the array behind the barriers is too short for what is written to it, and they stand before it.
template <bool Fixed>
__device__ void overwritten_barrier(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  const TensorMap map = map_of(p);
  prepare(plan);
  if (threadIdx.x == 0) {
    send(map, plan, 0, 0);
  } else if (threadIdx.x >= 32) {
    await(&plan.full[0], 0);
    int* sum = &plan.sum.data[0];
    sum[threadIdx.x % 32 + (Fixed ? 0 : 1)] = 0;
    __syncwarp();
    await(&plan.full[0], 0);
    write_out(p, plan, 0, 0);
  }
}

// Bug: nobody waits for the second box, and the block ends.
template <bool Fixed>
__device__ void abandoned_box(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  const TensorMap map = map_of(p);
  prepare(plan);
  if (threadIdx.x == 0) {
    send(map, plan, 0, 0);
    await(&plan.full[0], 0);
    send(map, plan, 1, 0);
  } else if (threadIdx.x >= 32) {
    await(&plan.full[0], 0);
    write_out(p, plan, 0, 0);
    if (Fixed) await(&plan.full[1], 0);
  }
}

// 512 threads, n = 512. Bug: half of the warps want more registers, and the others give none up.
template <bool Fixed>
__device__ void registers_over(const PlantedParams& p) {
  const int i = threadIdx.x;
  if (i < 256) {
    if (Fixed) setmaxnreg_dec<24>();
    store(address<int>(p.out) + i, load(address<int>(p.in) + i));
  } else {
    setmaxnreg_inc<232>();
    store(address<int>(p.out) + i, load(address<int>(p.in) + i));
  }
}

}  // namespace

// clang-format off
PF_KERNEL(planted_wrong_phase, PlantedParams, 64) { wrong_phase<false>(p); }
PF_KERNEL(planted_wrong_phase_fixed, PlantedParams, 64) { wrong_phase<true>(p); }
PF_KERNEL(planted_not_released, PlantedParams, 64) { not_released<false>(p); }
PF_KERNEL(planted_not_released_fixed, PlantedParams, 64) { not_released<true>(p); }
PF_KERNEL(planted_missing_arrival, PlantedParams, 64) { missing_arrival<false>(p); }
PF_KERNEL(planted_missing_arrival_fixed, PlantedParams, 64) { missing_arrival<true>(p); }
PF_KERNEL(planted_bytes_over, PlantedParams, 64) { bytes_off<false, 16>(p); }
PF_KERNEL(planted_bytes_over_fixed, PlantedParams, 64) { bytes_off<true, 16>(p); }
PF_KERNEL(planted_bytes_under, PlantedParams, 64) { bytes_off<false, -16>(p); }
PF_KERNEL(planted_bytes_under_fixed, PlantedParams, 64) { bytes_off<true, -16>(p); }
PF_KERNEL(planted_missing_init_fence, PlantedParams, 64) { missing_init_fence<false>(p); }
PF_KERNEL(planted_missing_init_fence_fixed, PlantedParams, 64) { missing_init_fence<true>(p); }
PF_KERNEL(planted_missing_fence_before_box, PlantedParams, 64) { missing_fence_before_box<false>(p); }
PF_KERNEL(planted_missing_fence_before_box_fixed, PlantedParams, 64) { missing_fence_before_box<true>(p); }
PF_KERNEL(planted_misaligned_box, PlantedParams, 64) { misaligned_box<false>(p); }
PF_KERNEL(planted_misaligned_box_fixed, PlantedParams, 64) { misaligned_box<true>(p); }
PF_KERNEL(planted_misaligned_column, PlantedParams, 64) { misaligned_column<false>(p); }
PF_KERNEL(planted_misaligned_column_fixed, PlantedParams, 64) { misaligned_column<true>(p); }
PF_KERNEL(planted_overwritten_barrier, PlantedParams, 64) { overwritten_barrier<false>(p); }
PF_KERNEL(planted_overwritten_barrier_fixed, PlantedParams, 64) { overwritten_barrier<true>(p); }
PF_KERNEL(planted_abandoned_box, PlantedParams, 64) { abandoned_box<false>(p); }
PF_KERNEL(planted_abandoned_box_fixed, PlantedParams, 64) { abandoned_box<true>(p); }
PF_KERNEL(planted_registers_over, PlantedParams, 512) { registers_over<false>(p); }
PF_KERNEL(planted_registers_over_fixed, PlantedParams, 512) { registers_over<true>(p); }
