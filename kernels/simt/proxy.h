// The two ways into shared memory on sm_90: threads write it by the generic proxy, the copy engine and
// wgmma read it by the asynchronous one, and only a fence of the *writing* thread orders the two.
#pragma once

#include <memory>
#include <vector>

#include "device.h"
#include "memory.h"

namespace simt {

// Who wrote which 16 bytes of shared memory without a fence since.
class Proxies {
 public:
  void reset(uint32_t threads);
  // Thread `t` wrote `bytes` at `offset`.
  void write(uint32_t t, uint32_t offset, uint32_t bytes);
  // Thread `t` orders what it wrote so far; `only` (if not null) says of which places.
  template <class Only>
  void fence(uint32_t t, Only only) {
    std::vector<uint32_t>& places = written_[t];
    size_t kept = 0;
    for (uint32_t place : places) {
      if (!only(place * kUnit)) {
        places[kept++] = place;
      } else if (writer_[place] == t + 1) {
        writer_[place] = 0;
      }
    }
    places.resize(kept);
  }
  // The thread whose write to one of these bytes is not ordered, or -1.
  int unordered(uint32_t offset, uint32_t bytes) const {
    for (uint32_t place = offset / kUnit; place <= (offset + bytes - 1) / kUnit; ++place)
      if (__builtin_expect(writer_[place] != 0, 0)) return writer_[place] - 1;
    return -1;
  }

 private:
  static constexpr uint32_t kUnit = 16;
  static constexpr uint32_t kUnits = kMaxSharedBytes / kUnit + 1;
  std::unique_ptr<uint16_t[]> writer_{new uint16_t[kUnits]()};  // thread + 1, or 0
  std::vector<std::vector<uint32_t>> written_;                  // by each thread, not ordered
};

}  // namespace simt
