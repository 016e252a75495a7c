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
// Floors: bytes of all terms and outputs / bandwidth; with noise about 45 operations an element.
//
// nvcc reads the next line's flags from build.rs.
// nvcc: -fmad=false
#include <kernel.cuh>
#include <philox.cuh>
#include <types.cuh>

namespace {

constexpr int kThreads = 256;

// A run of elements in one row.
struct Place {
  int64_t outer, frame, inner;
};

// N neighbours, widened. Vectors are of 16 bytes at most.
template <int N, class T>
__device__ __forceinline__ void read_as(uint64_t base, int64_t at, float* x) {
  constexpr int kWide = N < kLane16<T> ? N : kLane16<T>;
  const T* p = address<const T>(base) + at;
#pragma unroll
  for (int i = 0; i < N; i += kWide) {
    Vec<T, kWide> v = load_vec<kWide>(p + i);
#pragma unroll
    for (int l = 0; l < kWide; ++l) x[i + l] = to_float(v[l]);
  }
}

template <int N, class T>
__device__ __forceinline__ void write_as(uint64_t base, int64_t at, const float* x) {
  constexpr int kWide = N < kLane16<T> ? N : kLane16<T>;
  T* p = address<T>(base) + at;
#pragma unroll
  for (int i = 0; i < N; i += kWide) {
    Vec<T, kWide> v;
#pragma unroll
    for (int l = 0; l < kWide; ++l) v[l] = from_float<T>(x[i + l]);
    store_vec(p + i, v);
  }
}

template <int N>
__device__ __forceinline__ void read(uint64_t base, const int64_t (&strides)[2], int dtype, Place at, float* x) {
  int64_t offset = at.outer * strides[0] + at.frame * strides[1] + at.inner;
  if (dtype == PF_DTYPE_F32) {
    read_as<N, float>(base, offset, x);
  } else if (dtype == PF_DTYPE_F16) {
    read_as<N, f16>(base, offset, x);
  } else {
    read_as<N, bf16>(base, offset, x);
  }
}

template <int N>
__device__ __forceinline__ void write(uint64_t base, const int64_t (&strides)[2], int dtype, Place at, const float* x) {
  int64_t offset = at.outer * strides[0] + at.frame * strides[1] + at.inner;
  if (dtype == PF_DTYPE_F32) {
    write_as<N, float>(base, offset, x);
  } else if (dtype == PF_DTYPE_F16) {
    write_as<N, f16>(base, offset, x);
  } else {
    write_as<N, bf16>(base, offset, x);
  }
}

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
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    uint32_t run = min(thread * kRuns + r, runs - 1);
    uint32_t row = run / row_runs;
    places[r] = {row / frames, row % frames, static_cast<int64_t>(run % row_runs) * N};
  }

  float sums[PF_MAX_OUTPUTS][V] = {};
  float x[V];
  auto add = [&](int term) {
#pragma unroll
    for (int j = 0; j < PF_MAX_OUTPUTS; ++j) {
      if (j >= p.output_count) continue;
      const float* row = address<const float>(p.coefficients) + (j * (p.term_count + 1) + term) * p.frames;
#pragma unroll
      for (int r = 0; r < kRuns; ++r) {
        float c = load(row + places[r].frame);
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
#pragma unroll
    for (int g = 0; g < V / 4; ++g) {
      normals(p.seed, p.offset, static_cast<uint64_t>(thread) * (V / 4) + g, x + 4 * g);
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
