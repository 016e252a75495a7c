// Products of warpgroups: issued now, done later, and until the wait their registers are not the threads'.
//
// A warp's quarter of a product (16 rows) is a job of its own, for on a card, too, the warps of a group may
// stand at different places. It reads its operands when it lands; the accumulators are poison from the issue
// to the wait.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "device.h"

namespace simt {

class Block;

class WarpProducts {
 public:
  void reset();
  // By the last lane of the warp to arrive; `args` are those of all lanes.
  void fence(Block& block, uint32_t warp, void* const* args);
  void issue(Block& block, uint32_t warp, void* const* args);
  void commit() { ++groups_; }
  void wait(Block& block, uint32_t warp, int pending, Site site);
  // Lands the oldest product.
  void land(Block& block, uint32_t warp);
  size_t under_way() const { return jobs_.size(); }
  bool waited_for() const { return accumulators_.empty(); }
  size_t issued() const { return issued_; }

 private:
  struct Accumulators {
    float* d[32];
    int columns;
    std::vector<float> values;  // [16][columns]
    uint32_t group;             // of the last product
  };
  struct Job {
    uint32_t group;
    Product product;  // of lane 0
    const uint32_t* a[32];
    Accumulators* accumulators;
    Site site;
  };
  // What a lane's variables held at the last fence: its stack from `from` on.
  struct Held {
    const unsigned char* from;
    std::vector<unsigned char> bytes;
    // Whether these four registers hold what they held then.
    bool same(const uint32_t* registers) const;
  };
  Accumulators* find(const Product& product);

  std::deque<Job> jobs_;
  std::vector<std::unique_ptr<Accumulators>> accumulators_;
  uint32_t groups_ = 0;  // committed
  size_t issued_ = 0;
  bool fenced_ = false;
  Held held_[32];
};

// What the warps of a warpgroup issued, which must be the same.
class GroupLog {
 public:
  void reset() { products_.clear(); }
  // Whether the `n`-th product of a warp is what the group's others issued.
  bool agrees(size_t n, const Product& product, Site site);
  size_t size() const { return products_.size(); }

 private:
  struct Entry {
    Site site;
    uint64_t a, b;
    int columns;
    bool add;
  };
  std::vector<Entry> products_;
};

}  // namespace simt
