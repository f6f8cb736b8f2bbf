// The mistakes that a caller can make with LibTorch and without it. Both programs make them from here, under the same
// titles, since their messages are the same.
#pragma once

#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <initializer_list>
#include <typeinfo>
#include <vector>

#include <torchcc/torchcc.h>

namespace mistakes {

using Arguments = std::vector<torchcc::Argument>;
using torchcc::Tensor;

inline const char* kind(const torchcc::Error& error) {
  if (dynamic_cast<const torchcc::ArgumentError*>(&error) != nullptr) return "ArgumentError";
  if (dynamic_cast<const torchcc::CaptureError*>(&error) != nullptr) return "CaptureError";
  if (dynamic_cast<const torchcc::PackageError*>(&error) != nullptr) return "PackageError";
  return typeid(error) == typeid(torchcc::Error) ? "Error" : "another class";
}

/// Prints the title, and what is thrown.
inline void mistake(const char* title, const std::function<void()>& make) {
  std::printf("## %s\n", title);
  try {
    make();
    std::printf("no error\n\n");
  } catch (const torchcc::Error& error) {
    std::printf("%s: %s\n\n", kind(error), error.what());
  } catch (const std::exception& error) {
    std::printf("not an error of torchcc: %s\n\n", error.what());
  }
}

template <class T>
Tensor full(torchcc::IntArrayRef sizes, T value, torchcc::ScalarType dtype) {
  const Tensor tensor = torchcc::empty(sizes, dtype);
  for (int64_t i = 0; i < tensor.numel(); ++i) tensor.data_ptr<T>()[i] = value;
  return tensor;
}

/// The functions of tests/regions.py that are called, and tensors for them.
struct Tensors {
  explicit Tensors(const torchcc::Package& regions)
      : add_relu(regions["add_relu"]),
        blend(regions["blend"]),
        interleave(regions["interleave"]),
        accumulate(regions["accumulate"]),
        divide(regions["divide"]),
        lookup(regions["lookup"]) {}

  torchcc::Function add_relu, blend, interleave, accumulate, divide, lookup;
  Tensor x = full({16}, 1.0f, torchcc::kFloat);
  Tensor a = full({4, 3}, 1.0, torchcc::kDouble);
  Tensor seven = full<int64_t>({3}, 7, torchcc::kLong);
};

inline void handles(const Tensors& t) {
  mistake("no package", [] { torchcc::Package()["add_relu"]; });
  mistake("no function", [&] { torchcc::Function()(t.x); });
  mistake("the signature of no function", [] { torchcc::Function().signature(); });
}

inline void arguments(const Tensors& t) {
  mistake("too few arguments", [&] { t.add_relu(t.x); });
  mistake("too many arguments", [&] { t.add_relu(t.x, t.x, t.x); });
  mistake("two outputs, called as if there was one", [&] { t.blend(t.a, t.a, 1.0, 1, true); });
  mistake("undefined tensor", [&] { t.add_relu(t.x, Tensor()); });
  mistake("wrong dtype", [&] { t.add_relu(t.x, t.x.to(torchcc::kDouble)); });
  mistake("wrong dtype in the first of several",
          [&] { t.blend.call({torchcc::empty({4, 3}, torchcc::kHalf), t.a, 1.0, 1, true}); });
  mistake("wrong rank", [&] { t.add_relu(t.x, t.x.as_strided({1, 16}, {16, 1})); });
  mistake("number where a tensor belongs", [&] { t.blend.call({t.a, 1.0, 1.0, 1, true}); });
  mistake("tensor where a number belongs", [&] { t.blend.call({t.a, t.a, t.a, 1, true}); });
  mistake("double for an integer", [&] { t.blend.call({t.a, t.a, 1.0, 1.0, true}); });
  mistake("bool for a double", [&] { t.blend.call({t.a, t.a, true, 1, true}); });
  mistake("integer for a bool", [&] { t.blend.call({t.a, t.a, 1.0, 1, 1}); });
  mistake("number out of range", [&] { t.blend.call({t.a, t.a, 1.0, 6, true}); });
}

inline void sizes(const Tensors& t) {
  const Tensor large = full({4097, 3}, 1.0, torchcc::kDouble);
  mistake("wrong fixed size", [&] { t.add_relu(t.x, full({15}, 1.0f, torchcc::kFloat)); });
  mistake("batch 4 against batch 3", [&] { t.blend.call({t.a, t.a.as_strided({3, 3}, {3, 1}), 1.0, 1, true}); });
  mistake("size out of range", [&] { t.blend.call({large, large, 1.0, 1, true}); });
  mistake("size that is an expression",
          [&] { t.interleave(t.a.as_strided({4}, {3}), full({7}, 1.0, torchcc::kDouble)); });
}

inline void names(const Tensors& t) {
  mistake("name that no argument has", [&] { t.add_relu({{"x", t.x}, {"z", t.x}}); });
  mistake("argument twice", [&] { t.add_relu({{"x", t.x}, {"x", t.x}}); });
  mistake("argument left out", [&] { t.add_relu({{"y", t.x}}); });
  mistake("output that is not there", [&] { t.add_relu({{"x", t.x}, {"y", t.x}})["z"]; });
  mistake("position of no output", [&] { t.add_relu({{"x", t.x}, {"y", t.x}})[1]; });
  mistake("weight of a function without any", [&] { t.add_relu.set_weight("last.bias", t.x); });
}

inline void outputs(const Tensors& t) {
  const auto out_into = [&](Tensor out) { t.add_relu.call_out({&out, 1}, Arguments{t.x, t.x}); };
  mistake("wrong number of outputs", [&] {
    Tensor out = torchcc::empty({4, 3}, torchcc::kDouble);
    t.blend.call_out({&out, 1}, Arguments{t.a, t.a, 1.0, 1, true});
  });
  mistake("undefined output", [&] { out_into(Tensor()); });
  mistake("output of the wrong dtype", [&] { out_into(torchcc::empty({16}, torchcc::kDouble)); });
  mistake("output of the wrong size", [&] { out_into(torchcc::empty({17})); });
  mistake("output of the wrong size, by symbol", [&] {
    Tensor outs[]{torchcc::empty({4, 3}, torchcc::kDouble), torchcc::empty({5}, torchcc::kDouble)};
    t.blend.call_out(outs, Arguments{t.a, t.a, 1.0, 1, true});
  });
  mistake("output that is not contiguous", [&] { out_into(torchcc::empty({32}).as_strided({16}, {2})); });
  mistake("output that is an input", [&] { out_into(t.x); });
}

inline void mutation(const Tensors& t) {
  mistake("written to, and expanded", [&] { t.accumulate(t.a.as_strided({4, 3}, {0, 1}), t.a); });
  mistake("written to, and the other argument too", [&] { t.accumulate(t.a, t.a); });
}

inline void running(const Tensors& t) {
  mistake("division by zero", [&] { t.divide(t.seven, full<int64_t>({3}, 0, torchcc::kLong)); });
  mistake("index out of range",
          [&] { t.lookup(full({100, 8}, 1.0f, torchcc::kFloat), full<int64_t>({3}, 100, torchcc::kLong)); });
}

/// Makes them all.
inline void make(const Tensors& t) {
  handles(t);
  arguments(t);
  sizes(t);
  names(t);
  outputs(t);
  mutation(t);
  running(t);
}

}  // namespace mistakes
