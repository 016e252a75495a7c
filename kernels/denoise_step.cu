// One step of any solver, in one pass:
//
//   out_j[e] = sum_k c[j][k][frame(e)] term_k[e] + c[j][last][frame(e)] noise[e]
//
// summed in f32 in the order of the terms and rounded once. Every term and output has its own
// dtype and strides, so dtypes are told apart at run time: the branch is the same for all threads,
// and one kernel serves every mixture. An output may be a term too: a thread reads all terms of
// its elements before it writes any output of them.
//
// A thread takes 8 or 4 neighbours of a row, 16 bytes a lane where the dtype has so many, or, where
// rows do not lie on such boundaries, any 4 elements that follow in the tensor's order. That is
// one Philox counter or two, so the noise depends on the element's index and on nothing else. No
// multiplication is fused with an addition, so that every device rounds alike.
//
// What a captured graph cannot have in its arguments comes from memory: the coefficients, the base of
// the noise's seed and counter, and the weights that guidance.cu makes for the last two terms.
//
// Floors: bytes of all terms and outputs / bandwidth; with noise about 45 operations an element.
//
// nvcc reads the next line's flags from build.rs.
// nvcc: -fmad=false
#include <kernel.cuh>
#include <mixed.cuh>
#include <philox.cuh>

namespace {

constexpr int kThreads = 256;

// A thread's V elements in runs of N that lie in one row each.
template <int V, int N>
__device__ __forceinline__ void denoise_step(const DenoiseStepParams& p) {
  constexpr int kRuns = V / N;
  uint32_t thread = blockIdx.x * kThreads + threadIdx.x;
  uint32_t runs = static_cast<uint32_t>(p.outer * p.frames * p.inner / N);
  uint32_t row_runs = static_cast<uint32_t>(p.inner / N);
  uint32_t frames = static_cast<uint32_t>(p.frames);

  // Threads past the end must not even read: an output that is a term is being written.
  if (thread * kRuns >= runs) return;
  // Runs past the end, which only the last thread has, read its last one and write nothing.
  Place places[kRuns];
  const float* guidance[kRuns];
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    uint32_t run = min(thread * kRuns + r, runs - 1);
    uint32_t row = run / row_runs;
    places[r] = {row / frames, row % frames, static_cast<int64_t>(run % row_runs) * N};
    guidance[r] = address<const float>(p.guidance);
    if (p.guidance) guidance[r] += row / static_cast<uint32_t>(p.sample_rows) * 2;
  }

  float sums[PF_MAX_OUTPUTS][V] = {};
  float x[V];
  auto add = [&](int term) {
    const int guided = term - (p.term_count - 2);  // 0 and 1: the last two terms
#pragma unroll
    for (int j = 0; j < PF_MAX_OUTPUTS; ++j) {
      if (j >= p.output_count) continue;
      const float* row = address<const float>(p.coefficients) + (j * (p.term_count + 1) + term) * p.frames;
#pragma unroll
      for (int r = 0; r < kRuns; ++r) {
        float c = load(row + places[r].frame);
        if (p.guidance && (guided == 0 || guided == 1)) c *= load(guidance[r] + guided);
#pragma unroll
        for (int i = r * N; i < (r + 1) * N; ++i) sums[j][i] += c * x[i];
      }
    }
  };
  for (int k = 0; k < p.term_count; ++k) {
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      read<N>(p.terms[k], p.term_strides[k], p.term_dtypes[k], places[r], x + r * N);
    }
    add(k);
  }
  if (p.noise) {
    uint64_t seed = p.seed, offset = p.offset;
    if (p.noise_base) {
      seed += load(address<const uint64_t>(p.noise_base));
      offset += load(address<const uint64_t>(p.noise_base) + 1);
    }
#pragma unroll
    for (int g = 0; g < V / 4; ++g) {
      normals(seed, offset, static_cast<uint64_t>(thread) * (V / 4) + g, x + 4 * g);
    }
    add(p.term_count);
  }
#pragma unroll
  for (int j = 0; j < PF_MAX_OUTPUTS; ++j) {
    if (j >= p.output_count) continue;
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      if (thread * kRuns + r >= runs) continue;
      write<N>(p.outputs[j], p.output_strides[j], p.output_dtypes[j], places[r], sums[j] + r * N);
    }
  }
}

}  // namespace

PF_KERNEL(denoise_step_vec8, DenoiseStepParams, 256) { denoise_step<8, 8>(p); }
PF_KERNEL(denoise_step_vec4, DenoiseStepParams, 256) { denoise_step<4, 4>(p); }
PF_KERNEL(denoise_step_any, DenoiseStepParams, 256) { denoise_step<4, 1>(p); }
