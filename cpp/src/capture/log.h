#pragma once

#include <string>
#include <string_view>

namespace torchcc::detail {

/// Topics of TORCHCC_LOG, a list such as "capture,guards,compile" (or "all").
enum class Topic { capture, guards, compile };

/// Whether lines of a topic are wanted. The environment is read once.
bool is_logged(Topic topic);

/// Writes one line to stderr if its topic is wanted.
void log(Topic topic, std::string_view function, std::string_view text);

}  // namespace torchcc::detail
