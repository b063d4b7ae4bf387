# SPDX-License-Identifier: Apache-2.0
"""C++ source of the CPU kernel; in a Python file, because only those travel with an exported checkpoint."""

SOURCE = r"""
// IBNorm on the CPU: one read of x and one write of y forward, one read of x and dy and one write of dx backward,
// everything between held in a row buffer that fits the cache, in float32 whatever the storage type.
// Loops are branch-free so that the compiler vectorizes them; nothing here depends on fast-math, so nan and inf pass.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <omp.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

template <class To, class From> INLINE To bits_as(From v) { return __builtin_bit_cast(To, v); }

// ---------------------------------------------------------------- storage types

struct bf16 { uint16_t bits; };

INLINE float load(const float* p, int64_t i) { return p[i]; }
INLINE void store(float* p, int64_t i, float v) { p[i] = v; }

INLINE float load(const bf16* p, int64_t i) { return bits_as<float>(uint32_t(p[i].bits) << 16); }
INLINE void store(bf16* p, int64_t i, float v) {
  const uint32_t b = bits_as<uint32_t>(v);
  const uint32_t nearest_even = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  p[i].bits = uint16_t(v != v ? 0x7fc0u : nearest_even);
}

#ifdef __FLT16_MANT_DIG__
#define HAS_FP16 1
typedef _Float16 fp16;
#else
#define HAS_FP16 0
struct fp16;
#endif

// What the row loops read and write: the row itself, or for fp16, whose conversions compilers leave scalar inside of
// other loops, a float32 copy of it in `buffer`.
template <class T> INLINE const T* opened(const T* row, float*, int64_t) { return row; }
template <class T> INLINE T* target(T* row, float*) { return row; }
template <class T, class U> INLINE void closed(T*, const U*, int64_t) {}
template <class T> constexpr int64_t buffers = 0;

#if HAS_FP16
template <> constexpr int64_t buffers<fp16> = 2;
INLINE const float* opened(const fp16* row, float* buffer, int64_t width) {
  int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= width; i += 8)
    _mm256_storeu_ps(buffer + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i))));
#endif
  for (; i < width; ++i) buffer[i] = float(row[i]);
  return buffer;
}
INLINE float* target(fp16*, float* buffer) { return buffer; }
INLINE void closed(fp16* row, const float* buffer, int64_t width) {
  int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= width; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(row + i), _mm256_cvtps_ph(_mm256_loadu_ps(buffer + i), 0));
#endif
  for (; i < width; ++i) row[i] = fp16(buffer[i]);
}
#endif

// ---------------------------------------------------------------- elementary functions
// Polynomials are our own least-maximum-error fits in float64; their error is below one unit of float32.

INLINE float log1p_positive(float a) {
  const float y = 1.0f + a;
  const int32_t bits = bits_as<int32_t>(y);
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;  // y = m 2^exponent with m in [sqrt(1/2), sqrt(2))
  const float reduced = bits_as<float>(bits - (exponent << 23)) - 1.0f;
  const float f = exponent == 0 ? a : reduced;  // a itself, where 1 + a would have rounded it away
  float p = -0.07634492963552475f;
  p = p * f + 0.12761574983596802f;
  p = p * f - 0.13160182535648346f;
  p = p * f + 0.14201758801937103f;
  p = p * f - 0.16623356938362122f;
  p = p * f + 0.20001226663589478f;
  p = p * f - 0.2500081956386566f;
  p = p * f + 0.3333333134651184f;
  const float f2 = f * f;
  const float log = f - 0.5f * f2 + f2 * f * p + float(exponent) * 0.6931471805599453f;
  return a <= 3.4e38f ? log : a;  // inf and nan pass through
}

INLINE float exp_up_to_20(float x) {
  const float k = (x * 1.4426950408889634f + 12582912.0f) - 12582912.0f;  // round to nearest integer
  const float r = x - k * 0.693145751953125f - k * 1.428606765330187e-06f;
  float p = 0.0013950478751212358f;
  p = p * r + 0.008368882350623608f;
  p = p * r + 0.04166620597243309f;
  p = p * r + 0.1666651964187622f;
  p = p * r + 0.5f;
  return (1.0f + (r + r * r * p)) * bits_as<float>((int32_t(k) + 127) << 23);
}

INLINE float tanh_of(float u) {
  const float full = std::fabs(u);
  const float a = full > 10.0f ? 10.0f : full;  // written so that nan stays nan; tanh(10) is 1 in float32
  const float q = a * a;
  float p = -0.005717044696211815f;
  p = p * q + 0.020650586113333702f;
  p = p * q - 0.05374349653720856f;
  p = p * q + 0.13331490755081177f;
  p = p * q - 0.3333328366279602f;
  const float near = a + a * q * p;
  const float far = 1.0f - 2.0f / (exp_up_to_20(2.0f * a) + 1.0f);
  return std::copysign(a < 0.625f ? near : far, u);
}

// ---------------------------------------------------------------- compressions, as in compression.py

struct Log {
  INLINE float g(float u) { return std::copysign(log1p_positive(std::fabs(u)), u); }
  INLINE float dg(float u, float) { return 1.0f / (1.0f + std::fabs(u)); }
};
struct Tanh {
  INLINE float g(float u) { return tanh_of(u); }
  INLINE float dg(float, float s) { return 1.0f - s * s; }
};
struct Softsign {
  INLINE float g(float u) { return u / (1.0f + std::fabs(u)); }
  INLINE float dg(float u, float) { const float q = 1.0f / (1.0f + std::fabs(u)); return q * q; }
};
struct Sqrt {
  INLINE float g(float u) { return 2.0f * u / (1.0f + std::sqrt(1.0f + std::fabs(u))); }
  INLINE float dg(float u, float) { return 1.0f / std::sqrt(1.0f + std::fabs(u)); }
};

// ---------------------------------------------------------------- row loops

struct Shape {
  int64_t rows, width, x_stride, dy_stride;  // strides between rows, in elements; y and dx are contiguous
  float lambda, eps;
  int32_t threads;
};

struct Scratch {
  float* data;
  explicit Scratch(int64_t count) : data(static_cast<float*>(std::aligned_alloc(64, (count * 4 + 63) / 64 * 64))) {}
  ~Scratch() { std::free(data); }
};

// Four sums side by side, over the quarters of a row: one alone waits four cycles for each of its additions.
template <class Term> INLINE float sum_of(int64_t start, int64_t end, Term term) {
  const int64_t quarter = (end - start) / 64 * 16;
  float a = 0, b = 0, c = 0, d = 0, rest = 0;
#pragma omp simd reduction(+ : a, b, c, d)
  for (int64_t i = start; i < start + quarter; ++i) {
    a += term(i);
    b += term(i + quarter);
    c += term(i + 2 * quarter);
    d += term(i + 3 * quarter);
  }
#pragma omp simd reduction(+ : rest)
  for (int64_t i = start + 4 * quarter; i < end; ++i) rest += term(i);
  return ((a + b) + (c + d)) + rest;
}

// In blocks, so that a large offset shared by a wide row does not eat the digits of its sum.
template <class T> INLINE float mean_of(const T* x, int64_t width) {
  double total = 0;
  for (int64_t start = 0; start < width; start += 1024) {
    const int64_t end = start + 1024 < width ? start + 1024 : width;
    total += sum_of(start, end, [x](int64_t i) { return load(x, i); });
  }
  return float(total / double(width));
}

template <class T> INLINE float rstd_of(const T* x, float mean, int64_t width, float eps) {
  const float sum = sum_of(0, width, [x, mean](int64_t i) {
    const float d = load(x, i) - mean;
    return d * d;
  });
  return 1.0f / std::sqrt(sum / float(width) + eps);
}

template <class T>
INLINE void write_affine(T* y, const float* c, float mean, float scale, const float* weight, const float* bias,
                         int64_t width) {
  if (weight && bias) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(y, i, (c[i] - mean) * scale * weight[i] + bias[i]);
  } else if (weight) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(y, i, (c[i] - mean) * scale * weight[i]);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(y, i, (c[i] - mean) * scale);
  }
}

// statistics: (3, rows), mean of x, mean of c, 1/std of c; (standardize-first) (2, rows), mean and 1/std of x.
template <class G, bool CompressFirst, class T>
static void forward(const T* x, const float* weight, const float* bias, T* y, float* statistics,
                    const Shape& shape) {
  float *s0 = statistics, *s1 = s0 + shape.rows, *s2 = s1 + shape.rows;
  const int64_t width = shape.width;
  const float lambda = shape.lambda, inverse = 1.0f / lambda;
#pragma omp parallel num_threads(shape.threads)
  {
    Scratch scratch((1 + buffers<T>) * width);
    float *c = scratch.data, *wide = c + width;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < shape.rows; ++row) {
      const auto* xr = opened(x + row * shape.x_stride, wide, width);
      const float mean = mean_of(xr, width);
      const float rstd = CompressFirst ? 1.0f : rstd_of(xr, mean, width, shape.eps);
      const float scale = inverse * rstd;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < width; ++i) {
        const float v = lambda * G::g((load(xr, i) - mean) * scale);
        c[i] = v;
        sum += v;
      }
      s0[row] = mean;
      auto* yr = target(y + row * width, wide);
      if (CompressFirst) {
        const float mean_c = sum / float(width);
        s1[row] = mean_c;
        s2[row] = rstd_of(c, mean_c, width, shape.eps);
        write_affine(yr, c, mean_c, s2[row], weight, bias, width);
      } else {
        s1[row] = rstd;
        write_affine(yr, c, 0.0f, 1.0f, weight, bias, width);
      }
      closed(y + row * width, yr, width);
    }
  }
}

// dweight, dbias: (threads, width), zeroed by the caller, one partial sum a thread; null where not wanted.
template <class G, bool CompressFirst, class T>
static void backward(const T* dy, const T* x, const float* weight, const float* statistics, T* dx, float* dweight,
                     float* dbias, const Shape& shape) {
  const float *s0 = statistics, *s1 = s0 + shape.rows, *s2 = s1 + shape.rows;
  const int64_t width = shape.width;
  const float lambda = shape.lambda, inverse = 1.0f / lambda, count = float(width);
#pragma omp parallel num_threads(shape.threads)
  {
    Scratch scratch((4 + buffers<T>) * width);
    // z: the standardized value; grad: the gradient entering the standardization.
    float *z = scratch.data, *slope = z + width, *grad = slope + width, *ones = grad + width, *wide = ones + width;
    for (int64_t i = 0; i < width; ++i) ones[i] = 1.0f;
    const float* w = weight ? weight : ones;
    float* dw = dweight ? dweight + omp_get_thread_num() * width : nullptr;
    float* db = dbias ? dbias + omp_get_thread_num() * width : nullptr;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < shape.rows; ++row) {
      const auto* xr = opened(x + row * shape.x_stride, wide, width);
      const auto* dyr = opened(dy + row * shape.dy_stride, wide + width, width);
      const float mean = s0[row], mean_c = CompressFirst ? s1[row] : 0.0f, rstd = CompressFirst ? s2[row] : s1[row];
      const float scale = CompressFirst ? inverse : inverse * rstd;
      float sum = 0, sum_z = 0;
#pragma omp simd reduction(+ : sum, sum_z)
      for (int64_t i = 0; i < width; ++i) {
        const float u = (load(xr, i) - mean) * scale;
        const float s = G::g(u), dg = G::dg(u, s);
        const float out = CompressFirst ? (lambda * s - mean_c) * rstd : lambda * s;
        const float standardized = CompressFirst ? out : u * lambda;
        const float dz = CompressFirst ? load(dyr, i) * w[i] : load(dyr, i) * w[i] * dg;
        z[i] = standardized;
        slope[i] = CompressFirst ? dg : out;  // standardize-first keeps out here, and needs dg no more
        grad[i] = dz;
        sum += dz;
        sum_z += dz * standardized;
      }
      const float* out = CompressFirst ? z : slope;
      if (dw) {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) dw[i] += load(dyr, i) * out[i];
      }
      if (db) {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) db[i] += load(dyr, i);
      }
      const float mean_dz = sum / count, mean_dzz = sum_z / count;
      auto* dxr = target(dx + row * width, wide);
      if (CompressFirst) {
        float total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < width; ++i) {
          const float d = slope[i] * (rstd * (grad[i] - mean_dz - z[i] * mean_dzz));
          grad[i] = d;
          total += d;
        }
        const float mean_d = total / count;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) store(dxr, i, grad[i] - mean_d);
      } else {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) store(dxr, i, rstd * (grad[i] - mean_dz - z[i] * mean_dzz));
      }
      closed(dx + row * width, dxr, width);
    }
  }
}

// ---------------------------------------------------------------- what Python calls
// One library a compression and order, named by -DCOMPRESSION=... -DCOMPRESS_FIRST=...: a second to compile, not five.

#define EXPORT(TYPE, T)                                                                                             \
  extern "C" void forward_##TYPE(const T* x, const float* weight, const float* bias, T* y, float* statistics,       \
                                 const Shape* shape) {                                                              \
    forward<COMPRESSION, COMPRESS_FIRST, T>(x, weight, bias, y, statistics, *shape);                                \
  }                                                                                                                 \
  extern "C" void backward_##TYPE(const T* dy, const T* x, const float* weight, const float* statistics, T* dx,     \
                                  float* dweight, float* dbias, const Shape* shape) {                               \
    backward<COMPRESSION, COMPRESS_FIRST, T>(dy, x, weight, statistics, dx, dweight, dbias, *shape);                \
  }

EXPORT(float32, float)
EXPORT(bfloat16, bf16)
#if HAS_FP16
EXPORT(float16, fp16)
#endif
"""
