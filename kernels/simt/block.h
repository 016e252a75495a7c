// One thread block: its threads as fibers, who may run, barriers, warps, shared memory.
//
// An OS thread runs one block at a time. A round lets every thread that can run do so once, in an
// order that the seed chooses; a thread runs until it waits, ends, or is preempted at an access.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device.h"
#include "engine.h"
#include "fiber.h"
#include "memory.h"
#include "proxy.h"
#include "race.h"
#include "simt.h"
#include "wgmma.h"

namespace simt {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr int kBarriers = 16;
constexpr uint32_t kRegisters = 64 * 1024;  // of a multiprocessor

// splitmix64: a few instructions, and any seed will do.
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>(((next() >> 32) * n) >> 32); }
};

// What the blocks of one launch share.
struct Launch {
  const Kernel* kernel;
  const void* params;
  dim3 grid;
  uint32_t threads;
  uint32_t shared_bytes;
  SpanTable spans;
  SimtOptions options;

  std::atomic<bool> failed{false};
  std::mutex mutex{};
  std::string error{};  // the first one
  Mark done{};          // every thread's end

  void record(const std::string& text);
};

struct Lane {
  uint32_t index = 0;  // in the block
  uint32_t bit = 0;    // in the warp's masks
  Fiber fiber;
  bool exited = false;
  Site site{};        // where it was seen last
  Site met{};         // where it last waited for others
  int barrier = -1;   // the barrier that it waits at, or
  int meeting = -1;   // the meeting of its warp, or
  int mbarrier = -1;  // the mbarrier
  int votes = 0;      // what the last barrier counted
  uint32_t arrived[kBarriers] = {};  // the generation of each barrier that it last arrived in
  CopyQueue copies;
};

// Lanes of a warp that come together for one operation.
struct Meeting {
  const Operation* operation;
  uint32_t mask, arrived;
  Site site;
  Mark* mark;
  void* args[kWarp];
};

struct Warp {
  uint32_t present = 0, exited = 0;
  uint32_t open = 0;  // a bit for each meeting in use
  Meeting meetings[kWarp];
};

struct Barrier {
  const char* name;
  uint32_t generation = 0;
  int expected = 0;  // 0: nobody has arrived
  int arrived = 0;
  int votes = 0;
  uint32_t first = 0;  // the thread that arrived first, and where
  Site site{};
  Mark* mark = nullptr;  // of this generation
  std::vector<Lane*> waiting;
  // bar.sync and bar.arrive are for whole warps: all lanes must come from one line.
  uint32_t warp_generation[kMaxWarps] = {};
  Site warp_site[kMaxWarps] = {};
};

class Block {
 public:
  // The block that runs on this OS thread.
  static Block& running();

  // Runs block `index`, to its end or to the launch's first error.
  void run(Launch& launch, uint64_t index);

  void preempt();
  int arrive(const char* name, int id, int threads, bool wait, bool vote, Site site);
  void meet(const Operation& operation, uint32_t mask, void* args, Site site);
  [[noreturn]] void fail(Site site, const char* text);

  // Puts the running thread to sleep at an mbarrier of the copy engine's; it wakes the thread.
  void sleep_at(int mbarrier, Site site);
  void wake(Lane& lane);
  // What went wrong with work that no thread does at this moment.
  void report_at(Site site, const char* text);
  // setmaxnreg of the running thread's warp.
  void set_registers(int registers, bool more, Site site);

  Lane& lane() { return *current_; }
  CopyEngine& engine() { return engine_; }
  Proxies& proxies() { return proxies_; }
  WarpProducts& products(uint32_t warp) { return products_[warp]; }
  GroupLog& group_log(uint32_t group) { return logs_[group]; }
  Marks& marks() { return marks_; }
  Launch& launch() { return *launch_; }
  Arena& arena() { return arena_; }
  // The end of a thread's stack, where its first variables are.
  const unsigned char* stack_end(uint32_t index);
  Random& random() { return random_; }

 private:
  static void lane_main();
  void prepare(Launch& launch, uint64_t index);
  bool next_round();
  bool land_something();
  void check_end();
  void leave();
  void enter(Lane& lane);
  [[noreturn]] void finish_lane();
  void complete(int id);
  void check_stack(Lane& lane);
  void deadlock();
  void report(const Lane* lane, Site site, const std::string& text);
  unsigned char* stack(uint32_t index);

  Launch* launch_ = nullptr;
  Lane* current_ = nullptr;
  Fiber scheduler_;
  Random random_{0};
  uint32_t slow_warps_ = 0;  // run only where nobody else can
  uint32_t slow_rounds_ = 0;
  uint32_t alive_ = 0;
  std::vector<Lane*> ready_;  // for the next round
  std::vector<Lane*> round_;  // in the order of this one, of which `turn_` have run
  size_t turn_ = 0;
  Arena arena_;
  Marks marks_;
  Barrier barriers_[kBarriers];
  CopyEngine engine_;
  Proxies proxies_;
  std::unique_ptr<WarpProducts[]> products_{new WarpProducts[kMaxWarps]};
  GroupLog logs_[kMaxWarps / 4];
  uint32_t registers_[kMaxWarps] = {};  // of each thread of the warp
  std::unique_ptr<Warp[]> warps_{new Warp[kMaxWarps]};
  std::unique_ptr<Lane[]> lanes_{new Lane[kMaxThreads]};
  std::unique_ptr<unsigned char[]> stacks_;
  uint32_t stack_count_ = 0;
};

}  // namespace simt
