#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace benchmarks {

/// One of the things that are compared: runs what is measured `calls` times.
struct Contender {
  std::string name;
  std::function<void(size_t calls)> run;
};

/// Nanoseconds per call, one value per round.
using Samples = std::map<std::string, std::vector<double>>;

inline double nanoseconds_per_call(const Contender& contender, size_t calls) {
  const auto start = std::chrono::steady_clock::now();
  contender.run(calls);
  const std::chrono::duration<double, std::nano> elapsed = std::chrono::steady_clock::now() - start;
  return elapsed.count() / static_cast<double>(calls);
}

/// Measures all contenders in turn, round after round, so that what else the machine does meets all of them alike and
/// the values of one round can be compared. The first contender changes from round to round.
inline Samples measure(const std::vector<Contender>& contenders, size_t rounds, size_t calls) {
  Samples samples;
  for (const Contender& contender : contenders) contender.run(calls);  // first calls load code and fill caches
  for (size_t round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < contenders.size(); ++i) {
      const Contender& contender = contenders[(round + i) % contenders.size()];
      samples[contender.name].push_back(nanoseconds_per_call(contender, calls));
    }
  }
  return samples;
}

}  // namespace benchmarks
