// The copy engine of sm_90: mbarriers, tensor maps, and boxes under way.
#pragma once

#include <string>
#include <vector>

#include "device.h"
#include "race.h"
#include "simt.h"

namespace simt {

class Block;
struct Lane;

// Eight bytes of shared memory; what they count is kept here, and they hold a mark that tells of an
// overwrite.
struct Mbarrier {
  uint32_t offset = 0;  // in shared memory
  int count = 0;        // arrivals of a phase
  int pending = 0;      // of this one
  long long bytes = 0;  // that this phase waits for: expected less landed
  uint32_t phase = 0;
  Site site{};  // where it was seen last
  Mark* mark = nullptr;  // of this phase
  Mark* ended = nullptr;  // of the last one
  std::vector<Lane*> waiting;
};

class CopyEngine {
 public:
  void reset();

  // By kernels' threads. Offsets count from the start of shared memory.
  void init(Block& block, uint32_t offset, int arrivals, Site site);
  void arrive(Block& block, uint32_t offset, long long bytes, Site site);
  // Until the phase of this parity has ended.
  void wait(Block& block, uint32_t offset, uint32_t parity, Site site);
  void copy(Block& block, uint32_t offset, const void* map, uint32_t barrier, const int* at, int rank, Site site);

  size_t under_way() const { return jobs_.size(); }
  // Lands the copy at this place in the queue.
  void land(Block& block, size_t job);
  bool is_mbarrier(uint32_t offset) const;
  // What must not be left when a block ends; empty if nothing is.
  std::string left() const;
  // What the thread waits for.
  std::string wait_of(const Lane& lane) const;

 private:
  struct Row {
    uint32_t to;  // offset of its first byte, before the swizzle
    const unsigned char* from;  // null: outside of the tensor
    uint32_t before, bytes;     // zeros in front of what is read, and how much is
  };
  struct Job {
    size_t barrier;
    uint32_t swizzle, row_bytes;
    uint32_t bytes;
    Site site;
    std::vector<Row> rows;
  };
  Mbarrier& find(Block& block, uint32_t offset, Site site);
  void settle(Block& block, Mbarrier& barrier);

  std::vector<Mbarrier> barriers_;
  std::vector<Job> jobs_;
};

}  // namespace simt
