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

__forceinline__ void mbarrier_init(uint32_t barrier, int arrivals, simt::Site site = simt::here()) {
  simt::mbarrier_init(barrier, arrivals, site);
}
__forceinline__ void fence_mbarrier_init() { simt::fence_mbarriers(); }
__forceinline__ void mbarrier_arrive(uint32_t barrier, simt::Site site = simt::here()) {
  simt::mbarrier_arrive(barrier, 0, site);
}
__forceinline__ void mbarrier_arrive_expect_tx(uint32_t barrier, int bytes, simt::Site site = simt::here()) {
  simt::mbarrier_arrive(barrier, bytes, site);
}
// Waits as long as it takes: a thread that asks again and again is not seen to be stuck.
__forceinline__ bool mbarrier_try_wait(uint32_t barrier, uint32_t parity, simt::Site site = simt::here()) {
  simt::mbarrier_wait(barrier, parity, site);
  return true;
}

__forceinline__ void tma_load_4d(uint32_t to_shared, const TensorMap* map, uint32_t barrier, int c0, int c1, int c2,
                                 int c3, simt::Site site = simt::here()) {
  const int at[] = {c0, c1, c2, c3};
  simt::tensor_copy(to_shared, map, barrier, at, 4, site);
}
__forceinline__ void tma_prefetch(const TensorMap*) {}
__forceinline__ void fence_proxy_async() { simt::fence_proxy(); }

__forceinline__ void stmatrix_x4(uint32_t row, const uint32_t (&r)[4], simt::Site site = simt::here()) {
  simt::StoreMatrix args = {r, simt::shared_pointer("stmatrix", row, 16, 16, site)};
  simt::generic_write(args.row, 16, site);
  simt::meet(simt::stmatrix_x4, simt::kFullWarp, &args, site);
}

template <int Registers>
__forceinline__ void setmaxnreg_inc(simt::Site site = simt::here()) {
  simt::set_registers(Registers, true, site);
}
template <int Registers>
__forceinline__ void setmaxnreg_dec(simt::Site site = simt::here()) {
  simt::set_registers(Registers, false, site);
}

__forceinline__ void wgmma_fence(simt::Site site = simt::here()) {
  simt::fence_products(site);
}
__forceinline__ void wgmma_commit(simt::Site site = simt::here()) {
  simt::meet(simt::wgmma_commit_group, simt::kFullWarp, nullptr, site);
}
template <int Pending>
__forceinline__ void wgmma_wait(simt::Site site = simt::here()) {
  int pending = Pending;
  simt::meet(simt::wgmma_wait_group, simt::kFullWarp, &pending, site);
}
template <int N>
__forceinline__ void wgmma_hold(float (&)[N][4]) {}

namespace simt {
template <class T>
constexpr bool kHalf = false;
template <>
inline constexpr bool kHalf<f16> = true;
}  // namespace simt

template <class T, bool Transposed, int Tiles>
__forceinline__ void wgmma_m64k16(float (&d)[Tiles][4], uint64_t a_rows, uint64_t b_rows, bool add,
                                  simt::Site site = simt::here()) {
  static_assert(Tiles == 8 || Tiles == 10 || Tiles == 12 || Tiles == 16 || Tiles == 24, "as device/ptx.cuh has them");
  simt::Product args = {&d[0][0], nullptr, a_rows, b_rows, 8 * Tiles, add, Transposed, simt::kHalf<T>};
  simt::meet(simt::wgmma_issue, simt::kFullWarp, &args, site);
}
template <class T, bool Transposed, int Tiles>
__forceinline__ void wgmma_m64k16(float (&d)[Tiles][4], const uint32_t (&a)[4], uint64_t b_rows, bool add,
                                  simt::Site site = simt::here()) {
  static_assert(Tiles == 8 || Tiles == 10 || Tiles == 12 || Tiles == 16 || Tiles == 24, "as device/ptx.cuh has them");
  simt::Product args = {&d[0][0], a, 0, b_rows, 8 * Tiles, add, Transposed, simt::kHalf<T>};
  simt::meet(simt::wgmma_issue, simt::kFullWarp, &args, site);
}
