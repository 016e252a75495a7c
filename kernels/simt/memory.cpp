#include "memory.h"

#include <string.h>

#include <algorithm>

#include "block.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace simt {

namespace {

constexpr unsigned char kRed = 0xfd;  // NaN too, and not what kernels write

// The first byte of the zone that is not red any more, or `bytes`.
[[maybe_unused]] uint32_t first_damage(const unsigned char* zone, uint32_t bytes) {
  if (zone[0] == kRed && memcmp(zone, zone + 1, bytes - 1) == 0) return bytes;
  uint32_t i = 0;
  while (i < bytes && zone[i] == kRed) ++i;
  return i;
}

}  // namespace

// -- spans --------------------------------------------------------------------------------------

SpanTable::SpanTable(const SimtSpan* spans, size_t count) {
  if (count == 0) return;
  spans_.assign(spans, spans + count);
  std::sort(spans_.begin(), spans_.end(), [](const SimtSpan& a, const SimtSpan& b) { return a.address < b.address; });
  uint64_t reach = 0;
  for (const SimtSpan& span : spans_) {
    reach = std::max(reach, span.address + span.bytes);
    reach_.push_back(reach);
  }
}

const SimtSpan* SpanTable::find(uint64_t address, uint64_t bytes, bool write) const {
  auto after = std::upper_bound(spans_.begin(), spans_.end(), address,
                                [](uint64_t a, const SimtSpan& span) { return a < span.address; });
  for (size_t i = after - spans_.begin(); i-- > 0 && reach_[i] > address;) {
    const SimtSpan& span = spans_[i];
    if (Range{span.address, span.address + span.bytes}.holds(address, bytes) && (span.writable || !write)) return &span;
  }
  return nullptr;
}

const SimtSpan* SpanTable::nearest(uint64_t address) const {
  const SimtSpan* best = nullptr;
  uint64_t best_distance = ~uint64_t{0};
  for (const SimtSpan& span : spans_) {
    uint64_t end = span.address + span.bytes;
    uint64_t distance = address < span.address ? span.address - address : address >= end ? address - end : 0;
    if (distance < best_distance) best = &span, best_distance = distance;
  }
  return best;
}

// -- arena --------------------------------------------------------------------------------------

Arena::Arena() : memory_(new unsigned char[1023 + kZoneBefore + kMaxSharedBytes + kZoneAfter]) {
  uintptr_t start = (reinterpret_cast<uintptr_t>(memory_.get()) + 1023) & ~uintptr_t{1023};
  data_ = reinterpret_cast<unsigned char*>(start) + kZoneBefore;
}

void Arena::reset(uint32_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(data_ - kZoneBefore, kZoneBefore + kMaxSharedBytes + kZoneAfter);
#endif
  bytes_ = bytes;
  memset(data_ - kZoneBefore, kRed, kZoneBefore);
  memset(data_, kPoison, bytes);
  memset(data_ + bytes, kRed, kZoneAfter);
#ifdef __SANITIZE_ADDRESS__
  __asan_poison_memory_region(data_ - kZoneBefore, kZoneBefore);
  __asan_poison_memory_region(data_ + bytes, kZoneAfter);
#endif
}

bool Arena::damaged(long* offset) const {
#ifdef __SANITIZE_ADDRESS__
  (void)offset;
  return false;  // who writes there is told at once
#else
  uint32_t after = first_damage(data_ + bytes_, kZoneAfter);
  uint32_t before = first_damage(data_ - kZoneBefore, kZoneBefore);
  if (after < kZoneAfter) {
    *offset = static_cast<long>(bytes_) + static_cast<long>(after);
    return true;
  }
  *offset = static_cast<long>(before) - static_cast<long>(kZoneBefore);
  return before < kZoneBefore;
#endif
}

// -- copies -------------------------------------------------------------------------------------

void CopyQueue::reset(Mark& done) {
  copies_.clear();
  groups_ = 0;
  history_.end(done);
}

void CopyQueue::issue(unsigned char* to, const void* from, uint32_t bytes, bool valid, void* pc) {
  history_.issue(to, from, bytes, valid, pc);
  Unseen device;
  memset(to, kPoison, bytes);
  copies_.push_back({to, from, bytes, groups_, valid});
}

void CopyQueue::commit() {
  history_.commit();
  ++groups_;
}

void CopyQueue::land(size_t i) {
  Unseen device;
  Copy copy = copies_[i];
  copies_.erase(copies_.begin() + static_cast<long>(i));
  if (copy.valid) {
    memcpy(copy.to, copy.from, copy.bytes);
  } else {
    memset(copy.to, 0, copy.bytes);
  }
}

void CopyQueue::wait(uint32_t pending) {
  // Copies stand in the order of their groups; the newest, uncommitted one is never waited for.
  while (!copies_.empty() && copies_.front().group + pending < groups_) land(0);
  history_.wait(pending);
}

// -- what kernels call --------------------------------------------------------------------------

void find_span(uint64_t address, uint32_t bytes, bool write, Site site) {
  Block& block = Block::running();
  const SpanTable& spans = block.launch().spans;
  if (spans.empty()) {
    context.readable = context.writable = {0, ~uint64_t{0}};
    return;
  }
  if (const SimtSpan* span = spans.find(address, bytes, write)) {
    Range& last = write ? context.writable : context.readable;
    last = {span->address, span->address + span->bytes};
    return;
  }
  const char* verb = write ? "write" : "read";
  const char* why = "";
  if (write && spans.find(address, bytes, false)) why = ", which is not writable";
  else if (context.shared.holds(address, 1)) why = ", which is shared memory";
  else why = ", out of range";
  const SimtSpan& span = *spans.nearest(address);
  long long from = static_cast<long long>(address - span.address);
  fail(site, "%s of %u bytes of global memory at 0x%llx%s: byte %lld of the nearest span, 0x%llx with %llu bytes", verb,
       bytes, static_cast<unsigned long long>(address), why, from, static_cast<unsigned long long>(span.address),
       static_cast<unsigned long long>(span.bytes));
}

void misaligned(uint64_t address, uint32_t bytes, bool write, Site site) {
  fail(site, "misaligned %s of %u bytes at 0x%llx", write ? "write" : "read", bytes,
       static_cast<unsigned long long>(address));
}

void* shared_plan(uint64_t bytes, uint64_t alignment, Site site) {
  Arena& arena = Block::running().arena();
  if (bytes > arena.bytes())
    fail(site, "a shared-memory plan of %llu bytes in a launch with %u", static_cast<unsigned long long>(bytes),
         arena.bytes());
  if (alignment > 1024)
    fail(site, "a shared-memory plan aligned to %llu bytes", static_cast<unsigned long long>(alignment));
  return arena.data();
}

void bad_index(long long index, int count, unsigned element_bytes) {
  fail(context.site, "index %lld of a shared array of %d elements of %u bytes (seen last at the line below)", index,
       count, element_bytes);
}

uint32_t shared_address(const void* p, Site site) {
  Arena& arena = Block::running().arena();
  uintptr_t offset = reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(arena.data());
  if (offset > arena.bytes()) fail(site, "the shared address of %p, which is not shared memory", p);
  return Arena::kBase + static_cast<uint32_t>(offset);
}

unsigned char* shared_pointer(const char* name, uint32_t address, uint32_t bytes, uint32_t alignment, Site site) {
  context.site = site;
  Arena& arena = Block::running().arena();
  if (address % alignment != 0)
    fail(site, "%s: misaligned shared address, byte %ld of shared memory (must be a multiple of %u)", name,
         static_cast<long>(address) - static_cast<long>(Arena::kBase), alignment);
  if (address < Arena::kBase || uint64_t{address} + bytes > uint64_t{Arena::kBase} + arena.bytes())
    fail(site, "%s: shared address out of range, byte %ld of %u", name,
         static_cast<long>(address) - static_cast<long>(Arena::kBase), arena.bytes());
  return arena.data() + (address - Arena::kBase);
}

void copy_async(uint32_t to_shared, const void* from_global, uint32_t bytes, bool valid, Site site) {
  unsigned char* to = shared_pointer("cp.async", to_shared, bytes, bytes, site);
  if (valid) check_global(from_global, bytes, bytes, false, site);
  Block& block = Block::running();
  CopyQueue& copies = block.lane().copies;
  copies.issue(to, from_global, bytes, valid, __builtin_return_address(0));
  uint32_t when = block.launch().options.copies;
  if (when == SIMT_COPIES_EARLY || (when == SIMT_COPIES_RANDOM && block.random().below(3) == 0)) copies.land_newest();
}

void commit_copies() { Block::running().lane().copies.commit(); }

void wait_for_copies(uint32_t pending_groups) { Block::running().lane().copies.wait(pending_groups); }

}  // namespace simt
