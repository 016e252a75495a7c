// Holds the SIMT device, and the kernels' tiles and descriptors, against what CuTe says (theirs.h).
//
// Instructions run on the SIMT device through kernels/vectors/. Elements of shared memory are names, numbers that
// differ from each other; a product with a matrix of one 1 a row then tells which byte an element was read from.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <type_traits>
#include <vector>

#include <kernel.cuh>
#include <mma.cuh>
#include <ptx.cuh>
#include <types.cuh>
#include <wgmma.cuh>

#include <simt.h>

#include "theirs.h"
#include "vectors/vectors.h"

// The constants of src/device/cuda/tensor_map.rs, as check-cute.sh finds them there.
#include "tensor_map_numbers.h"

namespace {

using theirs::Place;
using theirs::Tile;

// -- sections -----------------------------------------------------------------------------------

int failed_sections = 0;

// What is compared while it lives. One without a comparison has failed.
class Section {
 public:
  explicit Section(const char* name) : name_(name), above_(open) { open = this; }
  ~Section() {
    const bool agrees = differ_ == 0 && compared_ > 0;
    printf("%-8s %s: %ld compared, %ld differ\n", agrees ? "agrees" : "DIFFERS", name_, compared_, differ_);
    failed_sections += !agrees;
    open = above_;
  }
  __attribute__((format(printf, 3, 4))) void expect(bool same, const char* format, ...) {
    ++compared_;
    if (same || ++differ_ > 5) return;
    va_list args;
    va_start(args, format);
    printf("%s: ", name_);
    vprintf(format, args);
    printf("\n");
    va_end(args);
  }
  static Section* open;

 private:
  const char* name_;
  Section* above_;
  long compared_ = 0, differ_ = 0;
};
Section* Section::open = nullptr;

#define EXPECT(...) Section::open->expect(__VA_ARGS__)

// -- running ------------------------------------------------------------------------------------

// As in src/device/vectors/: normal numbers, in either type.
uint16_t name(int i) { return static_cast<uint16_t>((i & 0x4000) << 1 | (0x2000 + (i & 0x3fff))); }

template <class T>
uint16_t bits_of(float x) {
  const T narrow = from_float<T>(x);
  uint16_t bits;
  memcpy(&bits, &narrow, sizeof bits);
  return bits;
}
float half_of(uint16_t bits) {
  f16 half;
  memcpy(&half, &bits, sizeof half);
  return to_float(half);
}

// Numbers of 16 bits, `N` of them in a thread's registers.
template <int N>
struct Registers {
  std::vector<uint32_t> words;
  explicit Registers(int threads) : words(static_cast<size_t>(threads * N / 2)) {}
  void set(int thread, int i, uint16_t x) {
    words[static_cast<size_t>((thread * N + i) / 2)] |= static_cast<uint32_t>(x) << 16 * (i % 2);
  }
};

constexpr int kImage = 30 * 1024, kSmallImage = 2048;  // as kernels/vectors/ have them

struct Run {
  VectorParams p = {};
  std::vector<uint16_t> image;
  std::vector<uint32_t> a, b;
  std::vector<float> d;

  explicit Run(int elements) : image(static_cast<size_t>(elements)) {
    for (int i = 0; i < elements; i++) image[static_cast<size_t>(i)] = name(i);
  }
  template <class T>
  std::vector<T> of(const char* kernel, uint32_t threads, size_t results) {
    std::vector<T> out(results);
    p.image = reinterpret_cast<uint64_t>(image.data()), p.image_bytes = static_cast<int32_t>(2 * image.size());
    p.a = reinterpret_cast<uint64_t>(a.data()), p.b = reinterpret_cast<uint64_t>(b.data());
    p.d = reinterpret_cast<uint64_t>(d.data()), p.out = reinterpret_cast<uint64_t>(out.data());
    const uint32_t grid[3] = {1, 1, 1};
    SimtOptions options = {};
    options.seed = 1, options.copies = SIMT_COPIES_RANDOM, options.threads = 1;
    char report[1024];
    const uint32_t shared = static_cast<uint32_t>(2 * image.size() + 1024);
    const int code = simt_launch(kernel, &p, sizeof p, grid, threads, shared, nullptr, 0, &options, report, sizeof report);
    EXPECT(code == SIMT_OK, "%s", report);
    return out;
  }
};

// -- fragments of warps -------------------------------------------------------------------------

// One operand holds numbers and the other a 1 in row or column k: the results are the numbers at k.
template <class T>
void mma(const char* kernel) {
  constexpr bool kOfHalf = std::is_same_v<T, f16>;
  const auto number = [](int row, int k) { return static_cast<float>(1 + 16 * row + k); };  // exact up to 256
  for (int k = 0; k < 16; k++) {
    for (bool left : {true, false}) {
      Registers<8> a(32);
      Registers<4> b(32);
      for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 8; i++) {
          const Place at = theirs::mma_a(kOfHalf, lane, i);
          a.set(lane, i, bits_of<T>(left ? number(at.row, at.column) : at.column == k));
        }
        for (int i = 0; i < 4; i++) {
          const Place at = theirs::mma_b(kOfHalf, lane, i);
          b.set(lane, i, bits_of<T>(left ? at.column == k : number(at.row, at.column)));
        }
      }
      Run run(0);
      run.a = a.words, run.b = b.words, run.d.assign(128, 0.0f);
      const auto got = run.of<float>(kernel, 32, 128);
      for (int i = 0; i < 128; i++) {
        const Place at = theirs::mma_d(kOfHalf, i / 4, i % 4);
        const float want = number(left ? at.row : at.column, k);
        EXPECT(got[static_cast<size_t>(i)] == want, "k %d, lane %d, element %d: %g, not %g", k, i / 4, i % 4,
               static_cast<double>(got[static_cast<size_t>(i)]), static_cast<double>(want));
      }
    }
  }
}

// Rows in order, apart and in another order, and from the end.
int row_byte(int order, int lane) { return order == 0 ? 16 * lane : order == 1 ? 48 * (lane * 11 % 32) : 4080 - 48 * lane; }

void load_matrices(const char* kernel, theirs::Matrices which) {
  for (int order = 0; order < 3; order++) {
    Run run(kSmallImage);
    for (int lane = 0; lane < 32; lane++) run.b.push_back(static_cast<uint32_t>(row_byte(order, lane)));
    const auto got = run.of<uint32_t>(kernel, 32, 128);
    for (int i = 0; i < 256; i++) {
      const Place at = theirs::matrices(which, i / 8, i % 8);
      const uint32_t element = got[static_cast<size_t>(i / 2)] >> 16 * (i % 2) & 0xffff;
      const uint32_t want = name(row_byte(order, at.row) / 2 + at.column);
      EXPECT(element == want, "lane %d, element %d: %04x, not %04x", i / 8, i % 8, element, want);
    }
  }
}

void store_matrices() {
  for (int order = 0; order < 3; order++) {
    Run run(kSmallImage);
    Registers<8> a(32);
    std::vector<uint16_t> want = run.image;
    for (int lane = 0; lane < 32; lane++) {
      run.b.push_back(static_cast<uint32_t>(row_byte(order, lane)));
      for (int i = 0; i < 8; i++) {
        const Place at = theirs::matrices(theirs::Matrices::kStore, lane, i);
        const uint16_t x = name(kSmallImage + 8 * lane + i);
        a.set(lane, i, x);
        want[static_cast<size_t>(row_byte(order, at.row) / 2 + at.column)] = x;
      }
    }
    run.a = a.words;
    const auto got = run.of<uint16_t>("vectors_stmatrix", 32, kSmallImage);
    for (size_t i = 0; i < want.size(); i++) EXPECT(got[i] == want[i], "element %zu: %04x, not %04x", i, got[i], want[i]);
  }
}

// -- wgmma --------------------------------------------------------------------------------------

// A descriptor's fields as the kernels of kernels/vectors/ take them.
VectorOperand fields(uint64_t descriptor) {
  const auto bytes = [&](int from) { return static_cast<uint32_t>(descriptor >> from & 0x3fff) << 4; };
  const VectorOperand x = {bytes(0), bytes(16), bytes(32), static_cast<uint32_t>(descriptor >> 62)};
  const uint64_t again = matrix_descriptor(x.start, x.leading, x.stride, static_cast<Swizzle>(x.swizzle));
  EXPECT(again == descriptor, "matrix_descriptor makes %016lx of the fields of %016lx", again, descriptor);
  return x;
}

constexpr float kOne = 1.0f;

// B in shared memory by a tile; A in registers picks its rows.
void product_of(const Tile& tile) {
  const int start = 2048, columns = tile.mn;
  for (int step = 0; step < tile.k / 16; step++) {
    Run run(kImage);
    run.p.b_rows = fields(tile.descriptor(false, start, step));
    run.p.transposed = !tile.along_k, run.p.registers = 1;
    Registers<8> a(128);
    for (int i = 0; i < 128 * 8; i++) {
      const Place at = theirs::wgmma_a(i / 8, i % 8);
      if (at.row % 16 == at.column) a.set(i / 8, i % 8, bits_of<f16>(kOne));
    }
    run.a = a.words;
    run.d.assign(static_cast<size_t>(64 * columns), 7.0f);
    char kernel[64];
    snprintf(kernel, sizeof kernel, "vectors_wgmma_%d_f16", columns);
    const auto got = run.of<float>(kernel, 128, static_cast<size_t>(64 * columns));
    const int each = columns / 2;
    for (int i = 0; i < 64 * columns; i++) {
      const Place at = theirs::wgmma_d(columns, i / each, i % each);
      const int from = start + tile.byte(at.column, 16 * step + at.row % 16);
      EXPECT(got[static_cast<size_t>(i)] == half_of(name(from / 2)),
             "%d x %d, swizzle %d, step %d: thread %d's element %d is not that of byte %d", tile.mn, tile.k, tile.swizzle,
             step, i / each, i % each, from);
    }
  }
}

// A in shared memory by a tile of 64 rows; B, by CuTe's tile without a swizzle, picks its columns.
void product_with(const Tile& tile, const Tile& plain) {
  const int start = 1024, b_start = 20 * 1024;
  for (int step = 0; step < tile.k / 16; step++) {
    Run run(kImage);
    run.p.a_rows = fields(tile.descriptor(true, start, step));
    run.p.b_rows = fields(plain.descriptor(false, b_start, 0));
    for (int i = 0; i < 64 * 16; i++) {
      const int at = (b_start + plain.byte(i / 16, i % 16)) / 2;
      run.image[static_cast<size_t>(at)] = i / 16 % 16 == i % 16 ? bits_of<f16>(kOne) : 0;
    }
    run.d.assign(64 * 64, 7.0f);
    const auto got = run.of<float>("vectors_wgmma_64_f16", 128, 64 * 64);
    for (int i = 0; i < 64 * 64; i++) {
      const Place at = theirs::wgmma_d(64, i / 32, i % 32);
      const int from = start + tile.byte(at.row, 16 * step + at.column % 16);
      EXPECT(got[static_cast<size_t>(i)] == half_of(name(from / 2)),
             "swizzle %d, step %d: thread %d's element %d is not that of byte %d", tile.swizzle, step, i / 32, i % 32, from);
    }
  }
}

// -- the kernels' own tiles ---------------------------------------------------------------------

const uint32_t kAddresses[] = {1024, 0x8400, 0x31800};  // the last is almost the end of shared memory

const Tile& find(const theirs::Tiles& tiles, int swizzle, int mn, int k, bool k_first) {
  for (int i = 0; i < tiles.count; i++) {
    const Tile& t = tiles.first[i];
    if (t.swizzle == swizzle && t.mn == mn && t.k == k && t.k_first == k_first) return t;
  }
  printf("CuTe has no tile %d x %d here\n", mn, k);
  exit(2);
}

// q and k: rows run along k.
template <int Rows, int Dim>
void rows_tile(bool as_a) {
  const Tile& tile = find(theirs::tiles_along_k(), 128, Rows, Dim, false);
  for (int row = 0; row < Rows; row++)
    for (int column = 0; column < Dim; column++) {
      const int at = static_cast<int>(panel_offset<Rows>(row, column / 8)) + 2 * (column % 8);
      EXPECT(at == tile.byte(row, column), "[%d, %d]: byte %d, not %d", row, column, at, tile.byte(row, column));
    }
  for (uint32_t address : kAddresses)
    for (int step = 0; step < Dim / 16; step++) {
      const uint64_t ours = rows_descriptor(address) + rows_step<Rows>(step), want = tile.descriptor(as_a, address, step);
      EXPECT(ours == want, "%d x %d at %x, step %d: %016lx, not %016lx", Rows, Dim, address, step, ours, want);
    }
}

// v: rows are k.
template <int Keys, int Dim>
void columns_tile() {
  const Tile& tile = find(theirs::tiles_along_mn(), 128, Dim, Keys, true);
  for (int key = 0; key < Keys; key++)
    for (int column = 0; column < Dim; column++) {
      const int at = static_cast<int>(panel_offset<Keys>(key, column / 8)) + 2 * (column % 8);
      EXPECT(at == tile.byte(column, key), "[%d, %d]: byte %d, not %d", key, column, at, tile.byte(column, key));
    }
  // The leading offset leads from one pattern to the next along mn. Of one alone nothing is read by it; CuTe has 0.
  const uint64_t read = Dim > kPanel ? ~uint64_t{0} : ~(uint64_t{0x3fff} << 16);
  for (uint32_t address : kAddresses)
    for (int step = 0; step < Keys / 16; step++) {
      const uint64_t ours = (columns_descriptor<Keys>(address) + columns_step(step)) & read;
      const uint64_t want = tile.descriptor(false, address, step) & read;
      EXPECT(ours == want, "%d x %d at %x, step %d: %016lx, not %016lx", Keys, Dim, address, step, ours, want);
    }
}

// -- the copy engine ----------------------------------------------------------------------------

// Boxes of 16 tokens land where CuTe's tile of 96 has its elements.
void boxes() {
  constexpr int kTokens = 96, kBox = 16;
  const Tile& tile = find(theirs::tiles_along_k(), 128, kTokens, 64, false);
  std::vector<uint16_t> tensor(kTokens * 64);
  for (size_t i = 0; i < tensor.size(); i++) tensor[i] = static_cast<uint16_t>(i + 1);
  for (int first = 0; first < kTokens; first += kBox) {
    SimtTensorMap map = {};
    map.magic = SIMT_TENSOR_MAP, map.address = reinterpret_cast<uint64_t>(tensor.data());
    map.rank = 4, map.element_bytes = 2, map.swizzle = 128;
    map.stride[0] = 128, map.stride[1] = map.stride[2] = 16;
    map.dim[0] = 64, map.dim[1] = kTokens, map.dim[2] = map.dim[3] = 1;
    map.box[0] = 64, map.box[1] = kBox, map.box[2] = map.box[3] = 1;
    Run run(kSmallImage);
    memcpy(&run.p.map, &map, sizeof map);
    run.p.at[1] = first, run.p.box_start = 1024, run.p.box_bytes = kBox * 128;
    const auto got = run.of<uint16_t>("vectors_tma", 128, kSmallImage);
    for (int i = 0; i < kBox * 64; i++) {
      const int at = (1024 + tile.byte(i / 64, i % 64)) / 2;
      EXPECT(got[static_cast<size_t>(at)] == tensor[static_cast<size_t>(64 * first + i)], "token %d, column %d",
             first + i / 64, i % 64);
    }
  }
}

// What src/ops/attention/sm90.rs and src/device/cuda/tensor_map.rs pass on for pages [page, head, token, column]
// whose strides have room between them.
void tensor_maps() {
  for (int tokens : {8, 32, 96}) {
    for (int dim : {64, 128}) {
      const int extents[4] = {dim, 192, 5, 7};
      const int64_t strides[3] = {dim, 192 * dim, 5 * 192 * dim + 64};
      const uint64_t address = 0x7f0000000100;
      const uint32_t box[4] = {64, static_cast<uint32_t>(tokens), 1, 1};
      const theirs::TensorMapCall call = theirs::tensor_map(address, extents, strides, tokens);
      EXPECT(call.calls == 1 && call.rank == 4 && call.address == address, "CuTe: %d calls, of rank %u", call.calls, call.rank);
      for (int d = 0; d < 4; d++) {
        EXPECT(call.extents[d] == static_cast<uint64_t>(extents[d]), "extent %d: CuTe has %lu", d, call.extents[d]);
        EXPECT(call.box[d] == box[d], "box %d: CuTe has %u", d, call.box[d]);
        EXPECT(call.steps[d] == 1, "step %d: CuTe has %u", d, call.steps[d]);
      }
      for (int d = 0; d < 3; d++)
        EXPECT(call.strides[d] == 2 * static_cast<uint64_t>(strides[d]), "stride %d: CuTe has %lu", d, call.strides[d]);
      EXPECT(call.interleave == NO_INTERLEAVE, "interleave: CuTe has %u", call.interleave);
      EXPECT(call.swizzle == SWIZZLE_128B, "swizzle: CuTe has %u", call.swizzle);
      EXPECT(call.fill == FILL_ZEROS, "fill: CuTe has %u", call.fill);
    }
  }
  const theirs::TensorMapNumbers n = theirs::tensor_map_numbers();
  EXPECT(n.uint16 == UINT16, "16-bit elements are %u in cuda.h", n.uint16);
  EXPECT(n.no_interleave == NO_INTERLEAVE, "no interleave is %u in cuda.h", n.no_interleave);
  EXPECT(n.swizzle_128b == SWIZZLE_128B, "the swizzle is %u in cuda.h", n.swizzle_128b);
  EXPECT(n.l2_256b == L2_256B, "256 bytes to L2 are %u in cuda.h", n.l2_256b);
  EXPECT(n.fill_zeros == FILL_ZEROS, "filling with zeros is %u in cuda.h", n.fill_zeros);
  EXPECT(n.bytes == sizeof(TensorMap) && alignof(TensorMap) % n.alignment == 0, "a CUtensorMap has %u bytes, aligned to %u",
         n.bytes, n.alignment);
}

}  // namespace

int main() {
  const theirs::Tiles along_k = theirs::tiles_along_k(), along_mn = theirs::tiles_along_mn();
  {
    Section section("mma");
    mma<f16>("vectors_mma_f16");
    mma<bf16>("vectors_mma_bf16");
  }
  {
    Section section("ldmatrix");
    load_matrices("vectors_ldmatrix", theirs::Matrices::kLoad);
  }
  {
    Section section("ldmatrix.trans");
    load_matrices("vectors_ldmatrix_trans", theirs::Matrices::kLoadTransposed);
  }
  {
    Section section("stmatrix");
    store_matrices();
  }
  {
    Section section("wgmma, b along k");
    for (int i = 0; i < along_k.count; i++)
      if (along_k.first[i].k == 64) product_of(along_k.first[i]);
  }
  {
    Section section("wgmma, b along mn");
    for (int i = 0; i < along_mn.count; i++)
      if (along_mn.first[i].k == 64) product_of(along_mn.first[i]);
  }
  {
    Section section("wgmma, a in shared memory");
    const Tile& plain = find(along_k, 0, 64, 64, false);
    for (int swizzle : {0, 32, 64, 128}) product_with(find(along_k, swizzle, 64, 64, false), plain);
  }
  {
    Section section("q and k tiles");
    rows_tile<64, 64>(true);
    rows_tile<64, 128>(true);
    rows_tile<80, 64>(false);
    rows_tile<80, 128>(false);
    rows_tile<96, 64>(false);
    rows_tile<96, 128>(false);
  }
  {
    Section section("v tiles");
    columns_tile<80, 64>();
    columns_tile<80, 128>();
    columns_tile<96, 64>();
    columns_tile<96, 128>();
  }
  {
    Section section("boxes");
    boxes();
  }
  {
    Section section("tensor maps");
    tensor_maps();
  }
  return failed_sections != 0;
}
