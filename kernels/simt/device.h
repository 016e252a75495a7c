// What the shadow headers call: the SIMT device as a kernel's thread sees it.
//
// Everything here is called by a running kernel thread. Whatever finds a mistake calls `fail`, which
// ends the launch and does not return.
#pragma once

#include <stdint.h>

#include "shadow/vector_types.h"

// The device's own state that kernels touch: ThreadSanitizer must not take it for theirs.
#ifdef SIMT_RACES
#define SIMT_UNSEEN __attribute__((no_sanitize("thread")))
#else
#define SIMT_UNSEEN
#endif

namespace simt {

// A line of the kernel. As a default argument, `here()` names the caller's.
struct Site {
  const char* file;
  int line;
};
inline bool operator==(Site a, Site b) { return a.file == b.file && a.line == b.line; }
inline bool operator!=(Site a, Site b) { return !(a == b); }
constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

// A stretch of memory, [begin, end).
struct Range {
  uint64_t begin, end;
  bool holds(uint64_t address, uint64_t bytes) const {
    return address >= begin && address < end && bytes <= end - address;
  }
};

// The running thread's surroundings, one for each OS thread. The scheduler keeps it up to date; it
// stands apart from the scheduler's own state so that the checks of every access can be inlined.
struct Context {
  uint3 thread_index;
  uint3 block_index;
  dim3 block_dim;
  dim3 grid_dim;
  uint32_t until_preemption;  // accesses
  Range readable, writable;   // spans that were hit last
  Range shared;               // the block's shared memory
  Site site;                  // where the thread was seen last
};
extern __thread Context context __attribute__((tls_model("initial-exec")));

[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((cold, format(printf, 2, 3)));

// -- scheduling ---------------------------------------------------------------------------------

// Lets other threads run. Every access to memory may be a point where this happens, so that what is
// not atomic comes apart.
void preempt();

SIMT_UNSEEN inline void access_point() {
  if (__builtin_expect(--context.until_preemption == 0, 0)) preempt();
}

// Arrives at a barrier of `threads` threads and, where `wait` is true, waits for the others.
// Returns how many of them brought a true `vote`.
int barrier(const char* name, int id, int threads, bool wait, bool vote, Site site);

// -- warps --------------------------------------------------------------------------------------

constexpr uint32_t kFullWarp = 0xffffffffu;

// Something that the lanes of a warp do together. `args[l]` is what lane l brought, for the lanes in
// `mask`; `run` is called once, by the last to arrive.
struct Operation {
  const char* name;
  void (*run)(uint32_t mask, void* const* args);
};

// Waits until every lane of `mask` is here, with the same operation, mask and site.
void meet(const Operation& operation, uint32_t mask, void* args, Site site);

struct Shuffle {
  uint64_t value;  // in and out
  int source;      // lane
};
extern const Operation shuffle_idx, shuffle_up, shuffle_down, shuffle_xor;
// `value` of lane `source`, for every lane of the mask.
uint64_t shuffle(const Operation& operation, uint32_t mask, uint64_t value, int source, int width, Site site);

struct Vote {
  bool in;
  uint32_t out;  // a bit for each lane that voted true
};
extern const Operation sync_warp, vote_ballot, vote_any, vote_all;

struct Reduction {
  uint32_t value;  // in and out
};
extern const Operation reduce_add, reduce_and, reduce_or, reduce_xor;
extern const Operation reduce_min_signed, reduce_max_signed, reduce_min_unsigned, reduce_max_unsigned;

struct LoadMatrix {
  uint32_t* registers;       // four, out
  const unsigned char* row;  // 16 bytes
};
extern const Operation ldmatrix_x4, ldmatrix_x4_trans;

struct StoreMatrix {
  const uint32_t* registers;  // four
  unsigned char* row;         // 16 bytes, out
};
extern const Operation stmatrix_x4;

// A product of a warpgroup: d (64 x columns) = a (64 x 16) b (16 x columns), added to d or not.
struct Product {
  float* d;           // columns / 2
  const uint32_t* a;  // four registers, or null: in shared memory
  uint64_t a_rows, b_rows;  // descriptors
  int columns;
  bool add;
  bool transposed;  // b
  bool half;        // f16, else bf16
};
extern const Operation wgmma_issue, wgmma_commit_group, wgmma_wait_group;
// The warp's wgmma_fence, which remembers what the callers' variables hold.
void fence_products(Site site);

struct Mma {
  float* d;           // four, in and out
  const uint32_t* a;  // four
  const uint32_t* b;  // two
};
extern const Operation mma_m16n8k16_f16, mma_m16n8k16_bf16;

// -- memory -------------------------------------------------------------------------------------

void find_span(uint64_t address, uint32_t bytes, bool write, Site site);
[[noreturn]] void misaligned(uint64_t address, uint32_t bytes, bool write, Site site) __attribute__((cold));

// Global memory: alignment, and that one span holds the access.
SIMT_UNSEEN inline void check_global(const void* p, uint32_t bytes, uint32_t alignment, bool write, Site site) {
  context.site = site;
  access_point();
  uint64_t address = reinterpret_cast<uint64_t>(p);
  if (__builtin_expect(address % alignment != 0, 0)) misaligned(address, bytes, write, site);
  const Range& last = write ? context.writable : context.readable;
  if (__builtin_expect(!last.holds(address, bytes), 0)) find_span(address, bytes, write, site);
}

// Either kind of memory, as atomics take it.
SIMT_UNSEEN inline void check_generic(const void* p, uint32_t bytes, Site site) {
  uint64_t address = reinterpret_cast<uint64_t>(p);
  if (!context.shared.holds(address, bytes)) return check_global(p, bytes, bytes, true, site);
  context.site = site;
  access_point();
  if (address % bytes != 0) misaligned(address, bytes, true, site);
}

// The block's shared memory, for a plan of so many bytes.
void* shared_plan(uint64_t bytes, uint64_t alignment, Site site);
[[noreturn]] void bad_index(long long index, int count, unsigned element_bytes) __attribute__((cold));

// Shared memory as PTX addresses it. Zero is not a valid address, and an address is aligned to 1024
// bytes where its pointer is.
uint32_t shared_address(const void* p, Site site);
unsigned char* shared_pointer(const char* name, uint32_t address, uint32_t bytes, uint32_t alignment, Site site);

// cp.async: the destination is poison until the copy lands, and the source is read then.
void copy_async(uint32_t to_shared, const void* from_global, uint32_t bytes, bool valid, Site site);
void commit_copies();
void wait_for_copies(uint32_t pending_groups);

// mbarriers and the copy engine (engine.h). With bytes 0 an arrival expects none.
void mbarrier_init(uint32_t barrier, int arrivals, Site site);
void mbarrier_arrive(uint32_t barrier, long long bytes, Site site);
void mbarrier_wait(uint32_t barrier, uint32_t parity, Site site);
void tensor_copy(uint32_t to_shared, const void* map, uint32_t barrier, const int* at, int rank, Site site);
// The thread's writes, those to mbarriers or all, come before what the asynchronous proxy does (proxy.h).
void fence_mbarriers();
void fence_proxy();
// A write to shared memory that the asynchronous proxy may read.
void generic_write(const void* p, uint32_t bytes, Site site);
void set_registers(int registers, bool more, Site site);

}  // namespace simt
