// What single instructions do: the layouts that all other kernels build on. src/device/vectors/ runs this.
//
// A kernel puts given numbers into registers and shared memory, executes one instruction, and writes out what
// it left. It knows nothing of where an element belongs: inputs are raw registers and raw shared memory, and so
// are outputs. Run by a card, the outputs say what the SIMT device must reproduce.
#include <wgmma.cuh>

#include "image.cuh"

namespace {

// Fills shared memory for the copy engine and for products.
template <int N>
__device__ void fill_for_engine(const VectorParams& p, Image<N>& image) {
  fill(p, image);
  fence_proxy_async();
}

// 32 threads; image, a, b: each lane's row; out: shared memory.
__device__ void stmatrix(const VectorParams& p) {
  auto& image = shared_memory<Image<kSmallImage>>();
  fill(p, image);
  __syncthreads();
  uint32_t r[4];
  load_registers(r, p.a);
  stmatrix_x4(shared_address(&image.data.data[0]) + load(address<uint32_t>(p.b) + threadIdx.x), r);
  __syncthreads();
  write_out(p, image);
}

// 128 threads; map, image, at, box_start, box_bytes; out: shared memory.
__device__ void tma(const VectorParams& p) {
  auto& image = shared_memory<Image<kSmallImage>>();
  const uint32_t landed = shared_address(&image.landed[0]);
  fill_for_engine(p, image);
  if (threadIdx.x == 0) {
    mbarrier_init(landed, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(landed, p.box_bytes);
    tma_load_4d(shared_address(&image.data.data[0]) + p.box_start, &p.map, landed, p.at[0], p.at[1], p.at[2], p.at[3]);
  }
  while (!mbarrier_try_wait(landed, 0)) {
  }
  write_out(p, image);
}

__device__ uint64_t descriptor(const VectorOperand& x, uint32_t image) {
  return matrix_descriptor(image + x.start, x.leading, x.stride, static_cast<Swizzle>(x.swizzle));
}

template <class T, int Columns, bool Registers, bool Transposed>
__device__ void multiply(const VectorParams& p, uint32_t image) {
  constexpr int kElements = Columns / 2;
  const int first = kElements * static_cast<int>(threadIdx.x);
  float d[Columns / 8][4];
#pragma unroll
  for (int i = 0; i < kElements; i++) d[i / 4][i % 4] = load(address<float>(p.d) + first + i);
  uint32_t a[4] = {};
  if constexpr (Registers) load_registers(a, p.a);
  const uint64_t a_rows = descriptor(p.a_rows, image), b_rows = descriptor(p.b_rows, image);
  wgmma_hold(d);
  wgmma_fence();
  if constexpr (Registers) {
    wgmma_m64k16<T, Transposed>(d, a, b_rows, p.add != 0);
  } else {
    wgmma_m64k16<T, Transposed>(d, a_rows, b_rows, p.add != 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(d);
#pragma unroll
  for (int i = 0; i < kElements; i++) store(address<float>(p.out) + first + i, d[i / 4][i % 4]);
}

// 128 threads; image, a_rows or a, b_rows, d and out [128, Columns / 2], add, transposed, registers.
template <class T, int Columns>
__device__ void wgmma(const VectorParams& p) {
  auto& image = shared_memory<Image<kImage>>();
  fill_for_engine(p, image);
  __syncthreads();
  const uint32_t start = shared_address(&image.data.data[0]);
  if (p.registers != 0) {
    if (p.transposed != 0) {
      multiply<T, Columns, true, true>(p, start);
    } else {
      multiply<T, Columns, true, false>(p, start);
    }
  } else if (p.transposed != 0) {
    multiply<T, Columns, false, true>(p, start);
  } else {
    multiply<T, Columns, false, false>(p, start);
  }
}

}  // namespace

PF_KERNEL(vectors_stmatrix, VectorParams, 32) { stmatrix(p); }
PF_KERNEL(vectors_tma, VectorParams, 128) { tma(p); }
PF_KERNEL(vectors_wgmma_64_f16, VectorParams, 128) { wgmma<f16, 64>(p); }
PF_KERNEL(vectors_wgmma_80_f16, VectorParams, 128) { wgmma<f16, 80>(p); }
PF_KERNEL(vectors_wgmma_96_f16, VectorParams, 128) { wgmma<f16, 96>(p); }
PF_KERNEL(vectors_wgmma_128_f16, VectorParams, 128) { wgmma<f16, 128>(p); }
PF_KERNEL(vectors_wgmma_192_f16, VectorParams, 128) { wgmma<f16, 192>(p); }
PF_KERNEL(vectors_wgmma_64_bf16, VectorParams, 128) { wgmma<bf16, 64>(p); }
PF_KERNEL(vectors_wgmma_80_bf16, VectorParams, 128) { wgmma<bf16, 80>(p); }
PF_KERNEL(vectors_wgmma_96_bf16, VectorParams, 128) { wgmma<bf16, 96>(p); }
PF_KERNEL(vectors_wgmma_128_bf16, VectorParams, 128) { wgmma<bf16, 128>(p); }
PF_KERNEL(vectors_wgmma_192_bf16, VectorParams, 128) { wgmma<bf16, 192>(p); }
