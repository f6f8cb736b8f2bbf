#pragma once

// Takes the arguments and results of a C++ function apart into tensors and constants, and puts results together again.

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/Scalar.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>

namespace torchcc::detail {

/// The leaves of some C++ values, in order: tensors by reference, and everything else (numbers, lengths, whether an
/// optional has a value) as 64-bit words.
struct Leaves {
  c10::SmallVector<const at::Tensor*, 8> tensors;
  c10::SmallVector<int64_t, 8> constants;
  std::vector<std::shared_ptr<const std::vector<at::Tensor>>> owned;
  std::string* text = nullptr;  ///< where to write the values as people read them; tensors as "$"

  void write(const std::string& words) {
    if (text != nullptr) *text += (text->empty() || text->ends_with('(') ? "" : ", ") + words;
  }
  void open(const char* bracket) {
    if (text != nullptr) *text += std::string(text->empty() || text->ends_with('(') ? "" : ", ") + bracket;
  }
  void close(const char* bracket) {
    if (text != nullptr) *text += bracket;
  }
};

/// Reads leaves back in the order in which they were taken.
struct LeafReader {
  at::Tensor* tensors = nullptr;
  const int64_t* constants = nullptr;

  at::Tensor tensor() { return *tensors++; }
  int64_t constant() { return *constants++; }
};

template <class T>
struct Leaf {
  static_assert(!std::is_same_v<T, T>,
                "torchcc::compile: arguments and results are tensors, numbers, bools, strings and enums, and vectors, "
                "arrays, optionals, tuples and variants of them; let the function capture anything else");
};

template <>
struct Leaf<at::Tensor> {
  static void take(const at::Tensor& value, Leaves& to) {
    to.tensors.push_back(&value);
    to.write("$");
  }
  static at::Tensor build(LeafReader& from) { return from.tensor(); }
};

template <class T>
  requires(std::is_arithmetic_v<T> || std::is_enum_v<T>)
struct Leaf<T> {
  static void take(T value, Leaves& to) {
    if constexpr (std::is_floating_point_v<T>) {
      to.constants.push_back(std::bit_cast<int64_t>(static_cast<double>(value)));
    } else {
      to.constants.push_back(static_cast<int64_t>(value));
    }
    if (to.text == nullptr) return;
    if constexpr (std::is_same_v<T, bool>) {
      to.write(value ? "true" : "false");
    } else if constexpr (std::is_enum_v<T>) {
      to.write(std::to_string(static_cast<int64_t>(value)));
    } else {
      to.write(std::to_string(value));
    }
  }
  static T build(LeafReader& from) {
    if constexpr (std::is_floating_point_v<T>) {
      return static_cast<T>(std::bit_cast<double>(from.constant()));
    } else {
      return static_cast<T>(from.constant());
    }
  }
};

/// Strings: the length, then the bytes, eight to a word.
struct TextLeaf {
  static void take(std::string_view value, Leaves& to) {
    to.constants.push_back(static_cast<int64_t>(value.size()));
    for (size_t i = 0; i < value.size(); i += sizeof(int64_t)) {
      int64_t word = 0;
      std::memcpy(&word, value.data() + i, std::min(sizeof word, value.size() - i));
      to.constants.push_back(word);
    }
    to.write('"' + std::string(value) + '"');
  }
};
template <>
struct Leaf<std::string_view> : TextLeaf {};
template <>
struct Leaf<const char*> : TextLeaf {};
template <>
struct Leaf<std::string> : TextLeaf {
  static std::string build(LeafReader& from) {
    std::string value(static_cast<size_t>(from.constant()), '\0');
    for (size_t i = 0; i < value.size(); i += sizeof(int64_t)) {
      const int64_t word = from.constant();
      std::memcpy(value.data() + i, &word, std::min(sizeof word, value.size() - i));
    }
    return value;
  }
};

template <class T>
struct Leaf<std::optional<T>> {
  static void take(const std::optional<T>& value, Leaves& to) {
    to.constants.push_back(value.has_value());
    if (value.has_value()) {
      Leaf<T>::take(*value, to);
    } else {
      to.write("none");
    }
  }
  static std::optional<T> build(LeafReader& from) {
    if (from.constant() == 0) return std::nullopt;
    return Leaf<T>::build(from);
  }
};
template <>
struct Leaf<std::nullopt_t> {
  static void take(std::nullopt_t, Leaves& to) {
    to.constants.push_back(0);
    to.write("none");
  }
};

/// Everything with a length that can be iterated over.
template <class Range, class T>
struct RangeLeaf {
  static void take(const Range& values, Leaves& to) {
    to.constants.push_back(static_cast<int64_t>(values.size()));
    to.open("(");
    for (const auto& value : values) Leaf<T>::take(value, to);
    to.close(")");
  }
};
template <class T>
struct Leaf<c10::ArrayRef<T>> : RangeLeaf<c10::ArrayRef<T>, T> {};
template <class T>
struct Leaf<std::vector<T>> : RangeLeaf<std::vector<T>, T> {
  static std::vector<T> build(LeafReader& from) {
    std::vector<T> values;
    const int64_t size = from.constant();
    values.reserve(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) values.push_back(Leaf<T>::build(from));
    return values;
  }
};
template <class T, size_t N>
struct Leaf<std::array<T, N>> : RangeLeaf<std::array<T, N>, T> {
  static std::array<T, N> build(LeafReader& from) {
    from.constant();
    std::array<T, N> values;
    for (T& value : values) value = Leaf<T>::build(from);
    return values;
  }
};
template <>
struct Leaf<c10::List<at::Tensor>> {
  static void take(const c10::List<at::Tensor>& values, Leaves& to) {
    // The list gives its elements by value only.
    to.owned.push_back(std::make_shared<const std::vector<at::Tensor>>(values.vec()));
    Leaf<std::vector<at::Tensor>>::take(*to.owned.back(), to);
  }
};

template <class... T>
struct Leaf<std::tuple<T...>> {
  static void take(const std::tuple<T...>& values, Leaves& to) {
    to.open("(");
    std::apply([&](const auto&... value) { (Leaf<std::decay_t<decltype(value)>>::take(value, to), ...); }, values);
    to.close(")");
  }
  // Braces, so that the elements are built in order.
  static std::tuple<T...> build(LeafReader& from) { return std::tuple<T...>{Leaf<T>::build(from)...}; }
};
template <class A, class B>
struct Leaf<std::pair<A, B>> {
  static void take(const std::pair<A, B>& value, Leaves& to) {
    Leaf<A>::take(value.first, to);
    Leaf<B>::take(value.second, to);
  }
  static std::pair<A, B> build(LeafReader& from) { return std::pair<A, B>{Leaf<A>::build(from), Leaf<B>::build(from)}; }
};
/// Options such as torch::nn's `reduction`: variants of empty tag types.
template <class... T>
struct Leaf<std::variant<T...>> {
  static void take(const std::variant<T...>& value, Leaves& to) {
    to.constants.push_back(static_cast<int64_t>(value.index()));
    std::visit([&](const auto& held) { Leaf<std::decay_t<decltype(held)>>::take(held, to); }, value);
  }
};
template <class T>
  requires(std::is_empty_v<T> && std::is_class_v<T>)
struct Leaf<T> {
  static void take(const T&, Leaves&) {}
  static T build(LeafReader&) { return T{}; }
};
template <>
struct Leaf<c10::Device> {
  static void take(c10::Device value, Leaves& to) {
    to.constants.push_back(static_cast<int64_t>(value.type()) * 256 + value.index());
    to.write(value.str());
  }
};
template <>
struct Leaf<c10::Scalar> {
  static void take(const c10::Scalar& value, Leaves& to) {
    to.constants.push_back(static_cast<int64_t>(value.type()));
    if (value.isComplex()) {
      const auto number = value.toComplexDouble();
      Leaf<double>::take(number.real(), to);
      Leaf<double>::take(number.imag(), to);
    } else if (value.isFloatingPoint()) {
      Leaf<double>::take(value.toDouble(), to);
    } else {
      Leaf<int64_t>::take(value.toLong(), to);
    }
  }
};

}  // namespace torchcc::detail
