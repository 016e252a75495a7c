#include "engine.h"

#include <stdio.h>
#include <string.h>

#include <algorithm>

#include "block.h"
#include "swizzle.h"

namespace simt {

namespace {

// What eight bytes of an mbarrier hold: nobody else writes this.
uint64_t seal(uint32_t offset) { return 0xba221e2000000000u | offset; }

const char* plural(long long n) { return n == 1 ? "" : "s"; }

}  // namespace

void CopyEngine::reset() {
  barriers_.clear();
  jobs_.clear();
}

bool CopyEngine::is_mbarrier(uint32_t offset) const {
  return std::any_of(barriers_.begin(), barriers_.end(), [&](const Mbarrier& b) { return b.offset / 16 == offset / 16; });
}

Mbarrier& CopyEngine::find(Block& block, uint32_t offset, Site site) {
  for (Mbarrier& b : barriers_) {
    if (b.offset != offset) continue;
    uint64_t holds;
    memcpy(&holds, block.arena().data() + offset, 8);
    if (holds != seal(offset)) fail(site, "the mbarrier at byte %u of shared memory was overwritten", offset);
    b.site = site;
    return b;
  }
  fail(site, "byte %u of shared memory is no mbarrier", offset);
}

void CopyEngine::init(Block& block, uint32_t offset, int arrivals, Site site) {
  if (arrivals < 1 || arrivals >= 1 << 20) fail(site, "mbarrier_init: %d arrivals", arrivals);
  for (const Mbarrier& b : barriers_)
    if (b.offset == offset) fail(site, "mbarrier_init: there is an mbarrier at byte %u already", offset);
  const uint64_t bits = seal(offset);
  memcpy(block.arena().data() + offset, &bits, 8);
  block.proxies().write(block.lane().index, offset, 8);
  Unseen device;
  Mbarrier b;
  b.offset = offset;
  b.count = b.pending = arrivals;
  b.site = site;
  b.mark = block.marks().make();
  b.ended = block.marks().make();
  barriers_.push_back(b);
}

// Ends the phase where nothing more is to come.
void CopyEngine::settle(Block& block, Mbarrier& b) {
  if (b.pending > 0 || b.bytes > 0) return;
  Unseen device;
  b.pending = b.count;
  ++b.phase;
  b.ended = b.mark;
  b.mark = block.marks().make();
  for (Lane* lane : b.waiting) block.wake(*lane);
  b.waiting.clear();
}

void CopyEngine::arrive(Block& block, uint32_t offset, long long bytes, Site site) {
  Mbarrier& b = find(block, offset, site);
  if (bytes < 0 || bytes >= 1 << 20) fail(site, "an mbarrier is to expect %lld bytes", bytes);
  b.bytes += bytes;
  --b.pending;
  b.mark->leave();
  if (b.pending == 0 && b.bytes < 0)
    fail(site, "%lld byte%s more landed than the mbarrier at byte %u expects", -b.bytes, plural(-b.bytes), offset);
  settle(block, b);
}

void CopyEngine::wait(Block& block, uint32_t offset, uint32_t parity, Site site) {
  if (parity > 1) fail(site, "mbarrier_try_wait: parity %u", parity);
  for (;;) {
    Mbarrier& b = find(block, offset, site);
    if ((b.phase & 1) != parity) {
      b.ended->take();
      return;
    }
    {
      Unseen device;
      b.waiting.push_back(&block.lane());
    }
    block.sleep_at(static_cast<int>(&b - barriers_.data()), site);
  }
}

void CopyEngine::copy(Block& block, uint32_t offset, const void* map_at, uint32_t barrier, const int* at, int rank,
                      Site site) {
  SimtTensorMap map;
  memcpy(&map, map_at, sizeof map);
  if (map.magic != SIMT_TENSOR_MAP) fail(site, "tma_load: the map was not made for this device");
  if (static_cast<int>(map.rank) != rank) fail(site, "tma_load: %d coordinates for a map of %u", rank, map.rank);
  Mbarrier& b = find(block, barrier, site);
  if (int t = block.proxies().unordered(barrier, 8); t >= 0)
    fail(site, "tma_load: thread %d made its mbarrier, and no fence_mbarrier_init shows it to the copy engine", t);
  const uint32_t inner = map.box[0] * map.element_bytes;
  uint32_t rows = 1;
  for (uint32_t d = 1; d < map.rank; ++d) rows *= map.box[d];
  const uint32_t bytes = rows * inner;
  if (offset % 128 != 0) fail(site, "tma_load: byte %u of shared memory is not a multiple of 128", offset);
  if (offset + uint64_t{bytes} > block.arena().bytes())
    fail(site, "tma_load: %u bytes to byte %u of shared memory, which has %u", bytes, offset, block.arena().bytes());
  // An H200 (driver 580) answered such with "illegal instruction".
  if (at[0] * static_cast<long long>(map.element_bytes) % 16 != 0)
    fail(site, "tma_load: column %d of %u-byte elements is not on a multiple of 16 bytes", at[0], map.element_bytes);
  if (int t = block.proxies().unordered(offset, bytes); t >= 0)
    fail(site, "tma_load: thread %d wrote to where the box goes, and no fence_proxy_async orders the two", t);

  Job job{static_cast<size_t>(&b - barriers_.data()), map.swizzle, inner, bytes, site, {}};
  const auto from = reinterpret_cast<const unsigned char*>(map.address);
  for (uint32_t r = 0; r < rows; ++r) {
    Row row{offset + r * inner, from, 0, 0};
    bool inside = true;
    for (uint32_t d = 1, rest = r; d < map.rank; rest /= map.box[d++]) {
      const long long i = at[d] + static_cast<long long>(rest % map.box[d]);
      inside &= i >= 0 && i < map.dim[d];
      row.from += i * static_cast<long long>(map.stride[d - 1]);
    }
    const long long first = std::max<long long>(0, at[0]);
    const long long end = std::min<long long>(map.dim[0], at[0] + static_cast<long long>(map.box[0]));
    if (!inside || first >= end) {
      row.from = nullptr;
    } else {
      row.before = static_cast<uint32_t>(first - at[0]) * map.element_bytes;
      row.from += first * map.element_bytes;
      row.bytes = static_cast<uint32_t>(end - first) * map.element_bytes;
      check_global(row.from, row.bytes, map.element_bytes, false, site);
    }
    job.rows.push_back(row);
  }
  // ThreadSanitizer is told of the box as a write where it is issued, before what the barrier orders.
  seen_write(block.arena().data() + offset, bytes);
  b.mark->leave();
  Unseen device;
  memset(block.arena().data() + offset, kPoison, bytes);
  jobs_.push_back(std::move(job));
  const uint32_t when = block.launch().options.copies;
  if (when == SIMT_COPIES_EARLY || (when == SIMT_COPIES_RANDOM && block.random().below(4) == 0))
    land(block, jobs_.size() - 1);
}

void CopyEngine::land(Block& block, size_t i) {
  Unseen device;
  const Job job = std::move(jobs_[i]);
  jobs_.erase(jobs_.begin() + static_cast<long>(i));
  unsigned char* arena = block.arena().data();
  for (const Row& row : job.rows) {
    for (uint32_t byte = 0; byte < job.row_bytes; byte += 16) {
      unsigned char chunk[16] = {};
      for (uint32_t j = 0; j < 16; ++j) {
        const uint32_t k = byte + j - row.before;
        if (row.from && byte + j >= row.before && k < row.bytes) chunk[j] = row.from[k];
      }
      memcpy(arena + swizzled(row.to + byte, job.swizzle), chunk, 16);
    }
  }
  Mbarrier& b = barriers_[job.barrier];
  b.bytes -= job.bytes;
  if (b.pending == 0 && b.bytes < 0) {
    char text[160];
    snprintf(text, sizeof text, "%lld byte%s more landed than the mbarrier at byte %u expects", -b.bytes,
             plural(-b.bytes), b.offset);
    block.report_at(job.site, text);
    return;
  }
  settle(block, b);
}

std::string CopyEngine::left() const {
  char text[160] = "";
  if (!jobs_.empty()) {
    snprintf(text, sizeof text, "%zu box%s under way when the block ended", jobs_.size(),
             jobs_.size() == 1 ? " was" : "es were");
    return text;
  }
  for (const Mbarrier& b : barriers_) {
    if (b.bytes > 0)
      snprintf(text, sizeof text, "the mbarrier at byte %u waits for %lld bytes that never came", b.offset, b.bytes);
    if (b.bytes < 0)
      snprintf(text, sizeof text, "%lld byte%s more landed than the mbarrier at byte %u expects", -b.bytes,
               plural(-b.bytes), b.offset);
  }
  return text;
}

std::string CopyEngine::wait_of(const Lane& lane) const {
  const Mbarrier& b = barriers_[static_cast<size_t>(lane.mbarrier)];
  char text[200];
  snprintf(text, sizeof text, "at the mbarrier at byte %u, phase %u, which waits for %d of %d arrivals and %lld bytes",
           b.offset, b.phase, b.pending, b.count, b.bytes);
  return text;
}

// -- what kernels call --------------------------------------------------------------------------

namespace {

uint32_t shared_offset(const char* name, uint32_t address, uint32_t bytes, uint32_t alignment, Site site) {
  access_point();
  return static_cast<uint32_t>(shared_pointer(name, address, bytes, alignment, site) - Block::running().arena().data());
}

}  // namespace

void mbarrier_init(uint32_t barrier, int arrivals, Site site) {
  Block& block = Block::running();
  block.engine().init(block, shared_offset("mbarrier_init", barrier, 8, 8, site), arrivals, site);
}

void mbarrier_arrive(uint32_t barrier, long long bytes, Site site) {
  Block& block = Block::running();
  block.engine().arrive(block, shared_offset("mbarrier_arrive", barrier, 8, 8, site), bytes, site);
}

void mbarrier_wait(uint32_t barrier, uint32_t parity, Site site) {
  Block& block = Block::running();
  block.engine().wait(block, shared_offset("mbarrier_try_wait", barrier, 8, 8, site), parity, site);
}

void tensor_copy(uint32_t to_shared, const void* map, uint32_t barrier, const int* at, int rank, Site site) {
  Block& block = Block::running();
  const uint32_t to = shared_offset("tma_load", to_shared, 16, 16, site);
  block.engine().copy(block, to, map, shared_offset("tma_load", barrier, 8, 8, site), at, rank, site);
}

void fence_mbarriers() {
  Block& block = Block::running();
  Unseen device;
  block.proxies().fence(block.lane().index, [&](uint32_t offset) { return block.engine().is_mbarrier(offset); });
}

void fence_proxy() {
  Block& block = Block::running();
  Unseen device;
  block.proxies().fence(block.lane().index, [](uint32_t) { return true; });
}

void generic_write(const void* p, uint32_t bytes, Site site) {
  context.site = site;
  access_point();
  Block& block = Block::running();
  const uint64_t address = reinterpret_cast<uint64_t>(p);
  if (!context.shared.holds(address, bytes)) fail(site, "store_shared: not shared memory");
  if (address % (bytes < 16 ? bytes : 16) != 0) misaligned(address, bytes, true, site);
  block.proxies().write(block.lane().index, static_cast<uint32_t>(address - context.shared.begin), bytes);
}

// -- proxies ------------------------------------------------------------------------------------

void Proxies::reset(uint32_t threads) {
  if (written_.size() < threads) written_.resize(threads);
  for (std::vector<uint32_t>& places : written_) {
    for (uint32_t place : places) writer_[place] = 0;
    places.clear();
  }
}

void Proxies::write(uint32_t t, uint32_t offset, uint32_t bytes) {
  Unseen device;
  for (uint32_t place = offset / kUnit; place <= (offset + bytes - 1) / kUnit; ++place) {
    if (writer_[place] == t + 1) continue;
    writer_[place] = static_cast<uint16_t>(t + 1);
    written_[t].push_back(place);
  }
}

}  // namespace simt
