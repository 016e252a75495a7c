// Weights of guidance, from five moments of the two velocities c (conditional) and u (unconditional):
//
//   s = <c, u> / <u, u> with zero-star, 1 without; 0 where u is 0 throughout
//   g = scale c + (1 - scale) s u
//   f = rescale std(c) / std(g) + 1 - rescale; 1 where g is constant
//   weights = (f scale, f (1 - scale) s), so that f g is one more linear combination
//
// denoise_step multiplies the coefficients of its last two terms by them. Nothing goes through the
// host, so both can be captured in a graph.
//
// Sums are in f64, where a product of two f32 numbers is exact: the variance is sum c^2 - (sum c)^2 / n,
// and what that cancels is (mean / std)^2 of 2^-53, not of 2^-24. Every sum has one order, whatever
// the grid: a thread adds four groups of four elements, a block adds its threads as a tree, and the
// second kernel adds parts the same way. src/ops/guidance/cpu.rs has the same order, and no product
// is fused with a sum where that could round otherwise, so devices agree to the bit.
//
// Floor: one pass over c and u, and ten f64 operations an element.
//
// nvcc reads the next line's flags from build.rs.
// nvcc: -fmad=false
#include <kernel.cuh>
#include <mixed.cuh>

namespace {

constexpr int kThreads = 256;
constexpr int kElements = PF_MOMENTS_PART / kThreads;  // of a thread, in groups of four
// Variances below this share of the squares are what rounding leaves of a constant: sums here have
// fewer than 100 roundings in a row.
constexpr double kConstant = 1.0 / (1ll << 46);

struct Plan {
  Shared<double, PF_MOMENTS * kThreads> sums;
};

struct Moments {
  double sums[PF_MOMENTS];
};

// The sum over all threads, in thread 0.
__device__ __forceinline__ void reduce(Moments& m) {
  Plan& plan = shared_memory<Plan>();
  const int t = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = 0; i < PF_MOMENTS; i++) plan.sums[i * kThreads + t] = m.sums[i];
  for (int stride = kThreads / 2; stride > 0; stride /= 2) {
    __syncthreads();
    if (t >= stride) continue;
#pragma unroll
    for (int i = 0; i < PF_MOMENTS; i++) plan.sums[i * kThreads + t] += plan.sums[i * kThreads + t + stride];
  }
#pragma unroll
  for (int i = 0; i < PF_MOMENTS; i++) m.sums[i] = plan.sums[i * kThreads + t];
}

// A thread's elements of one velocity, 0 behind the sample's end, in runs of N that lie in one row each.
// One branch for all: loads of many runs are on their way at once.
template <int N, class T>
__device__ __forceinline__ void gather_as(uint64_t base, const int64_t (&offsets)[kElements / N], float* x) {
#pragma unroll
  for (int r = 0; r < kElements / N; r++) {
    if (offsets[r] >= 0) read_as<N, T>(base, offsets[r], x + r * N);
  }
}

template <int N>
__device__ __forceinline__ void gather(const GuidanceParams& p, uint64_t base, const int64_t (&strides)[2], int dtype,
                                       float* x) {
  const uint32_t part = blockIdx.x % static_cast<uint32_t>(p.parts);
  const uint32_t sample = blockIdx.x / static_cast<uint32_t>(p.parts);
  const uint32_t elements = static_cast<uint32_t>(p.sample_rows * p.inner);
  const uint32_t inner = static_cast<uint32_t>(p.inner), frames = static_cast<uint32_t>(p.frames);
  int64_t offsets[kElements / N];
#pragma unroll
  for (int r = 0; r < kElements / N; r++) {
    const uint32_t group = r * N / 4 * kThreads + threadIdx.x;
    const uint32_t e = part * PF_MOMENTS_PART + group * 4 + r * N % 4;
    const uint32_t row = sample * static_cast<uint32_t>(p.sample_rows) + e / inner;
    const int64_t offset = row / frames * strides[0] + row % frames * strides[1] + e % inner;
    offsets[r] = e < elements ? offset : -1;
  }
  if (dtype == PF_DTYPE_F32) {
    gather_as<N, float>(base, offsets, x);
  } else if (dtype == PF_DTYPE_F16) {
    gather_as<N, f16>(base, offsets, x);
  } else {
    gather_as<N, bf16>(base, offsets, x);
  }
}

// The moments of one part of a sample.
template <int N>
__device__ __forceinline__ void moments(const GuidanceParams& p) {
  float c[kElements] = {}, u[kElements] = {};
  gather<N>(p, p.cond, p.cond_strides, p.cond_dtype, c);
  gather<N>(p, p.uncond, p.uncond_strides, p.uncond_dtype, u);
  Moments m = {};
#pragma unroll
  for (int i = 0; i < kElements; i++) {
    const double x = c[i], y = u[i];
    m.sums[0] += x;
    m.sums[1] += y;
    // The products are exact, so a fused sum rounds alike.
    m.sums[2] = fma(x, x, m.sums[2]);
    m.sums[3] = fma(x, y, m.sums[3]);
    m.sums[4] = fma(y, y, m.sums[4]);
  }
  reduce(m);
  if (threadIdx.x > 0) return;
#pragma unroll
  for (int i = 0; i < PF_MOMENTS; i++) store(address<double>(p.partial) + blockIdx.x * PF_MOMENTS + i, m.sums[i]);
}

__device__ __forceinline__ void weights(const GuidanceParams& p) {
  Moments m = {};
  for (int64_t part = threadIdx.x; part < p.parts; part += kThreads) {
    const double* partial = address<const double>(p.partial) + (blockIdx.x * p.parts + part) * PF_MOMENTS;
#pragma unroll
    for (int i = 0; i < PF_MOMENTS; i++) m.sums[i] += load(partial + i);
  }
  reduce(m);
  if (threadIdx.x > 0) return;
  const auto [c, u, cc, cu, uu] = m.sums;
  const double n = static_cast<double>(p.sample_rows * p.inner);
  const double star = p.zero_star ? (uu == 0.0 ? 0.0 : cu / uu) : 1.0;
  const double a = p.scale, b = (1.0 - p.scale) * star;
  double factor = 1.0;
  if (p.rescale != 0.0) {
    // n - 1 times the variances and the covariance.
    double var_c = cc - c * c / n;
    const double cov = cu - c * u / n, var_u = uu - u * u / n;
    if (var_c <= kConstant * cc) var_c = 0.0;
    const double var_g = a * a * var_c + 2.0 * a * b * cov + b * b * var_u;
    // Not a number is not below anything, and goes on.
    if (!(var_g <= kConstant * (a * a * cc + b * b * uu))) {
      factor = p.rescale * sqrt(var_c / var_g) + (1.0 - p.rescale);
    }
  }
  store(address<float>(p.weights) + blockIdx.x * 2, static_cast<float>(factor * a));
  store(address<float>(p.weights) + blockIdx.x * 2 + 1, static_cast<float>(factor * b));
}

}  // namespace

PF_KERNEL(guidance_moments_vec4, GuidanceParams, 256) { moments<4>(p); }
PF_KERNEL(guidance_moments_any, GuidanceParams, 256) { moments<1>(p); }
PF_KERNEL(guidance_weights, GuidanceParams, 256) { weights(p); }
