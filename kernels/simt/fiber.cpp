#include "fiber.h"

#include <stdint.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

// Who runs on this OS thread, and who ran before: a fiber that starts cannot know otherwise.
static __thread Fiber* running;
static __thread Fiber* previous;

#ifndef SIMT_FIBER_UCONTEXT

// Saves the registers that a call preserves under *save, then takes up the stack `load`. ucontext
// would also save the signal mask, by a system call: ten times as slow.
extern "C" void simt_switch_stack(void** save, void* load);
__asm__(R"(
.pushsection .text
.globl simt_switch_stack
.hidden simt_switch_stack
.type simt_switch_stack, @function
.p2align 4
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_stack, . - simt_switch_stack
.popsection
)");

#endif

void Fiber::prepare(unsigned char* stack, size_t bytes, void (*entry)(), const char* name) {
  stack_ = stack;
  bytes_ = bytes;
  entry_ = entry;
  sanitizer_stack_ = nullptr;
  history_.begin(name);
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack, bytes);  // left by a fiber that was dropped
#endif
#ifdef SIMT_FIBER_UCONTEXT
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, begin, 0);
#else
  // As simt_switch_stack leaves a stack: six registers, then the return address. `begin` finds its
  // stack pointer eight past a multiple of 16, as after a call.
  uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15};
  void** frame = reinterpret_cast<void**>(top) - 8;
  for (int i = 0; i < 8; ++i) frame[i] = nullptr;
  frame[6] = reinterpret_cast<void*>(&begin);
  stack_pointer_ = frame;
#endif
}

void Fiber::switch_to(Fiber& next) {
  previous = this;
  running = &next;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&sanitizer_stack_, next.stack_, next.bytes_);
#endif
  if (!entry_) history_.be_current();  // an OS thread, and not always the same one
  next.history_.enter();
#ifdef SIMT_FIBER_UCONTEXT
  swapcontext(&context_, &next.context_);
#else
  simt_switch_stack(&stack_pointer_, next.stack_pointer_);
#endif
  arrive(this);
}

void Fiber::begin() {
  arrive(running);
  running->entry_();
  __builtin_unreachable();
}

void Fiber::arrive(Fiber* now) {
#ifdef __SANITIZE_ADDRESS__
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(now->sanitizer_stack_, &bottom, &bytes);
  if (!previous->stack_) {  // the OS thread's own stack, whose place is learnt here
    previous->stack_ = static_cast<unsigned char*>(const_cast<void*>(bottom));
    previous->bytes_ = bytes;
  }
#else
  (void)now;
#endif
}

}  // namespace simt
