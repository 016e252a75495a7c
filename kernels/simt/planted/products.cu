// Planted bugs: wgmma. 128 threads, n = 128 numbers below 100 in turn: a tile of 64 rows of 64 columns holds
// in[r] % 100 in row r, and is multiplied by a matrix with 1 in row 0, so out[r] = in[r] % 100 for the 64 rows,
// twice: out[64 + r], too. What is overwritten too early is so under eight products, so that not all of them
// are through by chance.
#include <kernel.cuh>
#include <ptx.cuh>
#include <types.cuh>
#include <wgmma.cuh>

#include "planted.h"

namespace {

constexpr int kRows = 64;

struct Plan {
  Panels16<f16, kRows, kPanel> a, b;
};

struct Operands {
  uint32_t a, b;
};

// A: row r holds in[r] % 100 in every column. B: 64 columns along k, 1 where k is 0.
__device__ Operands fill(const PlantedParams& p, Plan& plan, bool fence = true) {
  for (int i = threadIdx.x; i < kRows * 8; i += 128) {
    const int row = i / 8, chunk = i % 8;
    Vec<f16, 8> a, b;
    for (int j = 0; j < 8; ++j) {
      a[j] = from_float<f16>(static_cast<float>(load(address<int>(p.in) + row) % 100));
      b[j] = from_float<f16>(chunk == 0 && j == 0 ? 1.0f : 0.0f);
    }
    const uint32_t at = panel_offset<kRows>(row, chunk) / 2;
    store_shared(reinterpret_cast<Vec<f16, 8>*>(&plan.a.data[at]), a);
    store_shared(reinterpret_cast<Vec<f16, 8>*>(&plan.b.data[at]), b);
  }
  if (fence) fence_proxy_async();
  __syncthreads();
  return {shared_address(&plan.a.data[0]), shared_address(&plan.b.data[0])};
}

__device__ void write_out(const PlantedParams& p, const float (&d)[8][4], int half) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int r = 0; r < 2; ++r)
    if (lane % 4 == 0) store(address<int>(p.out) + 64 * half + 16 * warp + lane / 4 + 8 * r, static_cast<int>(d[0][2 * r]));
}

__device__ void multiply(float (&d)[8][4], const Operands& x, bool add = false) {
  wgmma_m64k16<f16, false>(d, rows_descriptor(x.a), rows_descriptor(x.b), add);
}

__device__ void both(const PlantedParams& p, const float (&d)[8][4]) {
  write_out(p, d, 0);
  write_out(p, d, 1);
}

// Bug: what threads wrote is not ordered before what wgmma reads.
template <bool Fixed>
__device__ void missing_proxy_fence(const PlantedParams& p) {
  const Operands x = fill(p, shared_memory<Plan>(), Fixed);
  float d[8][4] = {};
  wgmma_fence();
  multiply(d, x);
  wgmma_commit();
  wgmma_wait<0>();
  both(p, d);
}

// Bug: registers are used without a fence since the threads had them.
template <bool Fixed>
__device__ void missing_wgmma_fence(const PlantedParams& p) {
  const Operands x = fill(p, shared_memory<Plan>());
  float d[8][4] = {};
  wgmma_fence();
  multiply(d, x);
  wgmma_commit();
  wgmma_wait<0>();
  write_out(p, d, 0);
  if (Fixed) wgmma_fence();
  multiply(d, x);
  wgmma_commit();
  wgmma_wait<0>();
  write_out(p, d, 1);
}

// Bug: accumulators are read before the wait.
template <bool Fixed>
__device__ void early_read(const PlantedParams& p) {
  const Operands x = fill(p, shared_memory<Plan>());
  float d[8][4] = {};
  wgmma_fence();
  multiply(d, x);
  wgmma_commit();
  if (Fixed) wgmma_wait<0>();
  write_out(p, d, 0);
  if (!Fixed) wgmma_wait<0>();
  write_out(p, d, 1);
}

// Bug: accumulators are written before the wait.
template <bool Fixed>
__device__ void early_write(const PlantedParams& p) {
  const Operands x = fill(p, shared_memory<Plan>());
  float d[8][4] = {};
  wgmma_fence();
  multiply(d, x);
  wgmma_commit();
  if (Fixed) wgmma_wait<0>();
  for (int n = 1; n < 8; ++n) d[n][0] = 0.0f;
  if (!Fixed) wgmma_wait<0>();
  both(p, d);
}

// Bug: the left operand's registers are written before the wait. Every row of A is the warp's first.
template <bool Fixed>
__device__ void operand_overwritten(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  const Operands x = fill(p, plan);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t a[4];
  ldmatrix_x4(a, x.a + panel_offset<kRows>(16 * warp + lane % 16, lane / 16));
  float d[8][4] = {};
  wgmma_fence();
  for (int i = 0; i < 8; ++i) wgmma_m64k16<f16, false>(d, a, rows_descriptor(x.b), false);
  wgmma_commit();
  if (Fixed) wgmma_wait<0>();
  for (int i = 0; i < 4; ++i) a[i] = 0;
  wgmma_wait<0>();
  both(p, d);
}

// Bug: the left operand's registers are written after the fence.
template <bool Fixed>
__device__ void operand_after_fence(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  const Operands x = fill(p, plan);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t a[4] = {};
  float d[8][4] = {};
  if (!Fixed) wgmma_fence();
  ldmatrix_x4(a, x.a + panel_offset<kRows>(16 * warp + lane % 16, lane / 16));
  if (Fixed) wgmma_fence();
  wgmma_m64k16<f16, false>(d, a, rows_descriptor(x.b), false);
  wgmma_commit();
  wgmma_wait<0>();
  both(p, d);
}

// Bug: an operand in shared memory is written before the wait.
template <bool Fixed>
__device__ void tile_overwritten(const PlantedParams& p) {
  Plan& plan = shared_memory<Plan>();
  const Operands x = fill(p, plan);
  float d[8][4] = {};
  wgmma_fence();
  for (int i = 0; i < 8; ++i) multiply(d, x);
  wgmma_commit();
  if (Fixed) {
    wgmma_wait<0>();
    __syncthreads();
  }
  for (int i = threadIdx.x; i < kRows * 8; i += 128) {
    store_shared(reinterpret_cast<Vec<f16, 8>*>(&plan.b.data[8 * i]), Vec<f16, 8>{});
  }
  fence_proxy_async();
  wgmma_wait<0>();
  both(p, d);
}

// Bug: the descriptor names the tile's second row as its first.
template <bool Fixed>
__device__ void descriptor_row(const PlantedParams& p) {
  Operands x = fill(p, shared_memory<Plan>());
  if (!Fixed) x.a += kPanelRowBytes;
  float d[8][4] = {};
  wgmma_fence();
  multiply(d, x);
  wgmma_commit();
  wgmma_wait<0>();
  both(p, d);
}

// Bug: the descriptor's stride offset is half of what it is.
template <bool Fixed>
__device__ void descriptor_stride(const PlantedParams& p) {
  const Operands x = fill(p, shared_memory<Plan>());
  float d[8][4] = {};
  wgmma_fence();
  wgmma_m64k16<f16, false>(d, matrix_descriptor(x.a, 16, Fixed ? 1024 : 512, Swizzle::k128), rows_descriptor(x.b), false);
  wgmma_commit();
  wgmma_wait<0>();
  both(p, d);
}

// Bug: no group holds the product that is waited for.
template <bool Fixed>
__device__ void uncommitted(const PlantedParams& p) {
  const Operands x = fill(p, shared_memory<Plan>());
  float d[8][4] = {};
  wgmma_fence();
  multiply(d, x);
  if (Fixed) wgmma_commit();
  wgmma_wait<0>();
  both(p, d);
}

// Bug: one warp multiplies by something else.
template <bool Fixed>
__device__ void warps_disagree(const PlantedParams& p) {
  Operands x = fill(p, shared_memory<Plan>());
  if (!Fixed && threadIdx.x >= 96) x.b = x.a;
  float d[8][4] = {};
  wgmma_fence();
  multiply(d, x);
  wgmma_commit();
  wgmma_wait<0>();
  both(p, d);
}

// Bug: rows to store to are not where stmatrix can.
template <bool Fixed>
__device__ void stmatrix_row(const PlantedParams& p) {
  const Operands x = fill(p, shared_memory<Plan>());
  float d[8][4] = {};
  wgmma_fence();
  multiply(d, x);
  wgmma_commit();
  wgmma_wait<0>();
  __syncthreads();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t zeros[4] = {};
  stmatrix_x4(x.a + panel_offset<kRows>(16 * warp + lane % 16, lane / 16) + (Fixed ? 0 : 8), zeros);
  both(p, d);
}

}  // namespace

// clang-format off
PF_KERNEL(planted_missing_proxy_fence, PlantedParams, 128) { missing_proxy_fence<false>(p); }
PF_KERNEL(planted_missing_proxy_fence_fixed, PlantedParams, 128) { missing_proxy_fence<true>(p); }
PF_KERNEL(planted_missing_wgmma_fence, PlantedParams, 128) { missing_wgmma_fence<false>(p); }
PF_KERNEL(planted_missing_wgmma_fence_fixed, PlantedParams, 128) { missing_wgmma_fence<true>(p); }
PF_KERNEL(planted_early_read, PlantedParams, 128) { early_read<false>(p); }
PF_KERNEL(planted_early_read_fixed, PlantedParams, 128) { early_read<true>(p); }
PF_KERNEL(planted_early_write, PlantedParams, 128) { early_write<false>(p); }
PF_KERNEL(planted_early_write_fixed, PlantedParams, 128) { early_write<true>(p); }
PF_KERNEL(planted_operand_overwritten, PlantedParams, 128) { operand_overwritten<false>(p); }
PF_KERNEL(planted_operand_overwritten_fixed, PlantedParams, 128) { operand_overwritten<true>(p); }
PF_KERNEL(planted_operand_after_fence, PlantedParams, 128) { operand_after_fence<false>(p); }
PF_KERNEL(planted_operand_after_fence_fixed, PlantedParams, 128) { operand_after_fence<true>(p); }
PF_KERNEL(planted_tile_overwritten, PlantedParams, 128) { tile_overwritten<false>(p); }
PF_KERNEL(planted_tile_overwritten_fixed, PlantedParams, 128) { tile_overwritten<true>(p); }
PF_KERNEL(planted_descriptor_row, PlantedParams, 128) { descriptor_row<false>(p); }
PF_KERNEL(planted_descriptor_row_fixed, PlantedParams, 128) { descriptor_row<true>(p); }
PF_KERNEL(planted_descriptor_stride, PlantedParams, 128) { descriptor_stride<false>(p); }
PF_KERNEL(planted_descriptor_stride_fixed, PlantedParams, 128) { descriptor_stride<true>(p); }
PF_KERNEL(planted_uncommitted, PlantedParams, 128) { uncommitted<false>(p); }
PF_KERNEL(planted_uncommitted_fixed, PlantedParams, 128) { uncommitted<true>(p); }
PF_KERNEL(planted_warps_disagree, PlantedParams, 128) { warps_disagree<false>(p); }
PF_KERNEL(planted_warps_disagree_fixed, PlantedParams, 128) { warps_disagree<true>(p); }
PF_KERNEL(planted_stmatrix_row, PlantedParams, 128) { stmatrix_row<false>(p); }
PF_KERNEL(planted_stmatrix_row_fixed, PlantedParams, 128) { stmatrix_row<true>(p); }
