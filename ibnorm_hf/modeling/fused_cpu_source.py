# SPDX-License-Identifier: Apache-2.0
"""C++ source of the CPU kernel; in a Python file, because only those travel with an exported checkpoint."""

SOURCE = r"""
// IBNorm on the CPU: one read of x and one write of y forward, one read of x and dy and one write of dx backward,
// everything between held in a row buffer that fits the cache, in float32 whatever the storage type.
// Loops are branch-free so that the compiler vectorizes them; nothing here depends on fast-math, so nan passes.

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
// Where float32 values of a row wait: in the row that they end in, or in `buffer` where that is narrower.
template <class T> INLINE float* held(T*, float* buffer) { return buffer; }
INLINE float* held(float* row, float*) { return row; }
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
// Polynomials are our own least-maximum-error fits in float64, of at most 0.5 units in the last place of float32. With
// its rounding, over all of float32, log1p is within 1.7 of such units and tanh within 2.5.

INLINE float log1p_positive(float full) {
  const float a = full > 8.5e37f ? 8.5e37f : full;  // written so that nan stays nan; beyond, scale is no float
  const int32_t exponent = (bits_as<int32_t>(1.0f + a) - 0x3f3504f3) & ~0x7fffff;  // of 1 + a, times 2^23
  const float scale = bits_as<float>(0x3f800000 - exponent);
  const float f = a * scale + (scale - 1.0f);  // (1 + a) scale = 1 + f lies in [sqrt(1/2), sqrt(2)); f is a below that
  float p = 0.08734846115112305f;
  p = p * f - 0.14307527244091034f;
  p = p * f + 0.14917974174022675f;
  p = p * f - 0.16570506989955902f;
  p = p * f + 0.19962072372436523f;
  p = p * f - 0.25001755356788635f;
  p = p * f + 0.33333951234817505f;
  p = p * f - 0.49999991059303284f;
  return float(exponent) * 8.262958294867817e-08f + (f * f * p + f);  // log(2) / 2^23
}

INLINE float tanh_of(float u) {
  const float full = std::fabs(u);
  const float a = full > 10.0f ? 10.0f : full;  // written so that nan stays nan; tanh(10) is 1 in float32
  const float shifted = a * 2.8853900817779268f + 12582912.0f;  // the nearest integer to 2a / log(2), in the low bits
  const float r = a * 2.0f - (shifted - 12582912.0f) * 0.6931471805599453f;
  float p = 0.0013882509665563703f;
  p = p * r + 0.008366580121219158f;
  p = p * r + 0.04166720062494278f;
  p = p * r + 0.1666654348373413f;
  p = p * r + 0.4999999701976776f;
  const float power = bits_as<float>((bits_as<int32_t>(shifted) << 23) + 0x3f800000);
  const float less = (r * r * p + r) * power + (power - 1.0f);  // exp(2a) - 1
  return std::copysign(less / (less + 2.0f), u);
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
struct Clip {
  INLINE float g(float u) {
    const float v = u > 1.0f ? 1.0f : u;
    return v < -1.0f ? -1.0f : v;
  }
  INLINE float dg(float u, float) {
    const float a = std::fabs(u);
    return a < 1.0f ? 1.0f : a == 1.0f ? 0.5f : 0.0f;
  }
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
  const float shift = mean * scale;
  if (weight && bias) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(y, i, (c[i] * scale - shift) * weight[i] + bias[i]);
  } else if (weight) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(y, i, (c[i] * scale - shift) * weight[i]);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(y, i, c[i] * scale - shift);
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
    float *buffer = scratch.data, *wide = buffer + width;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < shape.rows; ++row) {
      const auto* xr = opened(x + row * shape.x_stride, wide, width);
      const float mean = mean_of(xr, width);
      const float rstd = CompressFirst ? 1.0f : rstd_of(xr, mean, width, shape.eps);
      const float scale = inverse * rstd;
      float* c = held(y + row * width, buffer);
      float sum = 0, squares = 0;  // of c; where its mean is large beside its deviation, the variance is taken anew
#pragma omp simd reduction(+ : sum, squares)
      for (int64_t i = 0; i < width; ++i) {
        const float v = lambda * G::g((load(xr, i) - mean) * scale);
        c[i] = v;
        sum += v;
        squares += v * v;
      }
      s0[row] = mean;
      auto* yr = target(y + row * width, wide);
      if (CompressFirst) {
        const float mean_c = sum / float(width);
        s1[row] = mean_c;
        const float var = squares / float(width) - mean_c * mean_c;
        s2[row] = var > mean_c * mean_c ? 1.0f / std::sqrt(var + shape.eps) : rstd_of(c, mean_c, width, shape.eps);
        write_affine(yr, c, mean_c, s2[row], weight, bias, width);
      } else {
        s1[row] = rstd;
        write_affine(yr, c, 0.0f, 1.0f, weight, bias, width);
      }
      closed(y + row * width, yr, width);
    }
  }
}

// dweight, dbias: (threads, width), zeroed by the caller, one partial sum a thread; null where not wanted, and summed
// aside then.
template <class G, bool CompressFirst, class T>
static void backward(const T* dy, const T* x, const float* weight, const float* statistics, T* dx, float* dweight,
                     float* dbias, const Shape& shape) {
  const float *s0 = statistics, *s1 = s0 + shape.rows, *s2 = s1 + shape.rows;
  const int64_t width = shape.width;
  const float lambda = shape.lambda, inverse = 1.0f / lambda, count = float(width);
#pragma omp parallel num_threads(shape.threads)
  {
    Scratch scratch((5 + buffers<T>) * width);
    // z: the standardized value; d: the gradient entering the mean (compress-first) or the standardization.
    float *z = scratch.data, *buffer = z + width, *ones = buffer + width, *unwanted = ones + width;
    float* wide = unwanted + 2 * width;
    for (int64_t i = 0; i < width; ++i) {
      ones[i] = 1.0f;
      unwanted[i] = unwanted[i + width] = 0.0f;
    }
    const float* w = weight ? weight : ones;
    float* dw = dweight ? dweight + omp_get_thread_num() * width : unwanted;
    float* db = dbias ? dbias + omp_get_thread_num() * width : unwanted + width;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < shape.rows; ++row) {
      const auto* xr = opened(x + row * shape.x_stride, wide, width);
      const auto* dyr = opened(dy + row * shape.dy_stride, wide + width, width);
      const float mean = s0[row], mean_c = CompressFirst ? s1[row] : 0.0f, rstd = CompressFirst ? s2[row] : s1[row];
      const float scale = CompressFirst ? inverse : inverse * rstd;
      auto* dxr = target(dx + row * width, wide);
      float* d = held(dx + row * width, buffer);
      float sum = 0, sum_z = 0;
      if (CompressFirst) {
#pragma omp simd reduction(+ : sum, sum_z)
        for (int64_t i = 0; i < width; ++i) {
          const float s = G::g((load(xr, i) - mean) * scale), g = load(dyr, i), dz = g * w[i];
          const float out = (lambda * s - mean_c) * rstd;
          z[i] = out;
          sum += dz;
          sum_z += dz * out;
        }
        // u anew from x, which is in the cache, and s from z: two buffers less keep the row there.
        const float a = sum / count, b = sum_z / count, back = inverse / rstd, shift = mean_c * inverse;
        float total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < width; ++i) {
          const float slope = G::dg((load(xr, i) - mean) * scale, z[i] * back + shift);
          const float g = load(dyr, i), v = slope * (rstd * (g * w[i] - a - z[i] * b));
          d[i] = v;
          total += v;
          dw[i] += g * z[i];
          db[i] += g;
        }
        const float mean_d = total / count;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) store(dxr, i, d[i] - mean_d);
      } else {
#pragma omp simd reduction(+ : sum, sum_z)
        for (int64_t i = 0; i < width; ++i) {
          const float u = (load(xr, i) - mean) * scale, s = G::g(u), g = load(dyr, i), dz = g * w[i] * G::dg(u, s);
          const float standardized = u * lambda;
          z[i] = standardized;
          d[i] = dz;
          sum += dz;
          sum_z += dz * standardized;
          dw[i] += g * (lambda * s);
          db[i] += g;
        }
        const float a = sum / count, b = sum_z / count;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) store(dxr, i, rstd * (d[i] - a - z[i] * b));
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
