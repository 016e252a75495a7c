// What CuTe's make_tma_copy asks of the driver, whose functions stand here and write it down.
//
// CuTe wants to see nvcc, of a version that has tensor maps.
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0
#define CUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL 1
#include <cuda.h>

#include "theirs.h"

static theirs::TensorMapCall call;

extern "C" CUresult CUDAAPI cuDriverGetVersion(int* version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}
extern "C" CUresult CUDAAPI cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t rank, void* address,
                                                  const cuuint64_t* extents, const cuuint64_t* strides,
                                                  const cuuint32_t* box, const cuuint32_t* steps,
                                                  CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                                  CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  // The type (16 bits of any kind) and how much goes to L2 beside are the caller's choice.
  call.calls++;
  call.rank = rank, call.interleave = interleave, call.swizzle = swizzle, call.fill = fill;
  call.address = reinterpret_cast<uint64_t>(address);
  for (cuuint32_t d = 0; d < rank && d < 5; d++) {
    call.extents[d] = extents[d], call.box[d] = box[d], call.steps[d] = steps[d];
    if (d > 0) call.strides[d - 1] = strides[d - 1];
  }
  return CUDA_SUCCESS;
}

inline size_t __cvta_generic_to_shared(const void* p) { return reinterpret_cast<size_t>(p); }
#include <cute/tensor.hpp>
//
#include <cute/atom/copy_traits_sm90_tma.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>

namespace theirs {

using namespace cute;

template <int Tokens>
static TensorMapCall with_box(uint64_t address, const int (&extents)[4], const int64_t (&strides)[3]) {
  using Element = cutlass::bfloat16_t;
  call = {};
  // CuTe has the box's two modes first: [token, column, head, page].
  const auto shape = make_shape(extents[1], extents[0], extents[2], extents[3]);
  const auto stride = make_stride(strides[0], _1(), strides[1], strides[2]);
  const auto tensor = make_tensor(make_gmem_ptr(reinterpret_cast<const Element*>(address)), make_layout(shape, stride));
  const Shape<Int<Tokens>, _64> box;
  (void)make_tma_copy(SM90_TMA_LOAD(), tensor, tile_to_shape(SM90::GMMA::Layout_K_SW128_Atom<Element>(), box), box, _1());
  return call;
}

TensorMapCall tensor_map(uint64_t address, const int (&extents)[4], const int64_t (&strides)[3], int tokens) {
  if (tokens == 8) return with_box<8>(address, extents, strides);
  if (tokens == 32) return with_box<32>(address, extents, strides);
  return with_box<96>(address, extents, strides);
}

TensorMapNumbers tensor_map_numbers() {
  return {CU_TENSOR_MAP_DATA_TYPE_UINT16,     CU_TENSOR_MAP_INTERLEAVE_NONE,       CU_TENSOR_MAP_SWIZZLE_128B,
          CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE, sizeof(CUtensorMap),
          alignof(CUtensorMap)};
}

}  // namespace theirs
