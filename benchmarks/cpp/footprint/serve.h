// What the programs of this benchmark say to footprint.py: a number of the first result, the most memory until then in
// KiB, and for each number of calls that they read nanoseconds a call; a line each.
#pragma once

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace footprint {

/// VmHWM of /proc/self/status.
inline long peak() {
  std::FILE* file = std::fopen("/proc/self/status", "r");
  char line[256];
  long found = 0;
  while (file != nullptr && std::fgets(line, sizeof line, file) != nullptr) {
    if (std::strncmp(line, "VmHWM:", 6) == 0) found = std::strtol(line + 6, nullptr, 10);
  }
  if (file != nullptr) std::fclose(file);
  return found;
}

/// `call` makes one call; `first` is a number of the first one's result.
template <class Call>
void serve(float first, const Call& call) {
  std::printf("%g\n", static_cast<double>(first));
  std::fflush(stdout);
  std::printf("%ld\n", peak());
  std::fflush(stdout);
  long calls = 0;
  while (std::scanf("%ld", &calls) == 1) {
    const auto start = std::chrono::steady_clock::now();
    for (long i = 0; i < calls; ++i) call();
    const std::chrono::duration<double, std::nano> elapsed = std::chrono::steady_clock::now() - start;
    std::printf("%g\n", elapsed.count() / static_cast<double>(calls));
    std::fflush(stdout);
  }
}

}  // namespace footprint
