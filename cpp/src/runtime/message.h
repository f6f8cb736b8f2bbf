#pragma once

#include <initializer_list>
#include <string>
#include <utility>

namespace torchcc::detail {

/// The layout of every error: a first line that says what is wrong, then "  key: value" lines with the values aligned.
/// Python's torchcc.errors.message() writes the same.
std::string message(const std::string& subject, std::initializer_list<std::pair<const char*, std::string>> lines);

/// Text up to its first line break: libtorch's own messages end with a backtrace.
inline std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

/// A message of several lines as one.
std::string one_line(const std::string& text);

}  // namespace torchcc::detail
