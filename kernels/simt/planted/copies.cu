// Planted bugs: asynchronous copies. 64 threads; out[i] = in[i], n = 512 (each thread copies two pieces
// of four) or, where said so, 256 (one piece).
#include <kernel.cuh>
#include <ptx.cuh>

#include "planted.h"

namespace {

constexpr int kThreads = 64;
constexpr int kPiece = 4;
constexpr int kStage = kThreads * kPiece;

struct Plan {
  Shared<int, 2 * kStage> s;
};

__device__ __forceinline__ void copy_piece(Plan& plan, const int* from, int i) {
  cp_async_16(shared_address(&plan.s[i]), from + i);
}

__device__ __forceinline__ void store_piece(Plan& plan, int* out, int to, int from) {
  for (int i = 0; i < kPiece; ++i) store(out + to + i, plan.s[from + i]);
}

// Bug: the second group may still be under way when it is read.
template <bool Fixed>
__device__ void weak_wait(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  int i = threadIdx.x * kPiece;
  copy_piece(plan, address<int>(p.in), i);
  cp_async_commit();
  copy_piece(plan, address<int>(p.in), i + kStage);
  cp_async_commit();
  cp_async_wait<1>();
  store_piece(plan, address<int>(p.out), i, i);
  if (Fixed) cp_async_wait<0>();
  store_piece(plan, address<int>(p.out), i + kStage, i + kStage);
}

// n = 256. Bug: a copy that no group holds is not waited for.
template <bool Fixed>
__device__ void missing_commit(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  int i = threadIdx.x * kPiece;
  copy_piece(plan, address<int>(p.in), i);
  if (Fixed) cp_async_commit();
  cp_async_wait<0>();
  store_piece(plan, address<int>(p.out), i, i);
}

// n = 256. Bug: each thread waits for its own copy only after the barrier, and reads another's.
template <bool Fixed>
__device__ void late_wait(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  int i = threadIdx.x * kPiece, other = kStage - kPiece - i;
  copy_piece(plan, address<int>(p.in), i);
  cp_async_commit();
  if (Fixed) cp_async_wait<0>();
  __syncthreads();
  if (!Fixed) cp_async_wait<0>();
  store_piece(plan, address<int>(p.out), other, other);
}

// n = 256. Bug: waiting for one's own copies is not waiting for those of others.
template <bool Fixed>
__device__ void wait_without_barrier(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  int i = threadIdx.x * kPiece, other = kStage - kPiece - i;
  copy_piece(plan, address<int>(p.in), i);
  cp_async_commit();
  cp_async_wait<0>();
  if (Fixed) __syncthreads();
  store_piece(plan, address<int>(p.out), other, other);
}

// n = 256; `out` is the source of the copy, too. Bug: it is overwritten before the copy has landed.
template <bool Fixed>
__device__ void source_overwritten(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  int* out = address<int>(p.out);
  int i = threadIdx.x * kPiece;
  for (int j = i; j < i + kPiece; ++j) store(out + j, load(address<int>(p.in) + j));
  copy_piece(plan, out, i);
  cp_async_commit();
  if (Fixed) cp_async_wait<0>();
  for (int j = i; j < i + kPiece; ++j) store(out + j, 0);
  if (!Fixed) cp_async_wait<0>();
  store_piece(plan, out, i, i);
}

}  // namespace

// clang-format off
PF_KERNEL(planted_weak_wait, PlantedParams, 64) { weak_wait<false>(p); }
PF_KERNEL(planted_weak_wait_fixed, PlantedParams, 64) { weak_wait<true>(p); }
PF_KERNEL(planted_missing_commit, PlantedParams, 64) { missing_commit<false>(p); }
PF_KERNEL(planted_missing_commit_fixed, PlantedParams, 64) { missing_commit<true>(p); }
PF_KERNEL(planted_late_wait, PlantedParams, 64) { late_wait<false>(p); }
PF_KERNEL(planted_late_wait_fixed, PlantedParams, 64) { late_wait<true>(p); }
PF_KERNEL(planted_wait_without_barrier, PlantedParams, 64) { wait_without_barrier<false>(p); }
PF_KERNEL(planted_wait_without_barrier_fixed, PlantedParams, 64) { wait_without_barrier<true>(p); }
PF_KERNEL(planted_source_overwritten, PlantedParams, 64) { source_overwritten<false>(p); }
PF_KERNEL(planted_source_overwritten_fixed, PlantedParams, 64) { source_overwritten<true>(p); }
