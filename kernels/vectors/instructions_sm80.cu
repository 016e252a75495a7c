// What the instructions of sm_80 do; instructions_sm90.cu says how and why.
#include "image.cuh"

namespace {

// 32 threads; a, b, d [32, 4], out [32, 4].
template <class T>
__device__ void mma(const VectorParams& p) {
  uint32_t a[4], b[2];
  load_registers(a, p.a);
  load_registers(b, p.b);
  float d[4];
  for (int i = 0; i < 4; i++) d[i] = load(address<float>(p.d) + 4 * threadIdx.x + i);
  mma_m16n8k16<T>(d, a, b);
  for (int i = 0; i < 4; i++) store(address<float>(p.out) + 4 * threadIdx.x + i, d[i]);
}

// 32 threads; image, b: each lane's row; out u32 [32, 4].
template <bool Transposed>
__device__ void ldmatrix(const VectorParams& p) {
  auto& image = shared_memory<Image<kSmallImage>>();
  fill(p, image);
  __syncthreads();
  const uint32_t row = shared_address(&image.data.data[0]) + load(address<uint32_t>(p.b) + threadIdx.x);
  uint32_t r[4];
  if constexpr (Transposed) {
    ldmatrix_x4_trans(r, row);
  } else {
    ldmatrix_x4(r, row);
  }
  for (int i = 0; i < 4; i++) store(address<uint32_t>(p.out) + 4 * threadIdx.x + i, r[i]);
}

}  // namespace

PF_KERNEL(vectors_mma_f16, VectorParams, 32) { mma<f16>(p); }
PF_KERNEL(vectors_mma_bf16, VectorParams, 32) { mma<bf16>(p); }
PF_KERNEL(vectors_ldmatrix, VectorParams, 32) { ldmatrix<false>(p); }
PF_KERNEL(vectors_ldmatrix_trans, VectorParams, 32) { ldmatrix<true>(p); }
