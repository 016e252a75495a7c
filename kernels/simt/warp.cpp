// What the lanes of a warp compute together. Each operation is one function that sees all lanes.

#include <string.h>

#include "device.h"
#include "number.h"

namespace simt {

namespace {

constexpr int kLanes = 32;

template <class Args, class Each>
inline void for_lanes(uint32_t mask, void* const* args, Each each) {
  for (; mask; mask &= mask - 1) {
    int lane = __builtin_ctz(mask);
    each(lane, *static_cast<Args*>(args[lane]));
  }
}

// -- shuffles, votes, reductions ----------------------------------------------------------------

void run_shuffle(uint32_t mask, void* const* args) {
  uint64_t values[kLanes];
  for_lanes<Shuffle>(mask, args, [&](int lane, Shuffle& s) { values[lane] = s.value; });
  for_lanes<Shuffle>(mask, args, [&](int, Shuffle& s) { s.value = values[s.source]; });
}

uint32_t ballot(uint32_t mask, void* const* args) {
  uint32_t votes = 0;
  for_lanes<Vote>(mask, args, [&](int lane, Vote& v) { votes |= uint32_t{v.in} << lane; });
  return votes;
}

void run_vote(uint32_t mask, void* const* args) {
  uint32_t votes = ballot(mask, args);
  for_lanes<Vote>(mask, args, [&](int, Vote& v) { v.out = votes; });
}

template <class T, class Combine>
void reduce(uint32_t mask, void* const* args, Combine combine) {
  bool first = true;
  T total{};
  for_lanes<Reduction>(mask, args, [&](int, Reduction& r) {
    T value = static_cast<T>(r.value);
    total = first ? value : combine(total, value);
    first = false;
  });
  for_lanes<Reduction>(mask, args, [&](int, Reduction& r) { r.value = static_cast<uint32_t>(total); });
}

// -- matrix fragments ---------------------------------------------------------------------------

struct Place {
  int row, column;
};

// ldmatrix: lane l holds of each 8x8 matrix the two elements of row l / 4, columns 2 (l % 4), +1.
constexpr Place ldmatrix_element(int lane, int i) { return {lane / 4, 2 * (lane % 4) + i}; }

// mma.m16n8k16: the i-th 16-bit element of lane l's A (16 x 16, eight elements in four registers),
// B (16 x 8, four in two), and f32 element of D (16 x 8, four).
constexpr Place a_element(int lane, int i) {
  return {lane / 4 + 8 * (i / 2 % 2), 2 * (lane % 4) + i % 2 + 8 * (i / 4)};
}
constexpr Place b_element(int lane, int i) { return {2 * (lane % 4) + i % 2 + 8 * (i / 2), lane / 4}; }
constexpr Place d_element(int lane, int i) { return {lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2}; }

// Where each lane's elements stand in a row-major matrix of `Columns` columns.
template <int N, int Columns, Place (*Element)(int, int)>
struct Fragment {
  uint8_t index[kLanes][N];
  constexpr Fragment() : index() {
    for (int l = 0; l < kLanes; ++l) {
      for (int i = 0; i < N; ++i) {
        Place p = Element(l, i);
        index[l][i] = static_cast<uint8_t>(p.row * Columns + p.column);
      }
    }
  }
};
constexpr Fragment<8, 16, a_element> kA;
constexpr Fragment<4, 8, b_element> kB;
constexpr Fragment<4, 8, d_element> kD;

template <bool Transposed>
void run_ldmatrix(uint32_t mask, void* const* args) {
  // Read before anything is written: a lane's registers may themselves lie in memory that is read.
  uint16_t matrices[4][8][8];
  for_lanes<LoadMatrix>(mask, args, [&](int lane, LoadMatrix& a) { memcpy(matrices[lane / 8][lane % 8], a.row, 16); });
  for_lanes<LoadMatrix>(mask, args, [&](int lane, LoadMatrix& a) {
    for (int m = 0; m < 4; ++m) {
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i) {
        Place p = ldmatrix_element(lane, i);
        pair[i] = Transposed ? matrices[m][p.column][p.row] : matrices[m][p.row][p.column];
      }
      memcpy(&a.registers[m], pair, 4);
    }
  });
}

void run_stmatrix(uint32_t mask, void* const* args) {
  uint16_t matrices[4][8][8];
  for_lanes<StoreMatrix>(mask, args, [&](int lane, StoreMatrix& a) {
    for (int m = 0; m < 4; ++m) {
      uint16_t pair[2];
      memcpy(pair, &a.registers[m], 4);
      for (int i = 0; i < 2; ++i) {
        Place p = ldmatrix_element(lane, i);
        matrices[m][p.row][p.column] = pair[i];
      }
    }
  });
  for_lanes<StoreMatrix>(mask, args, [&](int lane, StoreMatrix& a) { memcpy(a.row, matrices[lane / 8][lane % 8], 16); });
}

typedef float Float4 __attribute__((vector_size(16)));

// The products of 16-bit floats are exact in f32; they are summed in the order of k, then added to
// the accumulator. The card sums in another order, and truncates.
template <float (*ToFloat)(uint16_t)>
void run_mma(uint32_t mask, void* const* args) {
  uint16_t a_bits[256], b_bits[128];
  for_lanes<Mma>(mask, args, [&](int lane, Mma& m) {
    uint16_t a[8], b[4];
    memcpy(a, m.a, 16);
    memcpy(b, m.b, 8);
    for (int i = 0; i < 8; ++i) a_bits[kA.index[lane][i]] = a[i];
    for (int i = 0; i < 4; ++i) b_bits[kB.index[lane][i]] = b[i];
  });
  float a[256];
  alignas(16) float b[128], d[128];
  for (int i = 0; i < 256; ++i) a[i] = ToFloat(a_bits[i]);
  for (int i = 0; i < 128; ++i) b[i] = ToFloat(b_bits[i]);
  for (int row = 0; row < 16; ++row) {
    Float4 low = {}, high = {};
    for (int k = 0; k < 16; ++k) {
      Float4 b_low, b_high;
      memcpy(&b_low, b + 8 * k, 16);
      memcpy(&b_high, b + 8 * k + 4, 16);
      low += a[16 * row + k] * b_low;
      high += a[16 * row + k] * b_high;
    }
    memcpy(d + 8 * row, &low, 16);
    memcpy(d + 8 * row + 4, &high, 16);
  }
  for_lanes<Mma>(mask, args, [&](int lane, Mma& m) {
    for (int i = 0; i < 4; ++i) m.d[i] += d[kD.index[lane][i]];
  });
}

}  // namespace

const Operation shuffle_idx = {"__shfl_sync", run_shuffle};
const Operation shuffle_up = {"__shfl_up_sync", run_shuffle};
const Operation shuffle_down = {"__shfl_down_sync", run_shuffle};
const Operation shuffle_xor = {"__shfl_xor_sync", run_shuffle};

const Operation sync_warp = {"__syncwarp", [](uint32_t, void* const*) {}};
const Operation vote_ballot = {"__ballot_sync", run_vote};
const Operation vote_any = {"__any_sync", run_vote};
const Operation vote_all = {"__all_sync", run_vote};

#define SIMT_REDUCTION(name, instruction, T, expression)                                                       \
  const Operation name = {instruction, [](uint32_t mask, void* const* args) {                                  \
                            reduce<T>(mask, args, [](T x, T y) { return static_cast<T>(expression); });        \
                          }}
SIMT_REDUCTION(reduce_add, "__reduce_add_sync", uint32_t, x + y);
SIMT_REDUCTION(reduce_and, "__reduce_and_sync", uint32_t, x & y);
SIMT_REDUCTION(reduce_or, "__reduce_or_sync", uint32_t, x | y);
SIMT_REDUCTION(reduce_xor, "__reduce_xor_sync", uint32_t, x ^ y);
SIMT_REDUCTION(reduce_min_signed, "__reduce_min_sync", int32_t, x < y ? x : y);
SIMT_REDUCTION(reduce_max_signed, "__reduce_max_sync", int32_t, x > y ? x : y);
SIMT_REDUCTION(reduce_min_unsigned, "__reduce_min_sync", uint32_t, x < y ? x : y);
SIMT_REDUCTION(reduce_max_unsigned, "__reduce_max_sync", uint32_t, x > y ? x : y);

const Operation ldmatrix_x4 = {"ldmatrix_x4", run_ldmatrix<false>};
const Operation ldmatrix_x4_trans = {"ldmatrix_x4_trans", run_ldmatrix<true>};
const Operation stmatrix_x4 = {"stmatrix_x4", run_stmatrix};
const Operation mma_m16n8k16_f16 = {"mma_m16n8k16<f16>", run_mma<float_from_half>};
const Operation mma_m16n8k16_bf16 = {"mma_m16n8k16<bf16>", run_mma<float_from_bfloat>};

uint64_t shuffle(const Operation& operation, uint32_t mask, uint64_t value, int source, int width, Site site) {
  if (width <= 0 || width > kLanes || (width & (width - 1)) != 0)
    fail(site, "%s: width %d is not a power of two up to 32", operation.name, width);
  const int lane = static_cast<int>(context.thread_index.x % kLanes);
  const int first = lane & -width;
  int from;
  if (&operation == &shuffle_idx) {
    from = first + (source & (width - 1));
  } else if (&operation == &shuffle_up) {
    from = lane - source < first ? lane : lane - source;
  } else if (&operation == &shuffle_down) {
    from = lane + source >= first + width ? lane : lane + source;
  } else {
    from = lane ^ source;
    // A lower segment may be read, a higher one may not.
    if (from >= first + width) from = lane;
  }
  if (from < 0 || from >= kLanes || !(mask >> from & 1))
    fail(site, "%s reads lane %d, which is not in the mask %08x", operation.name, from, mask);
  Shuffle args = {value, from};
  meet(operation, mask, &args, site);
  return args.value;
}

}  // namespace simt
