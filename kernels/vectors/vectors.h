/* The argument struct of the kernels that tell what an instruction does (instructions_*.cu). */
#ifndef PACKFORCING_VECTORS_H
#define PACKFORCING_VECTORS_H

#include <params.h>

/* An operand of wgmma in shared memory, all in bytes; the swizzle as descriptors have it. */
typedef struct VectorOperand {
  uint32_t start;
  uint32_t leading;
  uint32_t stride;
  uint32_t swizzle;
} VectorOperand;

/* Each kernel says which of these it reads. */
typedef struct VectorParams {
  TensorMap map;
  uint64_t image; /* u16 [image_bytes / 2]: shared memory before the instruction */
  uint64_t a;     /* u32 [threads, 4]: a thread's registers of a matrix */
  uint64_t b;     /* u32 [threads, 2], or [threads] byte offsets of rows in shared memory */
  uint64_t d;     /* f32 [threads, elements]: accumulators before */
  uint64_t out;
  VectorOperand a_rows, b_rows;
  int32_t image_bytes; /* 16 divides it */
  int32_t add;         /* scale-d of wgmma */
  int32_t transposed;  /* b */
  int32_t registers;   /* a is there, not in shared memory */
  int32_t at[4];       /* of the box, innermost first */
  int32_t box_start;   /* in shared memory */
  int32_t box_bytes;
  int32_t reserved[4];
} VectorParams;

#endif
