// The CPU build's ptx.cuh: one function an instruction. See kernels/device/ptx.cuh for what they do.
#pragma once

#include "../race.h"
#include "kernel.cuh"

template <class T>
__forceinline__ uint32_t shared_address(const T* p, simt::Site site = simt::here()) {
  return simt::shared_address(p, site);
}

__forceinline__ void cp_async_16(uint32_t to_shared, const void* from_global, bool valid = true,
                                 simt::Site site = simt::here()) {
  simt::copy_async(to_shared, from_global, 16, valid, site);
}
__forceinline__ void cp_async_commit() { simt::commit_copies(); }
template <int Pending>
__forceinline__ void cp_async_wait() {
  simt::wait_for_copies(Pending);
}

__forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t row, simt::Site site = simt::here()) {
  simt::LoadMatrix args = {r, simt::shared_pointer("ldmatrix", row, 16, 16, site)};
  simt::seen_read(args.row, 16);
  simt::meet(simt::ldmatrix_x4, simt::kFullWarp, &args, site);
}
__forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row, simt::Site site = simt::here()) {
  simt::LoadMatrix args = {r, simt::shared_pointer("ldmatrix", row, 16, 16, site)};
  simt::seen_read(args.row, 16);
  simt::meet(simt::ldmatrix_x4_trans, simt::kFullWarp, &args, site);
}

namespace simt {
template <class T>
inline const Operation& mma_m16n8k16_of();
template <>
inline const Operation& mma_m16n8k16_of<f16>() {
  return mma_m16n8k16_f16;
}
template <>
inline const Operation& mma_m16n8k16_of<bf16>() {
  return mma_m16n8k16_bf16;
}
}  // namespace simt

template <class T>
__forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                  simt::Site site = simt::here()) {
  simt::Mma args = {d, a, b};
  simt::meet(simt::mma_m16n8k16_of<T>(), simt::kFullWarp, &args, site);
}

// The card's result differs in the last bits. Denormals are zero, in and out.
__forceinline__ float ex2(float x) {
  float y = ::exp2f(::fabsf(x) < 1.17549435e-38f ? 0.0f : x);
  return y < 1.17549435e-38f ? 0.0f : y;
}

__forceinline__ void bar_sync(int id, int threads, simt::Site site = simt::here()) {
  simt::barrier("bar_sync", id, threads, true, false, site);
}
__forceinline__ void bar_arrive(int id, int threads, simt::Site site = simt::here()) {
  simt::barrier("bar_arrive", id, threads, false, false, site);
}
