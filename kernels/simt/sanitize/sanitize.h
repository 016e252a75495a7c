// What the drivers share: buffers, numbers, a launch.
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>
#include <memory>

#include "../number.h"
#include "../simt.h"

namespace sanitize {

// Under AddressSanitizer a buffer is a heap block of the exact size, so that it knows where one ends.
// Else it is the device that knows, and buffers stand apart: an access past one must not hit the next.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kExact = true;
#else
constexpr bool kExact = false;
#endif

// Starts as 0xff bytes: NaN as any float, -1 as an integer.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes), data_(malloc(bytes + (kExact ? 0 : 4096)), free) { memset(data_.get(), 0xff, bytes); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }
  uint64_t address() const { return reinterpret_cast<uint64_t>(data_.get()); }
  SimtSpan span(bool writable) const { return {address(), bytes_, writable, 0}; }

 private:
  size_t bytes_;
  std::unique_ptr<void, void (*)(void*)> data_;
};

// Runs a kernel; false where it did not run to its end, and the device's report goes to stderr. Under
// AddressSanitizer the device gets no spans: then it is the sanitizer that says what may be touched.
template <class Params>
bool launch(const char* kernel, const Params& params, uint32_t x, uint32_t y, uint32_t z, uint32_t threads,
            uint32_t shared_bytes, std::initializer_list<SimtSpan> spans, uint64_t seed, bool in_order = false) {
  const size_t span_count = kExact ? 0 : spans.size();
  const uint32_t grid[3] = {x, y, z};
  SimtOptions options = {};
  options.seed = seed;
  options.copies = static_cast<uint32_t>(seed % 3);
  options.threads = 1;
  options.in_order = in_order;
  char report[2048];
  int code = simt_launch(kernel, &params, sizeof params, grid, threads, shared_bytes, spans.begin(), span_count,
                         &options, report, sizeof report);
  if (code != SIMT_OK) fprintf(stderr, "device: %s\n", report);
  return code == SIMT_OK;
}

}  // namespace sanitize
