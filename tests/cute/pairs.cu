// The instructions of device/ptx.cuh, each beside CUTLASS' function for the same: pairs.py compares what nvcc makes
// of the kernels ours_NAME and theirs_NAME.
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm80.hpp>
#include <cute/arch/copy_sm90.hpp>
#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm80.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/arch/mma_sm90_gmma_ext.hpp>
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>
#include <cutlass/numeric_conversion.h>

#include <kernel.cuh>
#include <mma.cuh>
#include <ptx.cuh>
#include <types.cuh>
#include <wgmma.cuh>

namespace gmma = cute::SM90::GMMA;
using gmma::Major;

// Ours and theirs are statements over the same parameters.
#define PAIR(name, parameters, ours, theirs)                             \
  extern "C" __global__ void ours_##name parameters { ours; }            \
  extern "C" __global__ void theirs_##name parameters { theirs; }

extern __shared__ __align__(1024) cute::uint128_t shared[];
__device__ uint32_t my_row() { return shared_address(&shared[threadIdx.x]); }

// -- wgmma --------------------------------------------------------------------------------------

// Accumulators come from memory and go there by number, which shows their order in the instruction.
template <int N, class Multiply>
__device__ void through_memory(float* memory, Multiply multiply) {
  float d[N / 8][4];
  for (int i = 0; i < N / 2; i++) d[i / 4][i % 4] = memory[128 * i + threadIdx.x];
  wgmma_fence();
  multiply(d);
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < N / 2; i++) memory[128 * i + threadIdx.x] = d[i / 4][i % 4];
}

// CUTLASS takes every register as an argument of its own.
template <class Op, class... A, size_t... I>
__device__ void spread(float* d, std::index_sequence<I...>, bool add, A... a) {
  Op::fma(a..., d[I]..., add ? gmma::ScaleOut::One : gmma::ScaleOut::Zero);
}

#define PRODUCT(n, T, TYPE, transposed, major)                                                                   \
  PAIR(wgmma_##n##_##T##_shared_##transposed, (float* m, uint64_t a, uint64_t b, int add),                       \
       through_memory<n>(m, [&](float(&d)[n / 8][4]) { wgmma_m64k16<T, transposed>(d, a, b, add != 0); }),       \
       through_memory<n>(m, [&](float(&d)[n / 8][4]) {                                                           \
         spread<gmma::MMA_64x##n##x16_F32##TYPE##TYPE##_SS<Major::K, major>>(                                    \
             d[0], std::make_index_sequence<n / 2>(), add != 0, a, b);                                           \
       }))                                                                                                       \
  PAIR(wgmma_##n##_##T##_registers_##transposed, (float* m, uint4 a, uint64_t b, int add),                       \
       through_memory<n>(m, [&](float(&d)[n / 8][4]) {                                                           \
         const uint32_t r[4] = {a.x, a.y, a.z, a.w};                                                             \
         wgmma_m64k16<T, transposed>(d, r, b, add != 0);                                                         \
       }),                                                                                                       \
       through_memory<n>(m, [&](float(&d)[n / 8][4]) {                                                           \
         spread<gmma::MMA_64x##n##x16_F32##TYPE##TYPE##_RS<Major::K, major>>(                                    \
             d[0], std::make_index_sequence<n / 2>(), add != 0, a.x, a.y, a.z, a.w, b);                          \
       }))
#define PRODUCTS(n)                         \
  PRODUCT(n, f16, F16, false, Major::K)     \
  PRODUCT(n, f16, F16, true, Major::MN)     \
  PRODUCT(n, bf16, BF16, false, Major::K)   \
  PRODUCT(n, bf16, BF16, true, Major::MN)
PRODUCTS(64)
PRODUCTS(80)
PRODUCTS(96)
PRODUCTS(128)
PRODUCTS(192)

PAIR(wgmma_wait_0, (), wgmma_fence(); wgmma_commit(); wgmma_wait<0>(),
     cute::warpgroup_arrive(); cute::warpgroup_commit_batch(); cute::warpgroup_wait<0>())
PAIR(wgmma_wait_1, (), wgmma_fence(); wgmma_commit(); wgmma_wait<1>(),
     cute::warpgroup_arrive(); cute::warpgroup_commit_batch(); cute::warpgroup_wait<1>())

extern "C" __global__ void __launch_bounds__(512, 1) ours_setmaxnreg() {
  setmaxnreg_inc<160>();
  setmaxnreg_dec<32>();
}
extern "C" __global__ void __launch_bounds__(512, 1) theirs_setmaxnreg() {
  cutlass::arch::warpgroup_reg_alloc<160>();
  cutlass::arch::warpgroup_reg_dealloc<32>();
}

// -- warps --------------------------------------------------------------------------------------

template <class T>
__device__ float4 our_mma(float4 c, uint4 a, uint2 b) {
  float d[4] = {c.x, c.y, c.z, c.w};
  const uint32_t left[4] = {a.x, a.y, a.z, a.w}, right[2] = {b.x, b.y};
  mma_m16n8k16<T>(d, left, right);
  return make_float4(d[0], d[1], d[2], d[3]);
}
template <class Op>
__device__ float4 their_mma(float4 c, uint4 a, uint2 b) {
  float4 d;
  Op::fma(d.x, d.y, d.z, d.w, a.x, a.y, a.z, a.w, b.x, b.y, c.x, c.y, c.z, c.w);
  return d;
}
PAIR(mma_f16, (float4* m, uint4 a, uint2 b), *m = our_mma<f16>(*m, a, b),
     *m = their_mma<cute::SM80_16x8x16_F32F16F16F32_TN>(*m, a, b))
PAIR(mma_bf16, (float4* m, uint4 a, uint2 b), *m = our_mma<bf16>(*m, a, b),
     *m = their_mma<cute::SM80_16x8x16_F32BF16BF16F32_TN>(*m, a, b))

__device__ void our_ldmatrix(uint4& m, void (*load)(uint32_t (&)[4], uint32_t)) {
  uint32_t r[4];
  load(r, my_row());
  m = make_uint4(r[0], r[1], r[2], r[3]);
}
template <class Op>
__device__ void their_ldmatrix(uint4& m) {
  uint4 r;
  Op::copy(shared[threadIdx.x], r.x, r.y, r.z, r.w);
  m = r;
}
PAIR(ldmatrix, (uint4* m), our_ldmatrix(m[threadIdx.x], ldmatrix_x4),
     their_ldmatrix<cute::SM75_U32x4_LDSM_N>(m[threadIdx.x]))
PAIR(ldmatrix_trans, (uint4* m), our_ldmatrix(m[threadIdx.x], ldmatrix_x4_trans),
     their_ldmatrix<cute::SM75_U16x8_LDSM_T>(m[threadIdx.x]))
__device__ void our_stmatrix(uint4 v) {
  const uint32_t r[4] = {v.x, v.y, v.z, v.w};
  stmatrix_x4(my_row(), r);
}
PAIR(stmatrix, (uint4 v), our_stmatrix(v),
     cute::SM90_U32x4_STSM_N::copy(v.x, v.y, v.z, v.w, shared[threadIdx.x]))

PAIR(cp_async, (const cute::uint128_t* p, bool valid), cp_async_16(my_row(), p + threadIdx.x, valid),
     cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>::copy(p[threadIdx.x], shared[threadIdx.x], valid))
PAIR(cp_async_commit, (), cp_async_commit(), cute::cp_async_fence())
PAIR(cp_async_wait_0, (), cp_async_wait<0>(), cute::cp_async_wait<0>())
PAIR(cp_async_wait_1, (), cp_async_wait<1>(), cute::cp_async_wait<1>())

// The first of two numbers stands in the register's low half.
template <class T>
__device__ uint32_t their_pack(float x, float y) {
  cutlass::Array<float, 2> from;
  from[0] = x;
  from[1] = y;
  const auto to = cutlass::NumericArrayConverter<T, float, 2>()(from);
  return *reinterpret_cast<const uint32_t*>(&to);
}
PAIR(pack_f16, (uint32_t* m, float x, float y), *m = pack<f16>(x, y), *m = their_pack<cutlass::half_t>(x, y))
PAIR(pack_bf16, (uint32_t* m, float x, float y), *m = pack<bf16>(x, y), *m = their_pack<cutlass::bfloat16_t>(x, y))

// -- barriers and the copy engine ---------------------------------------------------------------

using Barrier = cutlass::arch::ClusterTransactionBarrier;
using Named = cutlass::arch::ReservedNamedBarriers;  // whose ids CUTLASS takes as they are
__device__ uint64_t* my_barrier() { return reinterpret_cast<uint64_t*>(shared) + threadIdx.x; }
__device__ uint32_t my_barrier_address() { return shared_address(my_barrier()); }

PAIR(mbarrier_init, (int n), mbarrier_init(my_barrier_address(), n), Barrier::init(my_barrier(), n))
PAIR(mbarrier_arrive, (), mbarrier_arrive(my_barrier_address()), Barrier::arrive(my_barrier()))
PAIR(mbarrier_arrive_expect_tx, (int n), mbarrier_arrive_expect_tx(my_barrier_address(), n),
     Barrier::arrive_and_expect_tx(my_barrier(), n))
PAIR(mbarrier_try_wait, (int* m, uint32_t parity), *m = mbarrier_try_wait(my_barrier_address(), parity),
     *m = Barrier::try_wait(my_barrier(), parity))
PAIR(fence_mbarrier_init, (), fence_mbarrier_init(), cutlass::arch::fence_barrier_init())
PAIR(fence_proxy_async, (), fence_proxy_async(), cutlass::arch::fence_view_async_shared())
PAIR(bar_sync, (int id, int n), bar_sync(id, n), cutlass::arch::NamedBarrier::sync(n, Named(id)))
PAIR(bar_arrive, (int id, int n), bar_arrive(id, n), cutlass::arch::NamedBarrier::arrive(n, Named(id)))
PAIR(tma_load_4d, (const __grid_constant__ TensorMap map, int4 c),
     tma_load_4d(shared_address(&shared[64]), &map, shared_address(&shared[8]), c.x, c.y, c.z, c.w),
     cute::SM90_TMA_LOAD_4D::copy(&map, reinterpret_cast<uint64_t*>(&shared[8]), 0, &shared[64], c.x, c.y, c.z, c.w))
PAIR(tma_prefetch, (const __grid_constant__ TensorMap map), tma_prefetch(&map),
     cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(&map)))
