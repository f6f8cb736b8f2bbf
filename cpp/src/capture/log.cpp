#include "log.h"

#include <array>
#include <cstdio>
#include <cstdlib>

namespace torchcc::detail {
namespace {

constexpr std::array<std::string_view, 3> kNames = {"capture", "guards", "compile"};

std::array<bool, 3> read_wanted() {
  std::array<bool, 3> wanted{};
  const char* variable = std::getenv("TORCHCC_LOG");
  std::string_view left = variable == nullptr ? "" : variable;
  while (!left.empty()) {
    const size_t comma = std::min(left.find(','), left.size());
    const std::string_view name = left.substr(0, comma);
    for (size_t i = 0; i < kNames.size(); ++i) wanted[i] = wanted[i] || name == kNames[i] || name == "all";
    left.remove_prefix(std::min(comma + 1, left.size()));
  }
  return wanted;
}

}  // namespace

bool is_logged(Topic topic) {
  static const std::array<bool, 3> wanted = read_wanted();
  return wanted[static_cast<size_t>(topic)];
}

void log(Topic topic, std::string_view function, std::string_view text) {
  if (!is_logged(topic)) return;
  std::string line = "torchcc[" + std::string(kNames[static_cast<size_t>(topic)]) + "] " + std::string(function) + ": ";
  line += text;
  line += '\n';
  std::fwrite(line.data(), 1, line.size(), stderr);
}

}  // namespace torchcc::detail
