// Included before a kernel file, by nvcc or by the SIMT device's compiler: leaves the size of every plan of shared
// memory in what is compiled, as an array of as many bytes with the plan's type in its name.
#pragma once

#define shared_memory plan_in_shared_memory
#include <kernel.cuh>
#undef shared_memory

template <class Plan>
__device__ unsigned char plan_of[sizeof(Plan)];

template <class Plan>
__device__ Plan& shared_memory() {
  plan_of<Plan>[0] = 0;
  return plan_in_shared_memory<Plan>();
}
