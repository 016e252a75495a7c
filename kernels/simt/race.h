// What ThreadSanitizer is told, in a build with SIMT_RACES; nothing happens in any other.
//
// It sees the accesses of the kernels, which are compiled with -fsanitize=thread, and must learn what
// CUDA promises about their order. The device's own files are compiled without: fibers share its state
// by taking turns, which would look like races, and each promise is spelled out here instead.
//
// A history is one CUDA thread as ThreadSanitizer sees it; a mark is what orders two of them. Nothing
// else does: not the switch between fibers, not the scheduler, not that blocks follow each other.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef SIMT_RACES
#include <sanitizer/tsan_interface.h>

#include <deque>
#include <memory>

extern "C" {
void __tsan_ignore_thread_begin();
void __tsan_ignore_thread_end();
void __tsan_read_range_pc(void* from, unsigned long bytes, void* pc);
void __tsan_write_range_pc(void* to, unsigned long bytes, void* pc);
}
#endif

namespace simt {

#ifdef SIMT_RACES

constexpr bool kSeesRaces = true;

// Who takes a mark comes after everyone who left it. One for each *generation* of a barrier: with one
// a barrier, a thread that is slow to go on would take what a faster one left at the next barrier too,
// and seem to come after what it races with.
class Mark {
 public:
  void leave() { __tsan_release(&place_); }
  void take() { __tsan_acquire(&place_); }

 private:
  uint64_t place_ = 0;
};

// A block's marks. They are as new as the block: where a mark is made in memory that had one, what was
// left there is forgotten, because that memory was freed in between.
class Marks {
 public:
  Mark* make() {
    marks_.emplace_back();
    return &marks_.back();
  }

 private:
  std::deque<Mark> marks_;
};

// What the calling fiber does is not seen while this lives: the device's work on its behalf. (Memory
// that is allocated meanwhile begins without a past.)
class Unseen {
 public:
  Unseen() { __tsan_ignore_thread_begin(); }
  ~Unseen() { __tsan_ignore_thread_end(); }
  Unseen(const Unseen&) = delete;
  Unseen& operator=(const Unseen&) = delete;
};

class History {
 public:
  // Begins after everything that the caller knows of.
  void begin(const char* name) {
    end();
    fiber_ = __tsan_create_fiber(0);
    __tsan_set_fiber_name(fiber_, name);
    owned_ = true;
  }
  void end() {
    if (owned_) __tsan_destroy_fiber(fiber_);
    forget();
  }
  // Of a fiber that was dropped: it may not be ended in the middle of something.
  void forget() {
    fiber_ = nullptr;
    owned_ = false;
  }
  bool begun() const { return owned_; }
  void be_current() { fiber_ = __tsan_get_current_fiber(); }
  void enter() const { __tsan_switch_to_fiber(fiber_, __tsan_switch_to_fiber_no_sync); }
  // Leaves a mark in this history's name.
  void leave(Mark& mark) const {
    if (!fiber_) return;
    History caller;
    caller.be_current();
    enter();
    mark.leave();
    caller.enter();
  }

 private:
  void* fiber_ = nullptr;
  bool owned_ = false;
};

// A thread's copies under way are a history of their own. It begins where the copy is issued, and the
// thread takes it up where it waits for the group: before that, and without a barrier after it, whoever
// touches the copy's target, or writes to its source, races with it, whenever the copy really lands.
class CopyHistory {
 public:
  void issue(void* to, const void* from, uint32_t bytes, bool valid, void* pc) {
    History thread;
    thread.be_current();
    if (!agent_.begun()) {
      Unseen device;
      issued_.reset(new Mark);
      agent_.begin("asynchronous copies");
    }
    issued_->leave();
    agent_.enter();
    issued_->take();
    if (valid) __tsan_read_range_pc(const_cast<void*>(from), bytes, pc);
    __tsan_write_range_pc(to, bytes, pc);
    thread.enter();
  }
  void commit() {
    Unseen device;
    groups_.emplace_back();
    agent_.leave(groups_.back());
  }
  void wait(uint32_t pending) {
    if (groups_.size() > pending) groups_[groups_.size() - 1 - pending].take();
  }
  // What was never waited for lands at the end of the launch, whose mark this is.
  void end(Mark& done) {
    agent_.leave(done);
    agent_.end();
    issued_.reset();
    groups_ = {};
  }

 private:
  History agent_;
  std::unique_ptr<Mark> issued_;  // left by the thread alone
  std::deque<Mark> groups_;       // committed
};

// A read that the device does for the calling thread.
inline void seen_read(const void* p, uint32_t bytes) {
  __tsan_read_range_pc(const_cast<void*>(p), bytes, __builtin_return_address(0));
}
inline void seen_write(void* p, uint32_t bytes) { __tsan_write_range_pc(p, bytes, __builtin_return_address(0)); }

#else

constexpr bool kSeesRaces = false;

struct Mark {
  void leave() {}
  void take() {}
};
struct Marks {
  Mark none;
  Mark* make() { return &none; }
};
struct Unseen {
  Unseen() {}
  ~Unseen() {}
};
struct History {
  void begin(const char*) {}
  void end() {}
  void forget() {}
  void be_current() {}
  void enter() const {}
  void leave(Mark&) const {}
};
struct CopyHistory {
  void issue(void*, const void*, uint32_t, bool, void*) {}
  void commit() {}
  void wait(uint32_t) {}
  void end(Mark&) {}
};
inline void seen_read(const void*, uint32_t) {}
inline void seen_write(void*, uint32_t) {}

#endif

}  // namespace simt
