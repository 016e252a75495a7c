// Runs one planted kernel, bug or twin, once: `planted KERNEL [in-order]`. Without an argument it lists them, each
// with what must tell of its bug in a build with AddressSanitizer and in one with ThreadSanitizer:
//
//   device   the SIMT device, before anything happens that a sanitizer could see
//   address  AddressSanitizer
//   race     ThreadSanitizer
//   -        nobody: what is wrong is the result
//
// Exits with 0 where nothing was found, 3 where the device found something, else as the sanitizer does.
#include "../planted/planted.h"

#include "sanitize.h"

using namespace sanitize;

struct Planted {
  const char* name;
  const char *address, *race;
  uint32_t threads, blocks, shared_bytes;
  int n;
};

static const Planted kPlanted[] = {
    {"missing_barrier", "-", "race", 128, 1, 512, 128},
    {"divergent_barrier", "device", "device", 128, 1, 512, 128},
    {"exited_thread", "device", "device", 128, 1, 512, 128},
    {"lost_arrival", "device", "device", 128, 1, 512, 128},
    {"barrier_counts", "device", "device", 128, 1, 512, 128},
    {"warp_mask", "device", "device", 32, 1, 128, 32},
    {"own_mask", "device", "device", 32, 1, 128, 32},
    {"warp_divergence", "device", "device", 32, 1, 128, 32},
    {"shuffle_source", "device", "device", 32, 1, 128, 32},
    {"missing_syncwarp", "-", "race", 32, 1, 128, 32},
    {"weak_wait", "-", "race", 64, 1, 2048, 512},
    {"missing_commit", "-", "race", 64, 1, 2048, 256},
    {"late_wait", "-", "race", 64, 1, 2048, 256},
    {"wait_without_barrier", "-", "race", 64, 1, 2048, 256},
    {"source_overwritten", "-", "race", 64, 1, 2048, 256},
    {"reused_tile", "-", "race", 128, 1, 512, 128},
    {"shared_index", "device", "device", 32, 1, 512, 128},
    {"red_zone", "address", "device", 32, 1, 512, 128},
    {"uninitialised", "-", "-", 32, 1, 512, 128},
    {"misaligned", "device", "device", 32, 1, 512, 128},
    {"read_past", "address", "device", 32, 1, 512, 100},
    {"write_past", "address", "device", 32, 1, 512, 100},
    {"write_to_input", "-", "device", 32, 1, 512, 32},
    {"ldmatrix_row", "device", "device", 32, 1, 512, 128},
    {"lost_update", "-", "race", 256, 4, 512, 1024},
    {"lost_update_across_blocks", "-", "race", 32, 4, 512, 4},
    {"stack_overflow", "device", "device", 32, 1, 512, 32},
    {"wrong_phase", "device", "race", 64, 1, 2048, 512},
    {"not_released", "-", "race", 64, 1, 2048, 512},
    {"missing_arrival", "device", "device", 64, 1, 2048, 32},
    {"bytes_over", "device", "device", 64, 1, 2048, 32},
    {"bytes_under", "device", "device", 64, 1, 2048, 32},
    {"missing_init_fence", "device", "device", 64, 1, 2048, 32},
    {"missing_fence_before_box", "device", "device", 64, 1, 2048, 32},
    {"misaligned_box", "device", "device", 64, 1, 2048, 32},
    {"misaligned_column", "device", "device", 64, 1, 2048, 32},
    {"overwritten_barrier", "device", "device", 64, 1, 2048, 32},
    {"abandoned_box", "device", "device", 64, 1, 2048, 32},
    {"registers_over", "device", "device", 512, 1, 0, 512},
    {"missing_proxy_fence", "device", "device", 128, 1, 16384, 128},
    {"missing_wgmma_fence", "device", "device", 128, 1, 16384, 128},
    {"early_read", "-", "-", 128, 1, 16384, 128},
    {"early_write", "device", "device", 128, 1, 16384, 128},
    {"operand_overwritten", "-", "-", 128, 1, 16384, 128},
    {"operand_after_fence", "device", "device", 128, 1, 16384, 128},
    {"tile_overwritten", "-", "-", 128, 1, 16384, 128},
    {"descriptor_row", "-", "-", 128, 1, 16384, 128},
    {"descriptor_stride", "-", "-", 128, 1, 16384, 128},
    {"uncommitted", "device", "device", 128, 1, 16384, 128},
    {"warps_disagree", "device", "device", 128, 1, 16384, 128},
    {"stmatrix_row", "device", "device", 128, 1, 16384, 128},
};

// The planted kernels of the program and the rows of the table must be the same.
static bool complete() {
  bool all = true;
  for (const Planted& p : kPlanted) {
    for (const char* twin : {"", "_fixed"}) {
      char kernel[128];
      snprintf(kernel, sizeof kernel, "planted_%s%s", p.name, twin);
      bool found = false;
      for (size_t i = 0; i < simt_kernel_count; ++i) found |= strcmp(simt_kernels[i]->name, kernel) == 0;
      if (!found) fprintf(stderr, "no kernel %s\n", kernel);
      all &= found;
    }
  }
  size_t planted = 0;
  for (size_t i = 0; i < simt_kernel_count; ++i) planted += strncmp(simt_kernels[i]->name, "planted_", 8) == 0;
  if (planted != 2 * sizeof kPlanted / sizeof *kPlanted) {
    fprintf(stderr, "%zu planted kernels, but %zu rows with two each\n", planted, sizeof kPlanted / sizeof *kPlanted);
    all = false;
  }
  return all;
}

int main(int argc, char** argv) {
  if (argc < 2) {
    if (!complete()) return 1;
    for (const Planted& p : kPlanted) printf("%s %s %s\n", p.name, p.address, p.race);
    return 0;
  }
  const char* kernel = argv[1];
  for (const Planted& p : kPlanted) {
    size_t length = strlen(p.name);
    const char* rest = kernel + 8 + length;
    if (strncmp(kernel, "planted_", 8) != 0 || strncmp(kernel + 8, p.name, length) != 0) continue;
    if (*rest && strcmp(rest, "_fixed") != 0) continue;
    Buffer in(4 * p.n), out(4 * p.n);
    for (int i = 0; i < p.n; ++i) in.as<int>()[i] = 1000 + 7 * i;
    for (int i = 0; i < p.n; ++i) out.as<int>()[i] = 0;
    const PlantedParams params = {in.address(), out.address(), p.n, 0};
    const bool ran = launch(kernel, params, p.blocks, 1, 1, p.threads, p.shared_bytes,
                            {in.span(false), out.span(true)}, 0, argc > 2);
    if (!ran) return 3;
    long long sum = 0;
    for (int i = 0; i < p.n; ++i) sum += out.as<int>()[i];  // the host, too, must come after the kernel
    printf("%s: %lld\n", kernel, sum);
    return 0;
  }
  fprintf(stderr, "no planted kernel %s\n", kernel);
  return 2;
}
