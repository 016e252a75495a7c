// Tiles in shared memory by CuTe: its canonical layouts, repeated, and the descriptors that its own products make.
// Two files list them, for each takes its time to compile.
#pragma once

#include <stddef.h>

// A pointer to shared memory is its address there.
inline size_t __cvta_generic_to_shared(const void* p) { return reinterpret_cast<size_t>(p); }
#define CUTE_CVTA_GENERIC_TO_SHARED_ACTIVATED 1
#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED 1  // 80 columns
#include <cute/tensor.hpp>
//
#include <cute/atom/mma_atom.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>

#include "theirs.h"

namespace theirs {

namespace gmma = cute::SM90::GMMA;
using Element = cutlass::half_t;
using gmma::Major;

template <int N, Major B>
struct Product;
#define PRODUCT(n)                                                       \
  template <Major B>                                                     \
  struct Product<n, B> {                                                 \
    using Op = gmma::MMA_64x##n##x16_F32F16F16_SS<Major::K, B>;          \
  };
PRODUCT(64)
PRODUCT(80)
PRODUCT(96)
PRODUCT(128)
PRODUCT(192)
#undef PRODUCT

// The pattern of a swizzle.
template <Major M, int Swizzle>
struct Pattern;
#define PATTERN(major, swizzle, atom)             \
  template <>                                     \
  struct Pattern<Major::major, swizzle> {         \
    using Layout = gmma::Layout_##atom<Element>;  \
  };
PATTERN(K, 0, K_INTER_Atom)
PATTERN(K, 32, K_SW32_Atom)
PATTERN(K, 64, K_SW64_Atom)
PATTERN(K, 128, K_SW128_Atom)
PATTERN(MN, 0, MN_INTER_Atom)
PATTERN(MN, 32, MN_SW32_Atom)
PATTERN(MN, 64, MN_SW64_Atom)
PATTERN(MN, 128, MN_SW128_Atom)
#undef PATTERN

template <Major M, int Swizzle, int Mn, int K, bool KFirst>
struct Laid {
  static auto layout() {
    using Order = std::conditional_t<KFirst, cute::Step<cute::_2, cute::_1>, cute::Step<cute::_1, cute::_2>>;
    return cute::tile_to_shape(typename Pattern<M, Swizzle>::Layout(), cute::Shape<cute::Int<Mn>, cute::Int<K>>(), Order());
  }
  static int byte(int mn, int k) {
    return 2 * static_cast<int>(cute::as_position_independent_swizzle_layout(layout())(mn, k));
  }
  static uint64_t descriptor(bool as_a, uint32_t address, int step) {
    const auto shared = cute::make_tensor(cute::make_smem_ptr(reinterpret_cast<Element*>(uintptr_t{address})), layout());
    const auto group = cute::make_tiled_mma(typename Product<Mn, M>::Op()).get_slice(0);
    if constexpr (Mn == 64 && M == Major::K)
      if (as_a) return group.make_fragment_A(group.partition_A(shared))(cute::_0(), 0, step);
    return group.make_fragment_B(group.partition_B(shared))(cute::_0(), 0, step);
  }
};
template <Major M, int Swizzle, int Mn, int K = 64, bool KFirst = false>
constexpr Tile tile() {
  using L = Laid<M, Swizzle, Mn, K, KFirst>;
  return {M == Major::K, Swizzle, Mn, K, KFirst, L::byte, L::descriptor};
}

}  // namespace theirs
