// How the copy engine and wgmma swap the 16-byte chunks of shared memory: bits of an address from 4 on are
// xored with those from 7 on. Offsets do as addresses: shared memory starts at a multiple of 1024.
#pragma once

#include <stdint.h>

namespace simt {

// `span`: 0, 32, 64 or 128 bytes.
inline uint32_t swizzled(uint32_t offset, uint32_t span) {
  const uint32_t bits = span == 128 ? 7 : span == 64 ? 3 : span == 32 ? 1 : 0;
  return offset ^ ((offset >> 7 & bits) << 4);
}

}  // namespace simt
