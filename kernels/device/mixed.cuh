// Rows of elements whose dtype is known at run time: the branch is the same for all threads of a launch.
#pragma once

#include <types.cuh>

// A run of elements in one row of [outer, frames, inner].
struct Place {
  int64_t outer, frame, inner;
};

// N neighbours, widened. Vectors are of 16 bytes at most.
template <int N, class T>
__device__ __forceinline__ void read_as(uint64_t base, int64_t at, float* x) {
  constexpr int kWide = N < kLane16<T> ? N : kLane16<T>;
  const T* p = address<const T>(base) + at;
#pragma unroll
  for (int i = 0; i < N; i += kWide) {
    Vec<T, kWide> v = load_vec<kWide>(p + i);
#pragma unroll
    for (int l = 0; l < kWide; ++l) x[i + l] = to_float(v[l]);
  }
}

template <int N, class T>
__device__ __forceinline__ void write_as(uint64_t base, int64_t at, const float* x) {
  constexpr int kWide = N < kLane16<T> ? N : kLane16<T>;
  T* p = address<T>(base) + at;
#pragma unroll
  for (int i = 0; i < N; i += kWide) {
    Vec<T, kWide> v;
#pragma unroll
    for (int l = 0; l < kWide; ++l) v[l] = from_float<T>(x[i + l]);
    store_vec(p + i, v);
  }
}

template <int N>
__device__ __forceinline__ void read(uint64_t base, const int64_t (&strides)[2], int dtype, Place at, float* x) {
  int64_t offset = at.outer * strides[0] + at.frame * strides[1] + at.inner;
  if (dtype == PF_DTYPE_F32) {
    read_as<N, float>(base, offset, x);
  } else if (dtype == PF_DTYPE_F16) {
    read_as<N, f16>(base, offset, x);
  } else {
    read_as<N, bf16>(base, offset, x);
  }
}

template <int N>
__device__ __forceinline__ void write(uint64_t base, const int64_t (&strides)[2], int dtype, Place at, const float* x) {
  int64_t offset = at.outer * strides[0] + at.frame * strides[1] + at.inner;
  if (dtype == PF_DTYPE_F32) {
    write_as<N, float>(base, offset, x);
  } else if (dtype == PF_DTYPE_F16) {
    write_as<N, f16>(base, offset, x);
  } else {
    write_as<N, bf16>(base, offset, x);
  }
}
