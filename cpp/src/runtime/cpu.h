#pragma once

#include <string_view>

namespace torchcc::detail {

/// Whether this CPU, and its operating system, has a feature, by its name in __builtin_cpu_supports. A name that this
/// runtime does not know counts as missing.
bool cpu_supports(std::string_view feature);

}  // namespace torchcc::detail
