// The only file with inline PTX. One function an instruction, named after it.
//
// kernels/simt/shadow/ptx.cuh has the same functions for the CPU build.
#pragma once

#include <kernel.cuh>

// A shared-memory address as PTX wants it: 32 bits, counted from the window's start.
template <class T>
__device__ __forceinline__ uint32_t shared_address(const T* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Copies 16 bytes global -> shared, asynchronously, past L1. Where `valid` is false the source is
// not read and the destination becomes zero.
__device__ __forceinline__ void cp_async_16(uint32_t to_shared, const void* from_global, bool valid = true) {
  int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to_shared), "l"(from_global), "r"(bytes)
               : "memory");
}

// Closes the calling thread's group of copies.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `Pending` of the thread's newest groups are under way.
template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Four 8x8 matrices of 16-bit elements: lane l names row l % 8 of matrix l / 8, and gets of each
// matrix the two elements (row l / 4, columns 2 (l % 4), +1).
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// d += a b, 16x8 += 16x16 16x8, f32 accumulators. With g = lane / 4 and t = lane % 4:
//   a[0] = A[g][2t, 2t+1]   a[1] = A[g+8][2t, 2t+1]   a[2] = A[g][2t+8, 2t+9]   a[3] = A[g+8][2t+8, 2t+9]
//   b[0] = B[2t, 2t+1][g]   b[1] = B[2t+8, 2t+9][g]
//   d[0], d[1] = D[g][2t, 2t+1]   d[2], d[3] = D[g+8][2t, 2t+1]
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma_m16n8k16<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void mma_m16n8k16<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// 2^x by the special-function unit; 0 for -inf.
__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// A barrier of `threads` threads (a multiple of 32) under an id of 1 to 15; __syncthreads() is 0.
__device__ __forceinline__ void bar_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void bar_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// -- mbarriers (sm_90) --------------------------------------------------------------------------
// Eight bytes of shared memory that count arrivals, and bytes of copies that are to land. When both
// counts are through, the phase ends and the next begins with the same number of arrivals. Phases are
// told apart by their parity; the first has 0.

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Shows initialised barriers to the copy engine. Other threads want a barrier as well.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and lets the phase wait for so many bytes more.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Whether the phase of this parity has ended; may wait for it a while.
__device__ __forceinline__ bool mbarrier_try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t ended;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(ended)
      : "r"(barrier), "r"(parity)
      : "memory");
  return ended != 0;
}

// -- the copy engine (sm_90) --------------------------------------------------------------------

// Copies the map's box at these coordinates, innermost first, into shared memory: elements outside of
// the tensor become zero. The bytes of the whole box count for the barrier when they have landed.
__device__ __forceinline__ void tma_load_4d(uint32_t to_shared, const TensorMap* map, uint32_t barrier, int c0, int c1,
                                            int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(to_shared),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}
__device__ __forceinline__ void tma_prefetch(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// What the thread wrote to shared memory so far comes before what the copy engine and wgmma do to it
// after the next barrier.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Four 8x8 matrices of 16-bit elements from the layout that ldmatrix_x4 gives: lane l names row l % 8
// of matrix l / 8.
__device__ __forceinline__ void stmatrix_x4(uint32_t row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3])
               : "memory");
}

// -- registers of a warpgroup (sm_90a) ----------------------------------------------------------

template <int Registers>
__device__ __forceinline__ void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ __forceinline__ void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}

// -- wgmma (sm_90a) -----------------------------------------------------------------------------
// A warpgroup multiplies: d (+)= a b with d 64 x N in f32, a 64 x 16, b 16 x N. It runs on while the
// threads do; until the wait, d and an `a` in registers belong to it. Warp w of the group has rows
// 16 w to 16 w + 15, and its registers lie as those of mma_m16n8k16: d[n] is the n-th 16 x 8.
// Operands in shared memory are told by descriptors (wgmma.cuh).

// Before the first product, and between any use of its registers and the next.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `Pending` of the newest groups are under way.
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
// Keeps the compiler from moving a use of these registers past this place.
template <int N>
__device__ __forceinline__ void wgmma_hold(float (&d)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; n++) asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}

// The registers of d: as operands, and by number.
#define PF_D1(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define PF_D4(n) PF_D1(n), PF_D1(n + 1), PF_D1(n + 2), PF_D1(n + 3)
#define PF_D64 PF_D4(0), PF_D4(4)
#define PF_D80 PF_D64, PF_D1(8), PF_D1(9)
#define PF_D96 PF_D64, PF_D4(8)
#define PF_D128 PF_D96, PF_D4(12)
#define PF_D192 PF_D128, PF_D4(16), PF_D4(20)
#define PF_R64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PF_R80 \
  PF_R64 ", " \
  "%32, %33, %34, %35, %36, %37, %38, %39"
#define PF_R96 \
  PF_R80 ", " \
  "%40, %41, %42, %43, %44, %45, %46, %47"
#define PF_R128 \
  PF_R96 ", " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PF_R192 \
  PF_R128 ", " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"

#define PF_WGMMA(type, columns, a, b, add_to, transposed, ...)                                                    \
  asm volatile("{\n"                                                                                              \
               ".reg .pred p;\n"                                                                                  \
               "setp.ne.b32 p, " add_to ", 0;\n"                                                                  \
               "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" PF_R##columns "}, " a   \
               ", " b ", p, 1, 1, " transposed ";\n"                                                              \
               "}"                                                                                                \
               : PF_D##columns                                                                                    \
               : __VA_ARGS__, "l"(b_rows), "r"(static_cast<int>(add)), "n"(static_cast<int>(Transposed))          \
               : "memory")

// For d of `columns`: a in shared memory, then a in registers. x0 and on are the numbers of the operands
// behind d's registers.
#define PF_WGMMA_OF(columns, x0, x1, x2, x3, x4, x5, x6)                                                          \
  template <class T, bool Transposed>                                                                             \
  __device__ __forceinline__ void wgmma_m64k16(float (&d)[columns / 8][4], uint64_t a_rows, uint64_t b_rows,      \
                                               bool add) {                                                        \
    if constexpr (kIsHalf<T>) {                                                                                   \
      PF_WGMMA("f16", columns, x0, x1, x2, "0, " x3, "l"(a_rows));                                                \
    } else {                                                                                                      \
      PF_WGMMA("bf16", columns, x0, x1, x2, "0, " x3, "l"(a_rows));                                               \
    }                                                                                                             \
  }                                                                                                               \
  template <class T, bool Transposed>                                                                             \
  __device__ __forceinline__ void wgmma_m64k16(float (&d)[columns / 8][4], const uint32_t (&a)[4],                \
                                               uint64_t b_rows, bool add) {                                       \
    if constexpr (kIsHalf<T>) {                                                                                   \
      PF_WGMMA("f16", columns, "{" x0 ", " x1 ", " x2 ", " x3 "}", x4, x5, x6, "r"(a[0]), "r"(a[1]), "r"(a[2]),   \
               "r"(a[3]));                                                                                        \
    } else {                                                                                                      \
      PF_WGMMA("bf16", columns, "{" x0 ", " x1 ", " x2 ", " x3 "}", x4, x5, x6, "r"(a[0]), "r"(a[1]), "r"(a[2]),  \
               "r"(a[3]));                                                                                        \
    }                                                                                                             \
  }
template <class T>
constexpr bool kIsHalf = false;
template <>
inline constexpr bool kIsHalf<f16> = true;
PF_WGMMA_OF(64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
PF_WGMMA_OF(80, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
PF_WGMMA_OF(96, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
PF_WGMMA_OF(128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
PF_WGMMA_OF(192, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
#undef PF_WGMMA_OF
#undef PF_WGMMA
