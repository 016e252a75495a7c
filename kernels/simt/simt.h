/* The SIMT device: kernel files compiled by a C++ compiler and run on the CPU, to find bugs.
 *
 * The C part is what a host program calls; the C++ part is what a compiled kernel file hands over.
 */
#ifndef PACKFORCING_SIMT_H
#define PACKFORCING_SIMT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Global memory that a launch may touch. Spans may overlap; an access must lie within one. */
typedef struct SimtSpan {
  uint64_t address;
  uint64_t bytes;
  uint32_t writable;
  uint32_t reserved;
} SimtSpan;

/* When asynchronous copies land. */
#define SIMT_COPIES_LATE 0   /* at the wait that asks for them */
#define SIMT_COPIES_EARLY 1  /* where they are issued */
#define SIMT_COPIES_RANDOM 2 /* somewhere in between */

typedef struct SimtOptions {
  uint64_t seed;     /* of every choice that the device makes */
  uint32_t copies;   /* SIMT_COPIES_* */
  uint32_t in_order; /* 1: threads and blocks run in the order of their indices */
  uint32_t threads;  /* OS threads; 0: one a core */
  uint32_t reserved;
} SimtOptions;

/* What a TensorMap of params.h holds on this device: rank up to 5, innermost first. */
#define SIMT_TENSOR_MAP 0x50414d5f54494d53u
typedef struct SimtTensorMap {
  uint64_t magic;
  uint64_t address;
  uint64_t stride[4]; /* bytes, of dimensions 1 and on */
  uint32_t rank;
  uint32_t element_bytes;
  uint32_t swizzle; /* bytes: 0, 32, 64, 128; the innermost extent of a box is as many, where not 0 */
  uint32_t dim[5];
  uint32_t box[5];
  uint32_t reserved;
} SimtTensorMap;

#define SIMT_OK 0
#define SIMT_UNKNOWN_KERNEL 1
#define SIMT_BAD_LAUNCH 2   /* grid, threads, shared memory, parameters or options */
#define SIMT_KERNEL_ERROR 3 /* the kernel did something it must not do */
#define SIMT_HOST_ERROR 4   /* no memory or no threads on the host */

/* Runs `kernel` to its end, or to its first error. With `span_count` 0 accesses to global memory are
 * checked for alignment only. `report` (if not null) gets a text that ends in a zero byte and names
 * the seed, after a success too. Several host threads may launch at the same time. */
int simt_launch(const char* kernel, const void* params, size_t params_bytes, const uint32_t grid[3],
                uint32_t threads, uint32_t shared_bytes, const SimtSpan* spans, size_t span_count,
                const SimtOptions* options, char* report, size_t report_bytes);

#ifdef __cplusplus
} /* extern "C" */

namespace simt {

/* One kernel entry; PF_KERNEL(name, ...) defines it as `simt_kernel_<name>`. */
struct Kernel {
  const char* name;
  size_t params_bytes;
  uint32_t max_threads;
  void (*entry)(const void* params);
};

} /* namespace simt */

/* All kernels of the program. Registering by static constructors would not survive a static library,
 * so the build writes this table from the PF_KERNEL lines of the kernel files:
 *
 *   #include "simt.h"
 *   extern "C" const simt::Kernel simt_kernel_append_kv_f16;
 *   extern "C" const simt::Kernel simt_kernel_append_kv_bf16;
 *   const simt::Kernel* const simt_kernels[] = {
 *       &simt_kernel_append_kv_f16,
 *       &simt_kernel_append_kv_bf16,
 *       nullptr,
 *   };
 *   const size_t simt_kernel_count = 2;
 */
extern "C" const simt::Kernel* const simt_kernels[];
extern "C" const size_t simt_kernel_count;

#endif /* __cplusplus */
#endif
