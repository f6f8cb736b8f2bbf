#include "cpu.h"

namespace torchcc::detail {

// The builtin takes a literal, hence the list; python/torchcc/toolchain.py has the same one.
#define TORCHCC_CPU_FEATURES(X) \
  X("popcnt")                   \
  X("avx")                      \
  X("avx2")                     \
  X("fma")                      \
  X("bmi")                      \
  X("bmi2")                     \
  X("avx512f")                  \
  X("avx512bw")                 \
  X("avx512cd")                 \
  X("avx512dq")                 \
  X("avx512vl")                 \
  X("avx512vnni")               \
  X("avx512bf16")               \
  X("avx512vbmi")               \
  X("avx512vbmi2")              \
  X("avx512ifma")               \
  X("avx512bitalg")             \
  X("avx512vpopcntdq")          \
  X("gfni")                     \
  X("vpclmulqdq")               \
  X("fma4")                     \
  X("xop")                      \
  X("sse4a")                    \
  X("amx-tile")                 \
  X("amx-int8")                 \
  X("amx-bf16")

bool cpu_supports([[maybe_unused]] std::string_view feature) {
#if defined(__x86_64__)
#define TORCHCC_CHECK(name) \
  if (feature == name) return __builtin_cpu_supports(name);
  TORCHCC_CPU_FEATURES(TORCHCC_CHECK)
#undef TORCHCC_CHECK
#endif
  return false;
}

}  // namespace torchcc::detail
