#include "wgmma.h"

#include <string.h>

#include <algorithm>

#include "block.h"
#include "number.h"
#include "swizzle.h"

namespace simt {

namespace {

constexpr int kRows = 16;  // of a warp
constexpr int kDepth = 16;
constexpr int kMaxColumns = 256;

// Element i of a lane's accumulators (four for every eight columns), and of its registers of a.
constexpr int d_row(int lane, int i) { return lane / 4 + 8 * (i / 2 % 2); }
constexpr int d_column(int lane, int i) { return 8 * (i / 4) + 2 * (lane % 4) + i % 2; }
constexpr int a_row(int lane, int i) { return lane / 4 + 8 * (i / 2 % 2); }
constexpr int a_column(int lane, int i) { return 2 * (lane % 4) + i % 2 + 8 * (i / 4); }

// A matrix in shared memory: 16-byte units of eight elements that follow each other along k (or along the
// other side, where it lies transposed).
struct Descriptor {
  uint32_t start, leading, stride, base, swizzle;
  explicit Descriptor(uint64_t bits)
      : start(static_cast<uint32_t>(bits & 0x3fff) << 4),
        leading(static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4),
        stride(static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4),
        base(static_cast<uint32_t>(bits >> 49 & 7)) {
    constexpr uint32_t spans[] = {0, 128, 64, 32};
    swizzle = spans[bits >> 62];
  }
  // Rows along k: the address of the unit of row `mn`, columns 8 u to 8 u + 7, before the swizzle.
  uint32_t row_unit(uint32_t mn, uint32_t u) const {
    if (swizzle == 0) return start + mn / 8 * stride + u * leading + mn % 8 * 16;
    return start + mn / 8 * stride + mn % 8 * swizzle + u * 16;
  }
  // Transposed: of row `k`, columns 8 u to 8 u + 7.
  uint32_t column_unit(uint32_t k, uint32_t u) const {
    if (swizzle == 0) return start + u * stride + k / 8 * leading + k % 8 * 16;
    const uint32_t units = swizzle / 16;
    return start + u / units * leading + k / 8 * stride + k % 8 * swizzle + u % units * 16;
  }
};

// Reads units by the asynchronous proxy; tells of the first that it must not read.
class Reader {
 public:
  Reader(Block& block, const Descriptor& descriptor, const char* operand, Site site)
      : block_(block), descriptor_(descriptor), operand_(operand), site_(site) {
    if (descriptor.base != 0) complain("a base offset, which this device does not take");
    if (descriptor.start % 16 != 0) complain("a misaligned address");
  }
  void read(uint32_t address, uint16_t (&to)[8]) {
    const uint32_t place = swizzled(address, descriptor_.swizzle);
    memset(to, kPoison, 16);
    if (place < Arena::kBase || place + 16 > Arena::kBase + block_.arena().bytes())
      return complain("bytes outside of shared memory");
    const uint32_t offset = place - Arena::kBase;
    if (int t = block_.proxies().unordered(offset, 16); t >= 0) {
      char text[160];
      snprintf(text, sizeof text, "bytes that thread %d wrote, and no fence_proxy_async orders the two", t);
      return complain(text);
    }
    memcpy(to, block_.arena().data() + offset, 16);
  }

 private:
  void complain(const char* what) {
    if (told_) return;
    told_ = true;
    char text[240];
    snprintf(text, sizeof text, "wgmma reads %s: %s (start %ld, leading %u, stride %u, swizzle %u)", operand_, what,
             static_cast<long>(descriptor_.start) - static_cast<long>(Arena::kBase), descriptor_.leading,
             descriptor_.stride, descriptor_.swizzle);
    block_.report_at(site_, text);
  }
  Block& block_;
  const Descriptor& descriptor_;
  const char* operand_;
  Site site_;
  bool told_ = false;
};

float to_float(bool half, uint16_t bits) { return half ? float_from_half(bits) : float_from_bfloat(bits); }

}  // namespace

void WarpProducts::reset() {
  jobs_.clear();
  accumulators_.clear();
  groups_ = 0;
  issued_ = 0;
  fenced_ = false;
}

// Whole stacks, with the places between variables that AddressSanitizer forbids.
__attribute__((no_sanitize("address"))) static void copy_words(const unsigned char* from, unsigned char* to, size_t bytes) {
  const volatile uint64_t* words = reinterpret_cast<const volatile uint64_t*>(from);
  for (size_t i = 0; i < bytes / 8; ++i) {
    const uint64_t word = words[i];
    memcpy(to + 8 * i, &word, 8);
  }
}

void WarpProducts::fence(Block& block, uint32_t warp, void* const* args) {
  fenced_ = true;
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    Held& held = held_[lane];
    held.from = static_cast<const unsigned char*>(args[lane]);
    held.bytes.resize(static_cast<size_t>(block.stack_end(kWarp * warp + lane) - held.from) & ~size_t{7});
    copy_words(held.from, held.bytes.data(), held.bytes.size());
  }
}

bool WarpProducts::Held::same(const uint32_t* registers) const {
  const auto at = reinterpret_cast<const unsigned char*>(registers) - from;
  return at >= 0 && static_cast<size_t>(at) + 16 <= bytes.size() && memcmp(registers, bytes.data() + at, 16) == 0;
}

WarpProducts::Accumulators* WarpProducts::find(const Product& product) {
  for (auto& a : accumulators_)
    if (a->d[0] == product.d) return a.get();
  return nullptr;
}

void WarpProducts::issue(Block& block, uint32_t warp, void* const* args) {
  const Product& product = *static_cast<Product*>(args[0]);
  const Site site = context.site;
  for (int lane = 1; lane < kWarp; ++lane) {
    const Product& other = *static_cast<Product*>(args[lane]);
    if (other.a_rows != product.a_rows || other.b_rows != product.b_rows || other.add != product.add)
      fail(site, "wgmma: lanes 0 and %d do not agree on descriptors", lane);
  }
  if (!block.group_log(warp / 4).agrees(issued_++, product, site))
    fail(site, "wgmma: the warps of a warpgroup do not issue the same products");
  Accumulators* into = find(product);
  if (!into) {
    if (!fenced_) fail(site, "wgmma: no wgmma_fence since its registers were last waited for");
    auto fresh = std::make_unique<Accumulators>();
    fresh->columns = product.columns;
    fresh->values.resize(static_cast<size_t>(kRows * product.columns));
    for (int lane = 0; lane < kWarp; ++lane) {
      float* d = fresh->d[lane] = static_cast<Product*>(args[lane])->d;
      for (int i = 0; i < product.columns / 2; ++i)
        fresh->values[static_cast<size_t>(d_row(lane, i) * product.columns + d_column(lane, i))] = d[i];
      memset(d, kPoison, static_cast<size_t>(product.columns / 2) * sizeof *d);
    }
    into = fresh.get();
    accumulators_.push_back(std::move(fresh));
  } else if (into->columns != product.columns) {
    fail(site, "wgmma: accumulators under way in a product of another shape");
  }
  for (int lane = 0; product.a && lane < kWarp; ++lane) {
    if (!held_[lane].same(static_cast<Product*>(args[lane])->a))
      fail(site, "wgmma: lane %d wrote to a's registers, and no wgmma_fence stands between", lane);
  }
  into->group = groups_;
  Job job{groups_, product, {}, into, site};
  for (int lane = 0; lane < kWarp; ++lane) job.a[lane] = static_cast<Product*>(args[lane])->a;
  jobs_.push_back(job);
  const uint32_t when = block.launch().options.copies;
  while (!jobs_.empty() && (when == SIMT_COPIES_EARLY || (when == SIMT_COPIES_RANDOM && block.random().below(4) == 0)))
    land(block, warp);
}

void WarpProducts::land(Block& block, uint32_t warp) {
  const Job job = jobs_.front();
  jobs_.pop_front();
  const Product& p = job.product;
  const int columns = p.columns;

  float a[kRows][kDepth];
  if (job.a[0]) {
    for (int lane = 0; lane < kWarp; ++lane) {
      uint16_t bits[8];
      memcpy(bits, job.a[lane], 16);
      for (int i = 0; i < 8; ++i) a[a_row(lane, i)][a_column(lane, i)] = to_float(p.half, bits[i]);
    }
  } else {
    const Descriptor rows(p.a_rows);
    Reader reader(block, rows, "a", job.site);
    for (uint32_t r = 0; r < kRows; ++r) {
      for (uint32_t u = 0; u < 2; ++u) {
        uint16_t bits[8];
        reader.read(rows.row_unit(16 * (warp % 4) + r, u), bits);
        for (uint32_t i = 0; i < 8; ++i) a[r][8 * u + i] = to_float(p.half, bits[i]);
      }
    }
  }

  alignas(16) float b[kDepth][kMaxColumns];
  const Descriptor rows(p.b_rows);
  Reader reader(block, rows, "b", job.site);
  uint16_t bits[8];
  if (p.transposed) {
    for (uint32_t k = 0; k < kDepth; ++k) {
      for (uint32_t u = 0; u < static_cast<uint32_t>(columns) / 8; ++u) {
        reader.read(rows.column_unit(k, u), bits);
        for (uint32_t i = 0; i < 8; ++i) b[k][8 * u + i] = to_float(p.half, bits[i]);
      }
    }
  } else {
    for (uint32_t n = 0; n < static_cast<uint32_t>(columns); ++n) {
      for (uint32_t u = 0; u < 2; ++u) {
        reader.read(rows.row_unit(n, u), bits);
        for (uint32_t i = 0; i < 8; ++i) b[8 * u + i][n] = to_float(p.half, bits[i]);
      }
    }
  }

  typedef float Float8 __attribute__((vector_size(32), aligned(4)));
  for (int row = 0; row < kRows; ++row) {
    float* d = job.accumulators->values.data() + row * columns;
    for (int n = 0; n < columns; n += 8) {
      Float8 sum = {};
      for (int k = 0; k < kDepth; ++k) {
        Float8 x;
        memcpy(&x, &b[k][n], sizeof x);
        sum += a[row][k] * x;
      }
      for (int i = 0; i < 8; ++i) d[n + i] = p.add ? d[n + i] + sum[i] : sum[i];
    }
  }
}

void WarpProducts::wait(Block& block, uint32_t warp, int pending, Site site) {
  while (!jobs_.empty() && jobs_.front().group + static_cast<uint32_t>(pending) < groups_) land(block, warp);
  for (size_t i = 0; i < accumulators_.size();) {
    Accumulators& done = *accumulators_[i];
    if (done.group + static_cast<uint32_t>(pending) >= groups_) {
      ++i;
      continue;
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int e = 0; e < done.columns / 2; ++e) {
        float& d = done.d[lane][e];
        const uint32_t poison = 0xffffffffu;
        if (memcmp(&d, &poison, 4) != 0)
          fail(site, "wgmma: lane %d wrote to accumulator %d while a product was under way", lane, e);
        d = done.values[static_cast<size_t>(d_row(lane, e) * done.columns + d_column(lane, e))];
      }
    }
    accumulators_.erase(accumulators_.begin() + static_cast<long>(i));
    fenced_ = false;
  }
}

bool GroupLog::agrees(size_t n, const Product& product, Site site) {
  const Entry entry{site, product.a_rows, product.b_rows, product.columns, product.add};
  if (n == products_.size()) {
    products_.push_back(entry);
    return true;
  }
  const Entry& e = products_[n];
  return e.site == site && e.a == entry.a && e.b == entry.b && e.columns == entry.columns && e.add == entry.add;
}

// -- what kernels call --------------------------------------------------------------------------

namespace {

uint32_t running_warp() { return context.thread_index.x / kWarp; }

}  // namespace

const Operation wgmma_issue = {"wgmma_m64k16", [](uint32_t, void* const* args) {
                                 Block& block = Block::running();
                                 Unseen device;
                                 const uint32_t warp = running_warp();
                                 block.products(warp).issue(block, warp, args);
                               }};
const Operation wgmma_fence_all = {"wgmma_fence", [](uint32_t, void* const* args) {
                                     Block& block = Block::running();
                                     Unseen device;
                                     const uint32_t warp = running_warp();
                                     block.products(warp).fence(block, warp, args);
                                   }};
const Operation wgmma_commit_group = {"wgmma_commit", [](uint32_t, void* const*) {
                                        Block::running().products(running_warp()).commit();
                                      }};
const Operation wgmma_wait_group = {"wgmma_wait", [](uint32_t, void* const* args) {
                                      Block& block = Block::running();
                                      Unseen device;
                                      const uint32_t warp = running_warp();
                                      block.products(warp).wait(block, warp, *static_cast<int*>(args[0]), context.site);
                                    }};

// The callers' variables lie above this function's frame.
__attribute__((noinline)) void fence_products(Site site) {
  meet(wgmma_fence_all, kFullWarp, __builtin_frame_address(0), site);
}

void set_registers(int registers, bool more, Site site) { Block::running().set_registers(registers, more, site); }

}  // namespace simt
