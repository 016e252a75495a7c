// A launch: checks, OS threads that take blocks, the report.

#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <exception>
#include <thread>

#include "block.h"

namespace simt {

namespace {

constexpr uint32_t kMaxGridX = 0x7fffffff, kMaxGridYZ = 65535;

// Blocks own large memory (stacks, shared memory), so they are kept for the next launch.
std::mutex idle_mutex;
std::vector<std::unique_ptr<Block>> idle;

std::unique_ptr<Block> take_block() {
  std::lock_guard<std::mutex> lock(idle_mutex);
  if (idle.empty()) return std::make_unique<Block>();
  std::unique_ptr<Block> block = std::move(idle.back());
  idle.pop_back();
  return block;
}

void give_back(std::unique_ptr<Block> block) {
  std::lock_guard<std::mutex> lock(idle_mutex);
  idle.push_back(std::move(block));
}

const Kernel* find_kernel(const char* name) {
  for (size_t i = 0; i < simt_kernel_count; ++i)
    if (strcmp(simt_kernels[i]->name, name) == 0) return simt_kernels[i];
  return nullptr;
}

void run_blocks(Launch& launch) {
  std::vector<uint64_t> order(uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z);
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  if (!launch.options.in_order) {
    Random random{launch.options.seed};
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.next() % i]);
  }

  std::atomic<size_t> taken{0};
  auto work = [&] {
    std::unique_ptr<Block> block = take_block();
    for (size_t i; !launch.failed && (i = taken++) < order.size();) block->run(launch, order[i]);
    give_back(std::move(block));
  };

  uint32_t threads = launch.options.threads;
  if (threads == 0) threads = std::max(1u, std::thread::hardware_concurrency());
  threads = static_cast<uint32_t>(std::min<size_t>(threads, order.size()));
  std::exception_ptr thrown;
  auto guarded = [&] {
    try {
      work();
    } catch (...) {
      std::lock_guard<std::mutex> lock(launch.mutex);
      thrown = std::current_exception();
      launch.failed = true;
    }
  };
  std::vector<std::thread> helpers;
  try {
    for (uint32_t i = 1; i < threads; ++i) helpers.emplace_back(guarded);
  } catch (const std::exception&) {
    // Fewer than asked for do as well.
  }
  guarded();
  for (std::thread& helper : helpers) helper.join();
  launch.done.take();
  if (thrown) std::rethrow_exception(thrown);
}

}  // namespace

}  // namespace simt

using namespace simt;

extern "C" int simt_launch(const char* kernel_name, const void* params, size_t params_bytes, const uint32_t grid[3],
                           uint32_t threads, uint32_t shared_bytes, const SimtSpan* spans, size_t span_count,
                           const SimtOptions* options, char* report, size_t report_bytes) {
  auto finish = [&](int code, const std::string& text) {
    static const char* const when[] = {"late", "early", "random"};
    if (report && report_bytes)
      snprintf(report, report_bytes, "%s\n  seed %llu, copies %s, %s", text.c_str(),
               static_cast<unsigned long long>(options->seed), options->copies <= 2 ? when[options->copies] : "?",
               options->in_order ? "in order" : "shuffled");
    return code;
  };
  try {
    const std::string name = std::string("kernel ") + kernel_name;
    const Kernel* kernel = find_kernel(kernel_name);
    if (!kernel) return finish(SIMT_UNKNOWN_KERNEL, name + ": no such kernel");
    auto bad = [&](const std::string& what) { return finish(SIMT_BAD_LAUNCH, name + ": " + what); };
    if (params_bytes != kernel->params_bytes)
      return bad("parameters of " + std::to_string(params_bytes) + " bytes, of " +
                 std::to_string(kernel->params_bytes) + " expected");
    auto within = [](uint32_t n, uint32_t most) { return n > 0 && n <= most; };
    if (!within(grid[0], kMaxGridX) || !within(grid[1], kMaxGridYZ) || !within(grid[2], kMaxGridYZ))
      return bad("a grid of " + std::to_string(grid[0]) + " x " + std::to_string(grid[1]) + " x " +
                 std::to_string(grid[2]) + " blocks");
    if (threads == 0 || threads > kernel->max_threads || threads > kMaxThreads)
      return bad(std::to_string(threads) + " threads, at most " + std::to_string(kernel->max_threads) + " expected");
    if (shared_bytes > kMaxSharedBytes)
      return bad(std::to_string(shared_bytes) + " bytes of shared memory, at most " + std::to_string(kMaxSharedBytes) +
                 " expected");
    if (options->copies > SIMT_COPIES_RANDOM) return bad("copies of kind " + std::to_string(options->copies));

    Launch launch{kernel,  params,       {grid[0], grid[1], grid[2]},
                  threads, shared_bytes, SpanTable(spans, span_count), *options};
    run_blocks(launch);
    if (launch.failed) return finish(SIMT_KERNEL_ERROR, launch.error);
    return finish(SIMT_OK, name + ": ok");
  } catch (const std::exception& e) {
    return finish(SIMT_HOST_ERROR, std::string("kernel ") + kernel_name + ": the host failed: " + e.what());
  }
}
