#include "block.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>

namespace simt {

namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif
// Stacks stand a little apart, or their tops would all fall into the same few cache sets.
constexpr size_t kStackStride = kStackBytes + 320;
// What the lowest stack can run over before the check finds it.
constexpr size_t kStackMargin = 1024 * 1024;
constexpr uint64_t kCanary = 0x5afe57ac5afe57acu;
constexpr size_t kCanaryWords = 32;

// Steps between preemptions: short enough to take apart a read and the write that follows it in
// small kernels, long enough to cost a nanosecond an access.
constexpr uint32_t kMaxPreemptionGap = 64;
constexpr uint32_t kPreemptionGapInOrder = 1 << 16;  // for threads that spin on each other

__thread Block* running_block;

std::string format(const char* text, ...) __attribute__((format(printf, 1, 2)));
std::string format(const char* text, ...) {
  char buffer[512];
  va_list args;
  va_start(args, text);
  vsnprintf(buffer, sizeof buffer, text, args);
  va_end(args);
  return buffer;
}

// Text without heap memory: a fiber that fails is dropped with whatever it holds.
struct Text {
  char chars[128];
};

Text place(Site site) {
  Text text;
  const char* slash = site.file ? strrchr(site.file, '/') : nullptr;
  if (site.file) {
    snprintf(text.chars, sizeof text.chars, "%s:%d", slash ? slash + 1 : site.file, site.line);
  } else {
    snprintf(text.chars, sizeof text.chars, "its start");
  }
  return text;
}

// "0-31, 40"
std::string ranges(const std::vector<uint32_t>& sorted) {
  std::string text;
  for (size_t i = 0, j; i < sorted.size(); i = j) {
    for (j = i + 1; j < sorted.size() && sorted[j] == sorted[i] + (j - i);) ++j;
    text += format(j - i > 1 ? "%s%u-%u" : "%s%u", i ? ", " : "", sorted[i], sorted[j - 1]);
  }
  return text;
}

Text lanes_of(uint32_t mask) {
  std::vector<uint32_t> lanes;
  for (uint32_t l = 0; l < kWarp; ++l)
    if (mask >> l & 1) lanes.push_back(l);
  Text text;
  snprintf(text.chars, sizeof text.chars, "%s", ranges(lanes).c_str());
  return text;
}

}  // namespace

__thread Context context;

Block& Block::running() { return *running_block; }

// -- a block's life -----------------------------------------------------------------------------

unsigned char* Block::stack(uint32_t index) { return stacks_.get() + kStackMargin + index * kStackStride; }

const unsigned char* Block::stack_end(uint32_t index) { return stack(index) + kStackBytes; }

void Block::prepare(Launch& launch, uint64_t index) {
  Unseen device;
  running_block = this;
  launch_ = &launch;
  // From the seed and the place in the grid alone, whichever OS thread this is.
  random_ = {launch.options.seed};
  random_.state = random_.next() ^ index * 0x9e3779b97f4a7c15u;

  if (kSeesRaces) {
    // Memory without a past: blocks that happen to follow each other here are not ordered.
    stack_count_ = 0;
    arena_ = Arena();
  }
  if (stack_count_ < launch.threads) {
    stack_count_ = 0;
    stacks_.reset(new unsigned char[kStackMargin + launch.threads * kStackStride]);
    stack_count_ = launch.threads;
  }
  arena_.reset(launch.shared_bytes);
  marks_ = Marks();
  for (Barrier& b : barriers_) {
    b.generation = 1;
    b.expected = b.arrived = b.votes = 0;
    b.waiting.clear();
    b.waiting.reserve(kMaxThreads);
    b.mark = marks_.make();
    memset(b.warp_generation, 0, sizeof b.warp_generation);
  }
  engine_.reset();
  proxies_.reset(launch.threads);
  for (uint32_t w = 0; w < kMaxWarps; ++w) {
    products_[w].reset();
    // As many as the launch leaves each thread, which is what a kernel that asks for others is compiled for.
    registers_[w] = w * kWarp < launch.threads ? std::min(255u, kRegisters / launch.threads) / 8 * 8 : 0;
  }
  for (GroupLog& log : logs_) log.reset();
  ready_.clear();
  ready_.reserve(kMaxThreads);
  round_.clear();
  turn_ = 0;
  slow_warps_ = slow_rounds_ = 0;
  alive_ = launch.threads;
  for (uint32_t t = 0; t < launch.threads; ++t) {
    Warp& warp = warps_[t / kWarp];
    if (t % kWarp == 0) warp.present = warp.exited = warp.open = 0;
    Lane& lane = lanes_[t];
    lane.index = t;
    lane.bit = 1u << t % kWarp;
    warp.present |= lane.bit;
    lane.exited = false;
    lane.site = lane.met = {};
    lane.barrier = lane.meeting = lane.mbarrier = -1;
    memset(lane.arrived, 0, sizeof lane.arrived);
    unsigned char* bottom = stack(t);
    lane.fiber.prepare(bottom, kStackBytes, lane_main,
                       kSeesRaces ? format("CUDA thread %u of block %zu", t, size_t{index}).c_str() : "");
    for (size_t i = 0; i < kCanaryWords; ++i) memcpy(bottom + 8 * i, &kCanary, 8);
    ready_.push_back(&lane);
  }

  dim3 grid = launch.grid;
  context.block_index = {static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
                         static_cast<unsigned>(index / grid.x / grid.y)};
  context.block_dim = {launch.threads, 1, 1};
  context.grid_dim = grid;
  context.until_preemption = 1;
  context.readable = context.writable = {0, 0};
  uint64_t shared = reinterpret_cast<uint64_t>(arena_.data());
  context.shared = {shared, shared + launch.shared_bytes};
}

void Block::run(Launch& launch, uint64_t index) {
  prepare(launch, index);
  while (alive_ > 0 && !launch.failed.load(std::memory_order_relaxed)) {
    if (!next_round()) {
      // As late as can be: where nobody can go on without it.
      if (land_something()) continue;
      deadlock();
      break;
    }
    enter(*round_[turn_++]);
    scheduler_.switch_to(current_->fiber);
  }
  Unseen device;
  for (uint32_t t = 0; t < launch.threads; ++t) {
    lanes_[t].copies.reset(launch.done);
    lanes_[t].fiber.end(launch.done, lanes_[t].exited);
  }
  if (launch.failed) {
    // Threads were dropped in the middle, and perhaps ran over their stacks: not to be used again.
    stacks_.reset();
    stack_count_ = 0;
    return;
  }
  check_end();
}

// What must not be so when all threads have ended.
void Block::check_end() {
  long offset;
  if (arena_.damaged(&offset))
    report(nullptr, {}, format("byte %ld of shared memory was written, which has %u (found at the block's end)", offset,
                               arena_.bytes()));
  if (const std::string left = engine_.left(); !left.empty()) report(nullptr, {}, left);
  for (uint32_t w = 0; w * kWarp < launch_->threads; ++w) {
    if (!products_[w].waited_for()) report(nullptr, {}, format("warp %u ended before a wgmma that it did not wait for", w));
    if (products_[w].issued() != logs_[w / 4].size())
      report(nullptr, {}, format("warp %u issued %zu wgmma, others of its warpgroup %zu", w, products_[w].issued(),
                                 logs_[w / 4].size()));
  }
}

// Lands a copy or a product that is under way; false where there is none.
bool Block::land_something() {
  size_t ways = engine_.under_way();
  for (uint32_t w = 0; w * kWarp < launch_->threads; ++w) ways += products_[w].under_way() > 0;
  if (ways == 0) return false;
  size_t chosen = random_.below(static_cast<uint32_t>(ways));
  if (chosen < engine_.under_way()) {
    engine_.land(*this, chosen);
    return true;
  }
  chosen -= engine_.under_way();
  for (uint32_t w = 0;; ++w) {
    if (products_[w].under_way() == 0 || chosen-- > 0) continue;
    products_[w].land(*this, w);
    return true;
  }
}

// Chooses who runs, in which order; false where nobody can.
bool Block::next_round() {
  round_.clear();
  turn_ = 0;
  if (launch_->options.copies == SIMT_COPIES_RANDOM && random_.below(4) == 0) land_something();
  if (launch_->options.in_order) {
    round_.swap(ready_);
    std::sort(round_.begin(), round_.end(), [](Lane* a, Lane* b) { return a->index < b->index; });
    return !round_.empty();
  }
  // Some warps stand still for a while, so that the others run ahead of them as far as they can.
  if (slow_rounds_ == 0) {
    slow_rounds_ = 1 + random_.below(32);
    slow_warps_ = static_cast<uint32_t>(random_.next() & random_.next());
  }
  --slow_rounds_;
  size_t kept = 0;
  for (Lane* lane : ready_) {
    if (slow_warps_ >> lane->index / kWarp & 1) {
      ready_[kept++] = lane;
    } else {
      round_.push_back(lane);
    }
  }
  ready_.resize(kept);
  if (round_.empty()) round_.swap(ready_);
  for (size_t i = round_.size(); i > 1; --i) std::swap(round_[i - 1], round_[random_.below(static_cast<uint32_t>(i))]);
  return !round_.empty();
}

void Block::enter(Lane& lane) {
  current_ = &lane;
  context.thread_index = {lane.index, 0, 0};
  context.site = lane.site;
}

// Gives the processor to the next thread of the round, or to the scheduler after the last one.
void Block::leave() {
  Lane& lane = *current_;
  lane.site = context.site;
  check_stack(lane);
  if (turn_ < round_.size()) {
    enter(*round_[turn_++]);
    lane.fiber.switch_to(current_->fiber);
  } else {
    lane.fiber.switch_to(scheduler_);
  }
  // Back again, a while later: some of this thread's copies may have landed.
  if (lane.copies.size() && launch_->options.copies == SIMT_COPIES_RANDOM && random_.below(8) == 0)
    lane.copies.land(random_.below(static_cast<uint32_t>(lane.copies.size())));
}

void Block::preempt() {
  const bool in_order = launch_->options.in_order;
  context.until_preemption = in_order ? kPreemptionGapInOrder : 1 + random_.below(kMaxPreemptionGap);
  ready_.push_back(current_);
  leave();
}

void Block::sleep_at(int mbarrier, Site site) {
  Lane& lane = *current_;
  context.site = site;
  lane.met = site;
  lane.mbarrier = mbarrier;
  leave();
}

void Block::wake(Lane& lane) {
  lane.mbarrier = -1;
  ready_.push_back(&lane);
}

void Block::report_at(Site site, const char* text) { report(nullptr, {}, format("%s\n  at %s", text, place(site).chars)); }

void Block::set_registers(int registers, bool more, Site site) {
  if (registers < 24 || registers > 256 || registers % 8 != 0)
    simt::fail(site, "setmaxnreg: %d registers (a multiple of 8 from 24 to 256)", registers);
  const uint32_t wanted = static_cast<uint32_t>(registers);
  uint32_t& own = registers_[current_->index / kWarp];
  if (more ? wanted < own : wanted > own)
    simt::fail(site, "setmaxnreg: %s to %u from %u", more ? "inc" : "dec", wanted, own);
  for (int patience = 256;; --patience) {
    uint32_t all = 0;
    for (uint32_t held : registers_) all += held * kWarp;
    if (all - own * kWarp + wanted * kWarp <= kRegisters) break;
    if (patience == 0) simt::fail(site, "setmaxnreg: nobody gives up the registers that it waits for");
    preempt();
  }
  own = wanted;
}

void Block::lane_main() {
  Block& block = running();
  block.launch_->kernel->entry(block.launch_->params);
  block.finish_lane();
}

void Block::finish_lane() {
  Lane& lane = *current_;
  Warp& warp = warps_[lane.index / kWarp];
  lane.exited = true;
  warp.exited |= lane.bit;
  --alive_;
  const Barrier& all = barriers_[0];
  if (all.expected)
    simt::fail(context.site, "the thread exited while thread %u waits at %s at %s (seen last at the line below)",
               all.first, all.name, place(all.site).chars);
  for (uint32_t open = warp.open; open; open &= open - 1) {
    const Meeting& m = warp.meetings[__builtin_ctz(open)];
    if (m.mask & lane.bit)
      simt::fail(context.site, "the thread exited while lanes %s wait for it in %s at %s (seen last at the line below)",
                 lanes_of(m.arrived).chars, m.operation->name, place(m.site).chars);
  }
  leave();
  __builtin_unreachable();
}

// -- barriers -----------------------------------------------------------------------------------

int Block::arrive(const char* name, int id, int threads, bool wait, bool vote, Site site) {
  Lane& lane = *current_;
  context.site = site;
  if (id < 0 || id >= kBarriers) simt::fail(site, "%s: barrier %d of 0 to %d", name, id, kBarriers - 1);
  if (threads <= 0 || threads % kWarp != 0 || threads > static_cast<int>(launch_->threads)) {
    // __syncthreads() is for all threads, whatever their number.
    if (id != 0 || threads != static_cast<int>(launch_->threads))
      simt::fail(site, "%s: barrier %d of %d threads in a block of %u (must be a multiple of 32)", name, id, threads,
                 launch_->threads);
  }
  Barrier& b = barriers_[id];
  // Of a named barrier this may be right: a thread may arrive and leave. If not, it is a deadlock.
  if (id == 0 && alive_ < launch_->threads) {
    uint32_t gone = 0;
    while (!lanes_[gone].exited) ++gone;
    simt::fail(site, "%s of all threads, but thread %u has exited", name, gone);
  }
  if (b.expected == 0) {
    b.expected = threads;
    b.name = name;
    b.first = lane.index;
    b.site = site;
  } else if (b.expected != threads) {
    simt::fail(site, "%s: barrier %d of %d threads here, of %d for thread %u at %s", name, id, threads, b.expected,
               b.first, place(b.site).chars);
  } else if (id == 0 && b.site != site) {
    simt::fail(site, "two sites meet at one barrier: %s here, and thread %u waits in %s at %s", name, b.first, b.name,
               place(b.site).chars);
  }
  const uint32_t w = lane.index / kWarp;
  if (b.warp_generation[w] != b.generation) {
    b.warp_generation[w] = b.generation;
    b.warp_site[w] = site;
  } else if (b.warp_site[w] != site) {
    simt::fail(site, "two sites meet at one barrier: lanes of warp %u came to barrier %d from here and from %s", w, id,
               place(b.warp_site[w]).chars);
  }
  if (lane.arrived[id] == b.generation)
    simt::fail(site, "%s: the thread arrives twice in one round of barrier %d", name, id);
  lane.arrived[id] = b.generation;

  ++b.arrived;
  b.votes += vote;
  lane.met = site;
  Mark* const mark = b.mark;
  mark->leave();
  if (b.arrived == b.expected) {
    lane.votes = b.votes;
    complete(id);
  } else if (wait) {
    b.waiting.push_back(&lane);
    lane.barrier = id;
    leave();
  }
  if (wait) mark->take();
  return lane.votes;
}

void Block::complete(int id) {
  Unseen device;
  Barrier& b = barriers_[id];
  for (Lane* lane : b.waiting) {
    lane->barrier = -1;
    lane->votes = b.votes;
    ready_.push_back(lane);
  }
  b.waiting.clear();
  b.expected = b.arrived = b.votes = 0;
  ++b.generation;
  b.mark = marks_.make();
  long offset;
  if (arena_.damaged(&offset))
    simt::fail(context.site, "byte %ld of shared memory was written, which has %u (found at this barrier)", offset,
               arena_.bytes());
}

// -- warps --------------------------------------------------------------------------------------

void Block::meet(const Operation& operation, uint32_t mask, void* args, Site site) {
  Lane& lane = *current_;
  Warp& warp = warps_[lane.index / kWarp];
  context.site = site;
  if (!(mask & lane.bit)) simt::fail(site, "%s: the lane is not in its own mask, %08x", operation.name, mask);
  if (uint32_t missing = mask & ~warp.present)
    simt::fail(site, "%s: the mask names lanes %s, which the block does not have", operation.name,
               lanes_of(missing).chars);
  if (uint32_t gone = mask & warp.exited)
    simt::fail(site, "%s: the mask names lanes %s, which have exited", operation.name, lanes_of(gone).chars);

  int joined = -1;
  for (uint32_t open = warp.open; open; open &= open - 1) {
    int i = __builtin_ctz(open);
    const Meeting& m = warp.meetings[i];
    if (m.operation == &operation && m.mask == mask && m.site == site) {
      joined = i;
    } else if ((m.mask & lane.bit) || (m.arrived & mask)) {
      simt::fail(site, "a warp does not agree: %s with mask %08x here, but lanes %s wait in %s with mask %08x at %s",
                 operation.name, mask, lanes_of(m.arrived).chars, m.operation->name, m.mask, place(m.site).chars);
    }
  }
  if (joined < 0) {
    joined = __builtin_ctz(~warp.open);
    warp.open |= 1u << joined;
    Meeting& m = warp.meetings[joined];
    m.operation = &operation;
    m.mask = mask;
    m.arrived = 0;
    m.site = site;
    Unseen device;
    m.mark = &operation == &sync_warp ? marks_.make() : nullptr;
  }
  Meeting& m = warp.meetings[joined];
  m.args[lane.index % kWarp] = args;
  m.arrived |= lane.bit;
  lane.met = site;
  // Of all that a warp does together, CUDA promises an order of memory for __syncwarp alone.
  Mark* const mark = &operation == &sync_warp ? m.mark : nullptr;
  if (mark) mark->leave();
  if (m.arrived != mask) {
    lane.meeting = joined;
    leave();
    if (mark) mark->take();
    return;
  }
  operation.run(mask, m.args);
  warp.open &= ~(1u << joined);
  Lane* first = &lanes_[lane.index / kWarp * kWarp];
  for (uint32_t others = mask & ~lane.bit; others; others &= others - 1) {
    Lane* other = first + __builtin_ctz(others);
    other->meeting = -1;
    ready_.push_back(other);
  }
  if (mark) mark->take();
}

// -- errors -------------------------------------------------------------------------------------

void Launch::record(const std::string& text) {
  std::lock_guard<std::mutex> lock(mutex);
  if (!failed.exchange(true)) error = text;
}

void Block::report(const Lane* lane, Site site, const std::string& text) {
  Unseen device;
  uint3 b = context.block_index;
  std::string where = format("kernel %s, block (%u, %u, %u)", launch_->kernel->name, b.x, b.y, b.z);
  if (lane) where += format(", thread %u (warp %u, lane %u)", lane->index, lane->index / kWarp, lane->index % kWarp);
  where += ": " + text;
  if (lane) where += std::string("\n  at ") + place(site).chars;
  if (lane && lane->met.file && lane->met != site)
    where += std::string(", after it met others at ") + place(lane->met).chars;
  launch_->record(where);
}

// The fibers are dropped as they stand; kernels own nothing that would have to be freed.
void Block::fail(Site site, const char* text) {
  report(current_, site, text);
  current_->fiber.switch_to(scheduler_);
  __builtin_unreachable();
}

void Block::check_stack(Lane& lane) {
  const unsigned char* bottom = stack(lane.index);
  bool over = static_cast<const unsigned char*>(__builtin_frame_address(0)) < bottom + 8 * kCanaryWords;
  for (size_t i = 0; i < kCanaryWords; i += 8) over |= memcmp(bottom + 8 * i, &kCanary, 8) != 0;
  if (over) {
    report(&lane, context.site, format("stack overflow: a thread has %zu bytes for its variables", kStackBytes));
    lane.fiber.switch_to(scheduler_);
    __builtin_unreachable();
  }
}

void Block::deadlock() {
  // Threads that wait for the same thing, in the order of their first.
  std::vector<std::pair<std::string, std::vector<uint32_t>>> groups;
  for (uint32_t t = 0; t < launch_->threads; ++t) {
    const Lane& lane = lanes_[t];
    std::string wait;
    if (lane.exited) {
      wait = "exited";
    } else if (lane.mbarrier >= 0) {
      wait = engine_.wait_of(lane) + ", " + place(lane.met).chars;
    } else if (lane.barrier >= 0) {
      const Barrier& b = barriers_[lane.barrier];
      wait = format("at barrier %d, where %d of %d threads arrived, %s", lane.barrier, b.arrived, b.expected,
                    place(lane.met).chars);
    } else {
      const Meeting& m = warps_[t / kWarp].meetings[lane.meeting];
      wait = format("warp %u in %s with mask %08x, where lanes %s arrived, %s", t / kWarp, m.operation->name, m.mask,
                    lanes_of(m.arrived).chars, place(lane.met).chars);
    }
    auto same = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.first == wait; });
    if (same == groups.end()) same = groups.insert(groups.end(), {wait, {}});
    same->second.push_back(t);
  }
  std::string text = "deadlock: nobody can run";
  for (const auto& g : groups) text += "\n  threads " + ranges(g.second) + ": " + g.first;
  report(nullptr, {}, text);
}

// -- what kernels call --------------------------------------------------------------------------

void fail(Site site, const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  Block::running().fail(site, text);
}

void preempt() { Block::running().preempt(); }

int barrier(const char* name, int id, int threads, bool wait, bool vote, Site site) {
  return Block::running().arrive(name, id, threads, wait, vote, site);
}

void meet(const Operation& operation, uint32_t mask, void* args, Site site) {
  Block::running().meet(operation, mask, args, site);
}

}  // namespace simt
