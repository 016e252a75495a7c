/* A CUDA driver that does nothing and returns at once: what is left of a launch is the host's own time. Built and used by
 * scripts/host-time.sh. Memory is a number that nobody reads. */
#include <stdint.h>
#include <string.h>

typedef int Result;
typedef uint64_t Handle;

/* Functions that give nothing back. */
#define NOTHING(name) \
  Result name(void) { return 0; }
NOTHING(cuInit)
NOTHING(cuCtxSetCurrent)
NOTHING(cuCtxSynchronize)
NOTHING(cuDevicePrimaryCtxRelease_v2)
NOTHING(cuEventDestroy_v2)
NOTHING(cuEventRecord)
NOTHING(cuEventSynchronize)
NOTHING(cuFuncSetAttribute)
NOTHING(cuGraphDestroy)
NOTHING(cuGraphExecDestroy)
NOTHING(cuGraphLaunch)
NOTHING(cuLaunchKernel)
NOTHING(cuMemFreeAsync)
NOTHING(cuMemFreeHost)
NOTHING(cuMemFree_v2)
NOTHING(cuMemcpyDtoHAsync_v2)
NOTHING(cuMemcpyHtoDAsync_v2)
NOTHING(cuMemsetD8Async)
NOTHING(cuMemsetD8_v2)
NOTHING(cuModuleUnload)
NOTHING(cuStreamBeginCapture_v2)
NOTHING(cuStreamDestroy_v2)
NOTHING(cuStreamSynchronize)
NOTHING(cuStreamWaitEvent)
NOTHING(cuTensorMapEncodeTiled)

/* Functions that make something: a number that differs. */
static Handle next = 4096;
#define MAKES(name)        \
  Result name(Handle* to) { \
    *to = next += 4096;     \
    return 0;               \
  }
MAKES(cuDevicePrimaryCtxRetain)
MAKES(cuEventCreate)
MAKES(cuGraphInstantiateWithFlags)
MAKES(cuModuleLoadData)
MAKES(cuModuleGetFunction)
MAKES(cuStreamCreate)

Result cuMemAllocAsync(Handle* to, uint64_t bytes) {
  *to = next;
  next += (bytes + 8191) / 4096 * 4096;
  return 0;
}
Result cuMemAlloc_v2(Handle* to, uint64_t bytes) { return cuMemAllocAsync(to, bytes); }

static char pinned[1 << 20];
static uint64_t taken;
Result cuMemHostAlloc(void** to, uint64_t bytes) {
  if (taken + bytes > sizeof pinned) return 2;
  *to = pinned + taken;
  taken += bytes;
  return 0;
}

Result cuCtxGetCurrent(Handle* to) { return *to = 8192, 0; }
Result cuStreamEndCapture(Handle stream, Handle* to) { return (void)stream, *to = 4096, 0; }
Result cuStreamIsCapturing(Handle stream, int* to) { return (void)stream, *to = 0, 0; }
Result cuDeviceGet(int* to, int ordinal) { return *to = ordinal, 0; }
Result cuDeviceGetCount(int* to) { return *to = 1, 0; }
Result cuDriverGetVersion(int* to) { return *to = 13000, 0; }
Result cuDeviceGetName(char* to, int length) { return strncpy(to, "a null driver", (size_t)length), 0; }
Result cuDeviceGetAttribute(int* to, int attribute) {
  switch (attribute) {
    case 75: return *to = 9, 0;          /* compute capability 9.0 */
    case 97: return *to = 227 * 1024, 0; /* shared memory a block */
    case 115: return *to = 1, 0;         /* memory pools */
    default: return *to = 0, 0;
  }
}
Result cuPointerGetAttribute(void) { return 1; } /* pageable memory */
Result cuEventElapsedTime(float* ms) { return *ms = 1.0f, 0; }
Result cuEventElapsedTime_v2(float* ms) { return *ms = 1.0f, 0; }
static const char* const kName = "CUDA_ERROR";
Result cuGetErrorName(int code, const char** to) { return (void)code, *to = kName, 0; }
Result cuGetErrorString(int code, const char** to) { return (void)code, *to = kName, 0; }
