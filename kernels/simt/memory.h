// Memory as kernels see it: spans of global memory, the shared arena, copies under way.
#pragma once

#include <memory>
#include <vector>

#include "device.h"
#include "race.h"
#include "simt.h"

namespace simt {

// As much as a block may have on any card that the kernels run on (sm_90).
constexpr uint32_t kMaxSharedBytes = 227 * 1024;

// Every byte of memory that nobody has written: NaN as f32, f16 and bf16, -1 as an integer.
constexpr unsigned char kPoison = 0xff;

class SpanTable {
 public:
  SpanTable(const SimtSpan* spans, size_t count);
  bool empty() const { return spans_.empty(); }
  // A span that holds the access, or null.
  const SimtSpan* find(uint64_t address, uint64_t bytes, bool write) const;
  // The span that ends or begins nearest to the address, for a report.
  const SimtSpan* nearest(uint64_t address) const;

 private:
  std::vector<SimtSpan> spans_;   // by address
  std::vector<uint64_t> reach_;  // the greatest end of spans_[0..=i]
};

// Shared memory between two red zones. Its addresses count from `kBase`, so that 0 is none.
class Arena {
 public:
  static constexpr uint32_t kBase = 1024;
  Arena();
  void reset(uint32_t bytes);
  unsigned char* data() { return data_; }
  uint32_t bytes() const { return bytes_; }
  // Where a red zone was written, counted from the start of shared memory.
  bool damaged(long* offset) const;

 private:
  static constexpr uint32_t kZoneBefore = kBase, kZoneAfter = 4096;
  std::unique_ptr<unsigned char[]> memory_;
  unsigned char* data_;
  uint32_t bytes_ = 0;
};

// One thread's asynchronous copies.
class CopyQueue {
 public:
  // Forgets the copies of a launch that is over; `done` is its mark.
  void reset(Mark& done);
  // `pc`: the kernel's instruction, for ThreadSanitizer.
  void issue(unsigned char* to, const void* from, uint32_t bytes, bool valid, void* pc);
  void commit();
  // Lands what the newest `pending` groups do not hold.
  void wait(uint32_t pending);
  // Lands the copy at this place in the queue.
  void land(size_t i);
  void land_newest() { land(copies_.size() - 1); }
  size_t size() const { return copies_.size(); }

 private:
  struct Copy {
    unsigned char* to;
    const void* from;
    uint32_t bytes;
    uint32_t group;
    bool valid;
  };
  std::vector<Copy> copies_;
  uint32_t groups_ = 0;  // committed
  CopyHistory history_;
};

}  // namespace simt
