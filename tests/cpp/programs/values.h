// What a program works on, taken apart for comparison: tensors, and everything else as text.
#pragma once

#include <torch/torch.h>

#include <array>
#include <complex>
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace programs {

/// Some C++ values: their tensors, and numbers, lengths and texts in one line of words.
struct Values {
  std::vector<at::Tensor> tensors;
  std::string words;

  template <class T>
  void say(const T& value) {
    std::ostringstream text;
    text.precision(17);
    text << value << ' ';
    words += text.str();
  }

  void add(const at::Tensor& value) { tensors.push_back(value); }
  void add(const std::string& value) { say(value); }
  void add(const char* value) { say(value); }
  void add(std::nullopt_t) { say("none"); }
  void add(std::monostate) {}

  template <class T>
    requires std::is_arithmetic_v<T>
  void add(T value) {
    say(value);
  }
  template <class T>
    requires std::is_enum_v<T>
  void add(T value) {
    say(static_cast<int64_t>(value));
  }
  template <class T>
  void add(const std::optional<T>& value) {
    if (value.has_value()) {
      add(*value);
    } else {
      say("none");
    }
  }
  template <class T>
  void add(const std::vector<T>& values) {
    say(values.size());
    for (const T& value : values) add(value);
  }
  template <class T, size_t N>
  void add(const std::array<T, N>& values) {
    for (const T& value : values) add(value);
  }
  template <class A, class B>
  void add(const std::pair<A, B>& value) {
    add(value.first);
    add(value.second);
  }
  template <class... T>
  void add(const std::tuple<T...>& value) {
    std::apply([this](const auto&... part) { (add(part), ...); }, value);
  }
  template <class... T>
  void add(const std::variant<T...>& value) {
    std::visit([this](const auto& held) { add(held); }, value);
  }
};

}  // namespace programs
