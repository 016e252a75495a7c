// The CPU build's kernel.cuh: the entry macro, addresses, shared memory. See kernels/device/kernel.cuh.
#pragma once

#include <params.h>
#include <stdint.h>

#include "../simt.h"
#include "builtins.cuh"
#include "cuda_bf16.h"
#include "cuda_fp16.h"

// Beside the body: an entry that takes the parameters as bytes, and the kernel's row of the table.
#define PF_KERNEL(name, Params, threads, ...)                                                    \
  static void simt_body_##name(const Params& p);                                                 \
  static void simt_entry_##name(const void* p) { simt_body_##name(*static_cast<const Params*>(p)); } \
  extern "C" const simt::Kernel simt_kernel_##name;                                              \
  const simt::Kernel simt_kernel_##name = {#name, sizeof(Params), threads, simt_entry_##name};   \
  static void simt_body_##name([[maybe_unused]] const Params& p)

using bf16 = __nv_bfloat16;
using f16 = __half;

template <class T>
__forceinline__ T* address(uint64_t a) {
  return reinterpret_cast<T*>(a);
}

template <class T>
__forceinline__ T load(const T* p, simt::Site site = simt::here()) {
  simt::check_global(p, sizeof(T), alignof(T), false, site);
  return *p;
}
template <class T>
__forceinline__ void store(T* p, T value, simt::Site site = simt::here()) {
  simt::check_global(p, sizeof(T), alignof(T), true, site);
  *p = value;
}

template <class T>
__forceinline__ void store_shared(T* p, T value, simt::Site site = simt::here()) {
  simt::generic_write(p, sizeof(T), site);
  *p = value;
}

template <class Plan>
__forceinline__ Plan& shared_memory(simt::Site site = simt::here()) {
  return *static_cast<Plan*>(simt::shared_plan(sizeof(Plan), alignof(Plan), site));
}

template <class T, int N>
struct Shared {
  T data[N];
  __forceinline__ T& operator[](int i) {
    check(i);
    return data[i];
  }
  __forceinline__ const T& operator[](int i) const {
    check(i);
    return data[i];
  }

 private:
  static __forceinline__ void check(int i) {
    simt::access_point();
    if (__builtin_expect(static_cast<unsigned>(i) >= static_cast<unsigned>(N), 0)) simt::bad_index(i, N, sizeof(T));
  }
};
