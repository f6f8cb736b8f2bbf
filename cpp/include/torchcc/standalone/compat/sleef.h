#pragma once

// Stands in for the header of the SLEEF library, whose vector functions PyTorch's headers call. Where the build found
// the real one (TORCHCC_SLEEF), it is that; else glibc's libmvec where the build found it (TORCHCC_LIBMVEC), and the C
// library's functions, lane by lane, for what it does not have.

#ifdef TORCHCC_SLEEF
#include_next <sleef.h>
#elif defined(__AVX2__)

#include <cmath>

#include <immintrin.h>

#define TORCHCC_LANES(vector, name, call)                                                               \
  inline vector name(vector x) {                                                                        \
    for (unsigned lane = 0; lane < sizeof(vector) / sizeof(x[0]); ++lane) x[lane] = std::call(x[lane]); \
    return x;                                                                                           \
  }
#define TORCHCC_LANES_OF_TWO(vector, name, call)                                                                 \
  inline vector name(vector x, vector y) {                                                                       \
    for (unsigned lane = 0; lane < sizeof(vector) / sizeof(x[0]); ++lane) x[lane] = std::call(x[lane], y[lane]); \
    return x;                                                                                                    \
  }

#ifdef TORCHCC_LIBMVEC
#define TORCHCC_VECTOR(vector, name, call, symbol)          \
  extern "C" [[gnu::const]] vector symbol(vector) noexcept; \
  inline vector name(vector x) { return symbol(x); }
#define TORCHCC_VECTOR_OF_TWO(vector, name, call, symbol)           \
  extern "C" [[gnu::const]] vector symbol(vector, vector) noexcept; \
  inline vector name(vector x, vector y) { return symbol(x, y); }
#else
#define TORCHCC_VECTOR(vector, name, call, symbol) TORCHCC_LANES(vector, name, call)
#define TORCHCC_VECTOR_OF_TWO(vector, name, call, symbol) TORCHCC_LANES_OF_TWO(vector, name, call)
#endif

// `x` is the letter of libmvec's names for an instruction set, and the counts are lanes of float and of double.
#define TORCHCC_BOTH(call, accuracy, floats, doubles, few, fewer, x)                         \
  TORCHCC_VECTOR(floats, Sleef_##call##f##few##accuracy, call, _ZGV##x##N##few##v_##call##f) \
  TORCHCC_VECTOR(doubles, Sleef_##call##d##fewer##accuracy, call, _ZGV##x##N##fewer##v_##call)
#define TORCHCC_BOTH_OF_TWO(call, accuracy, floats, doubles, few, fewer, x)                          \
  TORCHCC_VECTOR_OF_TWO(floats, Sleef_##call##f##few##accuracy, call, _ZGV##x##N##few##vv_##call##f) \
  TORCHCC_VECTOR_OF_TWO(doubles, Sleef_##call##d##fewer##accuracy, call, _ZGV##x##N##fewer##vv_##call)

#define TORCHCC_FUNCTIONS(...)                  \
  TORCHCC_BOTH(acos, _u10, __VA_ARGS__)         \
  TORCHCC_BOTH(acosh, _u10, __VA_ARGS__)        \
  TORCHCC_BOTH(asin, _u10, __VA_ARGS__)         \
  TORCHCC_BOTH(asinh, _u10, __VA_ARGS__)        \
  TORCHCC_BOTH(atan, _u10, __VA_ARGS__)         \
  TORCHCC_BOTH(atanh, _u10, __VA_ARGS__)        \
  TORCHCC_BOTH(cos, _u10, __VA_ARGS__)          \
  TORCHCC_BOTH(cosh, _u10, __VA_ARGS__)         \
  TORCHCC_BOTH(erf, _u10, __VA_ARGS__)          \
  TORCHCC_BOTH(erfc, _u15, __VA_ARGS__)         \
  TORCHCC_BOTH(exp, _u10, __VA_ARGS__)          \
  TORCHCC_BOTH(exp2, _u10, __VA_ARGS__)         \
  TORCHCC_BOTH(expm1, _u10, __VA_ARGS__)        \
  TORCHCC_BOTH(log, _u10, __VA_ARGS__)          \
  TORCHCC_BOTH(log10, _u10, __VA_ARGS__)        \
  TORCHCC_BOTH(log1p, _u10, __VA_ARGS__)        \
  TORCHCC_BOTH(log2, _u10, __VA_ARGS__)         \
  TORCHCC_BOTH(sin, _u10, __VA_ARGS__)          \
  TORCHCC_BOTH(sinh, _u10, __VA_ARGS__)         \
  TORCHCC_BOTH(tan, _u10, __VA_ARGS__)          \
  TORCHCC_BOTH(tanh, _u10, __VA_ARGS__)         \
  TORCHCC_BOTH_OF_TWO(atan2, _u10, __VA_ARGS__) \
  TORCHCC_BOTH_OF_TWO(hypot, _u05, __VA_ARGS__) \
  TORCHCC_BOTH_OF_TWO(pow, _u10, __VA_ARGS__)

// What libmvec does not have, or has under the same name with another accuracy.
#define TORCHCC_OTHERS(floats, doubles, few, fewer)                                  \
  TORCHCC_LANES(floats, Sleef_lgammaf##few##_u10, lgamma)                            \
  TORCHCC_LANES(doubles, Sleef_lgammad##fewer##_u10, lgamma)                         \
  TORCHCC_LANES_OF_TWO(floats, Sleef_fmodf##few, fmod)                               \
  TORCHCC_LANES_OF_TWO(doubles, Sleef_fmodd##fewer, fmod)                            \
  TORCHCC_LANES_OF_TWO(floats, Sleef_nextafterf##few, nextafter)                     \
  TORCHCC_LANES_OF_TWO(doubles, Sleef_nextafterd##fewer, nextafter)                  \
  TORCHCC_LANES_OF_TWO(floats, Sleef_copysignf##few, copysign)                       \
  TORCHCC_LANES_OF_TWO(doubles, Sleef_copysignd##fewer, copysign)                    \
  inline floats Sleef_sinf##few##_u35(floats x) { return Sleef_sinf##few##_u10(x); } \
  inline floats Sleef_cosf##few##_u35(floats x) { return Sleef_cosf##few##_u10(x); } \
  struct Sleef_##floats##_2 {                                                        \
    floats x, y;                                                                     \
  };                                                                                 \
  struct Sleef_##doubles##_2 {                                                       \
    doubles x, y;                                                                    \
  };                                                                                 \
  inline Sleef_##floats##_2 Sleef_sincosf##few##_u10(floats x) {                     \
    return {Sleef_sinf##few##_u10(x), Sleef_cosf##few##_u10(x)};                     \
  }                                                                                  \
  inline Sleef_##doubles##_2 Sleef_sincosd##fewer##_u10(doubles x) {                 \
    return {Sleef_sind##fewer##_u10(x), Sleef_cosd##fewer##_u10(x)};                 \
  }

// A function of vectors of 512 bits may only be declared where the compiler has them.
TORCHCC_FUNCTIONS(__m256, __m256d, 8, 4, d)
TORCHCC_OTHERS(__m256, __m256d, 8, 4)
#ifdef __AVX512F__
TORCHCC_FUNCTIONS(__m512, __m512d, 16, 8, e)
TORCHCC_OTHERS(__m512, __m512d, 16, 8)
#endif

#undef TORCHCC_LANES
#undef TORCHCC_LANES_OF_TWO
#undef TORCHCC_VECTOR
#undef TORCHCC_VECTOR_OF_TWO
#undef TORCHCC_BOTH
#undef TORCHCC_BOTH_OF_TWO
#undef TORCHCC_FUNCTIONS
#undef TORCHCC_OTHERS

#endif
