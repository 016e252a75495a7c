// What the kernels of single instructions share: shared memory that is filled, and registers.
#pragma once

#include <kernel.cuh>
#include <ptx.cuh>
#include <types.cuh>

#include "vectors.h"

namespace {

// 16-bit elements of shared memory.
constexpr int kImage = 30 * 1024;
constexpr int kSmallImage = 2048;

template <int N>
struct Image {
  alignas(1024) Shared<uint16_t, N> data;
  Shared<uint64_t, 1> landed;
};

// Fills shared memory with p.image.
template <int N>
__device__ void fill(const VectorParams& p, Image<N>& image) {
  for (int i = threadIdx.x; i < p.image_bytes / 16; i += blockDim.x) {
    const Vec<uint32_t, 4> chunk = load_vec<4>(address<uint32_t>(p.image) + 4 * i);
    store_shared(reinterpret_cast<Vec<uint32_t, 4>*>(&image.data.data[8 * i]), chunk);
  }
}

// What shared memory holds now, to p.out.
template <int N>
__device__ void write_out(const VectorParams& p, Image<N>& image) {
  for (int i = threadIdx.x; i < p.image_bytes / 2; i += blockDim.x) store(address<uint16_t>(p.out) + i, image.data[i]);
}

template <int N>
__device__ void load_registers(uint32_t (&r)[N], uint64_t from) {
  for (int i = 0; i < N; i++) r[i] = load(address<uint32_t>(from) + N * threadIdx.x + i);
}

}  // namespace
