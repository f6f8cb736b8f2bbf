#include "cpu.h"

namespace torchcc::detail {

bool cpu_supports(std::string_view feature) {
#if defined(__x86_64__)
  // The builtin takes a literal, hence the list. AMX has no name there in GCC 12: its instructions fault unless the
  // kernel grants them, so code that uses them is not accepted yet.
  if (feature == "avx2") return __builtin_cpu_supports("avx2");
  if (feature == "fma") return __builtin_cpu_supports("fma");
  if (feature == "bmi") return __builtin_cpu_supports("bmi");
  if (feature == "bmi2") return __builtin_cpu_supports("bmi2");
  if (feature == "popcnt") return __builtin_cpu_supports("popcnt");
  if (feature == "avx512f") return __builtin_cpu_supports("avx512f");
  if (feature == "avx512bw") return __builtin_cpu_supports("avx512bw");
  if (feature == "avx512cd") return __builtin_cpu_supports("avx512cd");
  if (feature == "avx512dq") return __builtin_cpu_supports("avx512dq");
  if (feature == "avx512vl") return __builtin_cpu_supports("avx512vl");
  if (feature == "avx512vnni") return __builtin_cpu_supports("avx512vnni");
  if (feature == "avx512bf16") return __builtin_cpu_supports("avx512bf16");
#else
  (void)feature;
#endif
  return false;
}

}  // namespace torchcc::detail
