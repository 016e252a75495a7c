// A fiber: a stack of its own and the place where its execution stands.
//
// All switches between stacks go through `Fiber::switch_to`; that is the one place that tells a
// sanitizer about them.
#pragma once

#include <stddef.h>

#include "race.h"

#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
#define SIMT_FIBER_UCONTEXT 1
#include <ucontext.h>
#endif

namespace simt {

class Fiber {
 public:
  // Makes the fiber start at `entry`, which must never return, on the given stack. A fiber that was
  // not prepared stands for the OS thread that first switches away from it.
  void prepare(unsigned char* stack, size_t bytes, void (*entry)(), const char* name);

  // The fiber has done its work, or was dropped (`done` says which): what it did is left in `mark`.
  void end(Mark& mark, bool done) {
    history_.leave(mark);
    done ? history_.end() : history_.forget();
  }

  // Goes on with `next`; returns when someone switches back to this fiber, which must be the
  // running one. A fiber that nobody switches back to is simply dropped: no destructors run.
  void switch_to(Fiber& next);

 private:
  static void begin();
  static void arrive(Fiber* now);

  unsigned char* stack_ = nullptr;
  size_t bytes_ = 0;
  void (*entry_)() = nullptr;
  void* sanitizer_stack_ = nullptr;
  History history_;
#ifdef SIMT_FIBER_UCONTEXT
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
};

}  // namespace simt
