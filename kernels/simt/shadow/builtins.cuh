// What nvcc knows without an #include: qualifiers, indices, synchronisation, warps, atomics, math.
//
// A parameter `site` that CUDA's function lacks is the line of the call, for reports.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../device.h"

#define __device__
#define __host__
#define __global__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))

#define threadIdx (::simt::context.thread_index)
#define blockIdx (::simt::context.block_index)
#define blockDim (::simt::context.block_dim)
#define gridDim (::simt::context.grid_dim)
constexpr int warpSize = 32;

// -- synchronisation ----------------------------------------------------------------------------

inline void __syncthreads(simt::Site site = simt::here()) {
  simt::barrier("__syncthreads", 0, static_cast<int>(blockDim.x), true, false, site);
}
inline int __syncthreads_count(int predicate, simt::Site site = simt::here()) {
  return simt::barrier("__syncthreads_count", 0, static_cast<int>(blockDim.x), true, predicate != 0, site);
}
inline int __syncthreads_or(int predicate, simt::Site site = simt::here()) {
  return simt::barrier("__syncthreads_or", 0, static_cast<int>(blockDim.x), true, predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, simt::Site site = simt::here()) {
  return simt::barrier("__syncthreads_and", 0, static_cast<int>(blockDim.x), true, predicate != 0, site) ==
         static_cast<int>(blockDim.x);
}
inline void __syncwarp(unsigned mask = simt::kFullWarp, simt::Site site = simt::here()) {
  simt::meet(simt::sync_warp, mask, nullptr, site);
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __nanosleep(unsigned) { simt::preempt(); }
[[noreturn]] inline void __trap(simt::Site site = simt::here()) { simt::fail(site, "__trap"); }

// -- warps --------------------------------------------------------------------------------------

namespace simt {
template <class T>
inline T shuffle_value(const Operation& operation, uint32_t mask, T value, int source, int width, Site site) {
  static_assert(sizeof(T) <= 8 && __is_trivially_copyable(T), "a shuffle moves up to 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = shuffle(operation, mask, bits, source, width, site);
  memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}
inline uint32_t vote(const Operation& operation, uint32_t mask, bool predicate, Site site) {
  Vote args = {predicate, 0};
  meet(operation, mask, &args, site);
  return args.out;
}
inline uint32_t reduce(const Operation& operation, uint32_t mask, uint32_t value, Site site) {
  Reduction args = {value};
  meet(operation, mask, &args, site);
  return args.value;
}
}  // namespace simt

template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize, simt::Site site = simt::here()) {
  return simt::shuffle_value(simt::shuffle_idx, mask, value, lane, width, site);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, simt::Site site = simt::here()) {
  return simt::shuffle_value(simt::shuffle_up, mask, value, static_cast<int>(delta), width, site);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                          simt::Site site = simt::here()) {
  return simt::shuffle_value(simt::shuffle_down, mask, value, static_cast<int>(delta), width, site);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize, simt::Site site = simt::here()) {
  return simt::shuffle_value(simt::shuffle_xor, mask, value, lanes, width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Site site = simt::here()) {
  return simt::vote(simt::vote_ballot, mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, simt::Site site = simt::here()) {
  return simt::vote(simt::vote_any, mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, simt::Site site = simt::here()) {
  return simt::vote(simt::vote_all, mask, predicate != 0, site) == mask;
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned x, simt::Site site = simt::here()) {
  return simt::reduce(simt::reduce_add, mask, x, site);
}
inline int __reduce_add_sync(unsigned mask, int x, simt::Site site = simt::here()) {
  return static_cast<int>(simt::reduce(simt::reduce_add, mask, static_cast<unsigned>(x), site));
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned x, simt::Site site = simt::here()) {
  return simt::reduce(simt::reduce_and, mask, x, site);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned x, simt::Site site = simt::here()) {
  return simt::reduce(simt::reduce_or, mask, x, site);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned x, simt::Site site = simt::here()) {
  return simt::reduce(simt::reduce_xor, mask, x, site);
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned x, simt::Site site = simt::here()) {
  return simt::reduce(simt::reduce_min_unsigned, mask, x, site);
}
inline int __reduce_min_sync(unsigned mask, int x, simt::Site site = simt::here()) {
  return static_cast<int>(simt::reduce(simt::reduce_min_signed, mask, static_cast<unsigned>(x), site));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned x, simt::Site site = simt::here()) {
  return simt::reduce(simt::reduce_max_unsigned, mask, x, site);
}
inline int __reduce_max_sync(unsigned mask, int x, simt::Site site = simt::here()) {
  return static_cast<int>(simt::reduce(simt::reduce_max_signed, mask, static_cast<unsigned>(x), site));
}

// -- atomics ------------------------------------------------------------------------------------
// Blocks run on several OS threads, so these really are atomic. Like CUDA's they order nothing else.

namespace simt {
template <class T>
struct Same {
  using type = T;
};
template <class T>
using SameT = typename Same<T>::type;  // keeps an argument out of deduction, so that it converts

template <int Bytes>
struct Word;
template <>
struct Word<2> {
  using type = uint16_t;
};
template <>
struct Word<4> {
  using type = uint32_t;
};
template <>
struct Word<8> {
  using type = uint64_t;
};

// *p = change(*p) as one step; what was there before.
template <class T, class Change>
inline T atomic_update(T* p, Site site, Change change) {
  check_generic(p, sizeof(T), site);
  using W = typename Word<sizeof(T)>::type;
  W* word = reinterpret_cast<W*>(p);
  W before = __atomic_load_n(word, __ATOMIC_RELAXED);
  for (;;) {
    T value;
    memcpy(&value, &before, sizeof(T));
    T changed = change(value);
    W after;
    memcpy(&after, &changed, sizeof(T));
    if (__atomic_compare_exchange_n(word, &before, after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return value;
  }
}
}  // namespace simt

template <class T>
inline T atomicAdd(T* p, simt::SameT<T> x, simt::Site site = simt::here()) {
  return simt::atomic_update(p, site, [x](T y) { return static_cast<T>(y + x); });
}
template <class T>
inline T atomicSub(T* p, simt::SameT<T> x, simt::Site site = simt::here()) {
  return simt::atomic_update(p, site, [x](T y) { return static_cast<T>(y - x); });
}
template <class T>
inline T atomicMax(T* p, simt::SameT<T> x, simt::Site site = simt::here()) {
  return simt::atomic_update(p, site, [x](T y) { return y > x ? y : x; });
}
template <class T>
inline T atomicMin(T* p, simt::SameT<T> x, simt::Site site = simt::here()) {
  return simt::atomic_update(p, site, [x](T y) { return y < x ? y : x; });
}
template <class T>
inline T atomicAnd(T* p, simt::SameT<T> x, simt::Site site = simt::here()) {
  return simt::atomic_update(p, site, [x](T y) { return static_cast<T>(y & x); });
}
template <class T>
inline T atomicOr(T* p, simt::SameT<T> x, simt::Site site = simt::here()) {
  return simt::atomic_update(p, site, [x](T y) { return static_cast<T>(y | x); });
}
template <class T>
inline T atomicExch(T* p, simt::SameT<T> x, simt::Site site = simt::here()) {
  return simt::atomic_update(p, site, [x](T) { return x; });
}
template <class T>
inline T atomicCAS(T* p, simt::SameT<T> expected, simt::SameT<T> x, simt::Site site = simt::here()) {
  return simt::atomic_update(p, site, [expected, x](T y) { return y == expected ? x : y; });
}

// -- reads and writes with a cache hint ---------------------------------------------------------

#define SIMT_LOAD(name)                                          \
  template <class T>                                             \
  inline T name(const T* p, simt::Site site = simt::here()) {    \
    simt::check_global(p, sizeof(T), alignof(T), false, site);   \
    return *p;                                                   \
  }
#define SIMT_STORE(name)                                                          \
  template <class T>                                                              \
  inline void name(T* p, simt::SameT<T> value, simt::Site site = simt::here()) {  \
    simt::check_global(p, sizeof(T), alignof(T), true, site);                     \
    *p = value;                                                                   \
  }
SIMT_LOAD(__ldg)
SIMT_LOAD(__ldca)
SIMT_LOAD(__ldcg)
SIMT_LOAD(__ldcs)
SIMT_LOAD(__ldlu)
SIMT_STORE(__stwb)
SIMT_STORE(__stcg)
SIMT_STORE(__stcs)
#undef SIMT_LOAD
#undef SIMT_STORE

// -- math ---------------------------------------------------------------------------------------
// The names that a C library may have for itself are macros: they shadow it in every version.

namespace simt {
inline float rsqrt(float x) { return static_cast<float>(1.0 / ::sqrt(static_cast<double>(x))); }
// In f64, with the argument reduced to an eighth of a turn: exact at multiples of a quarter.
inline void sincospi(float x, float* sine, float* cosine) {
  if (!::isfinite(x)) {
    *sine = *cosine = NAN;
    return;
  }
  double turned = x - 2.0 * ::rint(0.5 * x);  // -1 to 1 half turns
  double quarter = ::rint(2.0 * turned);
  double rest = 3.14159265358979323846 * (turned - 0.5 * quarter);
  float s = static_cast<float>(::sin(rest)), c = static_cast<float>(::cos(rest));
  switch (static_cast<int>(quarter) & 3) {
    case 0: *sine = s, *cosine = c; break;
    case 1: *sine = c, *cosine = -s; break;
    case 2: *sine = -s, *cosine = -c; break;
    default: *sine = -c, *cosine = s; break;
  }
}
inline float sinpi(float x) {
  float s, c;
  sincospi(x, &s, &c);
  return s;
}
inline float cospi(float x) {
  float s, c;
  sincospi(x, &s, &c);
  return c;
}
template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}
}  // namespace simt

#define rsqrtf(x) (::simt::rsqrt(x))
#define sincospif(x, s, c) (::simt::sincospi(x, s, c))
#define sinpif(x) (::simt::sinpi(x))
#define cospif(x) (::simt::cospi(x))
#define __expf(x) (::expf(x))
#define __exp10f(x) (::powf(10.0f, x))
#define __logf(x) (::logf(x))
#define __log2f(x) (::log2f(x))
#define __log10f(x) (::log10f(x))
#define __powf(x, y) (::powf(x, y))
#define __sinf(x) (::sinf(x))
#define __cosf(x) (::cosf(x))

inline float __fdividef(float x, float y) { return x / y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return ::sqrtf(x); }
inline float __fmaf_rn(float x, float y, float z) { return ::fmaf(x, y, z); }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline double __fma_rn(double x, double y, double z) { return ::fma(x, y, z); }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __dadd_rn(double x, double y) { return x + y; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

// Out of range the card gives the nearest integer, and 0 for NaN.
inline int __float2int_rz(float x) {
  return !(x == x) ? 0 : x >= 2147483648.0f ? 0x7fffffff : x < -2147483648.0f ? -0x7fffffff - 1 : static_cast<int>(x);
}
inline int __float2int_rn(float x) { return __float2int_rz(::rintf(x)); }
inline int __float2int_rd(float x) { return __float2int_rz(::floorf(x)); }
inline int __float2int_ru(float x) { return __float2int_rz(::ceilf(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<unsigned>((uint64_t{x} * y) >> 32); }
inline int __mulhi(int x, int y) { return static_cast<int>((int64_t{x} * y) >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(x) * y) >> 64);
}
inline long long __mul64hi(long long x, long long y) {
  return static_cast<long long>((static_cast<__int128>(x) * y) >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
  x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
  x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
  return __builtin_bswap32(x);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    unsigned pick = selector >> 4 * i & 15;
    unsigned byte = static_cast<unsigned>(bytes >> 8 * (pick & 7)) & 0xff;
    if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << 8 * i;
  }
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (shift & 31));
}

inline int __float_as_int(float x) { return simt::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return simt::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return simt::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return simt::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return simt::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return simt::bit_cast<double>(x); }

#define SIMT_MIN_MAX(A, B, R)                                                                              \
  constexpr R min(A x, B y) { return static_cast<R>(x) < static_cast<R>(y) ? static_cast<R>(x) : static_cast<R>(y); } \
  constexpr R max(A x, B y) { return static_cast<R>(x) > static_cast<R>(y) ? static_cast<R>(x) : static_cast<R>(y); }
SIMT_MIN_MAX(int, int, int)
SIMT_MIN_MAX(unsigned, unsigned, unsigned)
SIMT_MIN_MAX(int, unsigned, unsigned)
SIMT_MIN_MAX(unsigned, int, unsigned)
SIMT_MIN_MAX(long, long, long)
SIMT_MIN_MAX(unsigned long, unsigned long, unsigned long)
SIMT_MIN_MAX(long, unsigned long, unsigned long)
SIMT_MIN_MAX(unsigned long, long, unsigned long)
SIMT_MIN_MAX(long long, long long, long long)
SIMT_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
SIMT_MIN_MAX(long long, unsigned long long, unsigned long long)
SIMT_MIN_MAX(unsigned long long, long long, unsigned long long)
#undef SIMT_MIN_MAX
inline float min(float x, float y) { return ::fminf(x, y); }
inline float max(float x, float y) { return ::fmaxf(x, y); }
inline double min(double x, double y) { return ::fmin(x, y); }
inline double max(double x, double y) { return ::fmax(x, y); }
inline double min(float x, double y) { return ::fmin(x, y); }
inline double max(float x, double y) { return ::fmax(x, y); }
inline double min(double x, float y) { return ::fmin(x, y); }
inline double max(double x, float y) { return ::fmax(x, y); }
