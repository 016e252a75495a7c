// What every kernel file starts with: the entry macro, addresses, shared memory.
//
// kernels/simt/shadow/ has a header of the same name for the CPU build; whatever stands here, stands
// there with the same meaning.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include <params.h>

// One kernel entry: `PF_KERNEL(name, Params, threads) { ... p ... }`, launched with at most
// `threads` threads a block. The arguments are one struct from params.h, named `p`.
//
// `PF_KERNEL(name, Params, threads, 1)` where a kernel has setmaxnreg: only with a minimum of blocks a
// multiprocessor is it sure how many registers a thread starts with, and ptxas drops every setmaxnreg
// where it is not. It is no default: ptxas then takes up to twice the registers where nothing asks for few.
#define PF_KERNEL(name, Params, ...) \
  extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(const __grid_constant__ Params p)

using bf16 = __nv_bfloat16;
using f16 = __half;

// A device address from params.h as a pointer.
template <class T>
__device__ __forceinline__ T* address(uint64_t a) {
  return reinterpret_cast<T*>(a);
}

// Global memory, one element or one aligned vector at a time. On the SIMT device these tell of
// misaligned and out-of-range accesses, so kernels touch global memory through nothing else.
template <class T>
__device__ __forceinline__ T load(const T* p) {
  return *p;
}
template <class T>
__device__ __forceinline__ void store(T* p, T value) {
  *p = value;
}

// Shared memory that the copy engine or wgmma reads is written so: the SIMT device then sees where a
// fence_proxy_async is missing.
template <class T>
__device__ __forceinline__ void store_shared(T* p, T value) {
  *p = value;
}

// The block's dynamic shared memory as the kernel's plan: a struct whose arrays are `Shared<T, N>`.
template <class Plan>
__device__ __forceinline__ Plan& shared_memory() {
  extern __shared__ __align__(1024) unsigned char shared_arena[];
  return *reinterpret_cast<Plan*>(shared_arena);
}

// An array in shared memory; the SIMT device checks every index.
template <class T, int N>
struct Shared {
  T data[N];
  __device__ __forceinline__ T& operator[](int i) { return data[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return data[i]; }
};
