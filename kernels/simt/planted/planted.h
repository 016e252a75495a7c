/* Kernels with a bug, each beside its correct twin `<name>_fixed`: what the SIMT device must find. */
#ifndef PACKFORCING_PLANTED_H
#define PACKFORCING_PLANTED_H

#include <stdint.h>

typedef struct PlantedParams {
  uint64_t in;  /* i32 [n], not writable */
  uint64_t out; /* i32 [n] */
  int32_t n;
  int32_t reserved;
} PlantedParams;

#endif
