// CuTe's fragments, executed on the host.
#include "theirs.h"

#include <stdio.h>
#include <stdlib.h>

#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED 1  // 80 columns
#include <cute/tensor.hpp>
//
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/copy_traits_sm90.hpp>
#include <cute/atom/mma_atom.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>

namespace theirs {

namespace {

using namespace cute;
namespace gmma = SM90::GMMA;
using gmma::Major;

[[noreturn]] void nothing_of(const char* what, int a, int b) {
  fprintf(stderr, "theirs.cpp has no %s of %d, %d\n", what, a, b);
  exit(2);
}

// Layouts of fragments number the elements of a matrix column by column.
template <class Layout>
Place in_matrix(const Layout& layout, int rows, int thread, int i) {
  const int at = static_cast<int>(layout(thread, i));
  return {at % rows, at / rows};
}

// Of matrices, both sides are maps to one numbering of all bits.
template <class Registers, class Rows>
Place in_rows(const Registers& registers, const Rows& rows, int lane, int i) {
  for (int l = 0; l < 32; l++)
    for (int column = 0; column < 8; column++)
      if (rows(l, 16 * column) == registers(lane, 16 * i)) return {l, column};
  nothing_of("row", lane, i);
}

using MmaHalf = MMA_Traits<SM80_16x8x16_F32F16F16F32_TN>;
using MmaBfloat = MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN>;

}  // namespace

Place mma_a(bool half, int lane, int i) {
  return half ? in_matrix(MmaHalf::ALayout(), 16, lane, i) : in_matrix(MmaBfloat::ALayout(), 16, lane, i);
}
Place mma_b(bool half, int lane, int i) {
  return half ? in_matrix(MmaHalf::BLayout(), 8, lane, i) : in_matrix(MmaBfloat::BLayout(), 8, lane, i);
}
Place mma_d(bool half, int lane, int i) {
  return half ? in_matrix(MmaHalf::CLayout(), 16, lane, i) : in_matrix(MmaBfloat::CLayout(), 16, lane, i);
}

Place wgmma_a(int thread, int i) {
  return in_matrix(MMA_Traits<gmma::MMA_64x64x16_F32F16F16_RS<Major::K, Major::K>>::ALayout(), 64, thread, i);
}
Place wgmma_d(int columns, int thread, int i) {
  switch (columns) {
    case 64: return in_matrix(MMA_Traits<gmma::MMA_64x64x16_F32F16F16_SS<Major::K, Major::K>>::CLayout(), 64, thread, i);
    case 80: return in_matrix(MMA_Traits<gmma::MMA_64x80x16_F32F16F16_SS<Major::K, Major::K>>::CLayout(), 64, thread, i);
    case 96: return in_matrix(MMA_Traits<gmma::MMA_64x96x16_F32F16F16_SS<Major::K, Major::K>>::CLayout(), 64, thread, i);
    case 128: return in_matrix(MMA_Traits<gmma::MMA_64x128x16_F32F16F16_SS<Major::K, Major::K>>::CLayout(), 64, thread, i);
    case 192: return in_matrix(MMA_Traits<gmma::MMA_64x192x16_F32F16F16_SS<Major::K, Major::K>>::CLayout(), 64, thread, i);
  }
  nothing_of("product", columns, 16);
}

Place matrices(Matrices which, int lane, int i) {
  using Load = Copy_Traits<SM75_U32x4_LDSM_N>;
  using Transposed = Copy_Traits<SM75_U16x8_LDSM_T>;
  using Store = Copy_Traits<SM90_U32x4_STSM_N>;
  if (which == Matrices::kLoad) return in_rows(Load::DstLayout(), Load::SrcLayout(), lane, i);
  if (which == Matrices::kLoadTransposed) return in_rows(Transposed::DstLayout(), Transposed::SrcLayout(), lane, i);
  return in_rows(Store::SrcLayout(), Store::DstLayout(), lane, i);
}

}  // namespace theirs
