// How the programs of this folder are written, run and compared.
//
//   BOOST_AUTO_TEST_CASE(linear) {
//     check([] {
//       torch::nn::Linear net(8, 4);
//       return program([net](Tensor x) mutable { return net->forward(x); },
//                      [](int) { return std::tuple(torch::randn({3, 8})); }, tensors_of(net));
//     });
//   }
//
// A program is a function, a source of arguments for call number 1, 2, ..., and the tensors that it keeps. check()
// makes it twice from one seed, compiles one of the two, calls both with the same arguments, and compares everything:
// results, arguments and kept tensors; their values, dtypes, sizes and strides, and which of them share memory.
#pragma once

#include <torchcc/compile.h>
#include <boost/test/unit_test.hpp>

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "values.h"

namespace programs {

using at::Tensor;
using Options = torchcc::CompileOptions;
using State = std::function<std::vector<Tensor>()>;

template <class F, class Inputs>
struct Program {
  F function;
  Inputs inputs;  ///< call number -> tuple of arguments
  State state;    ///< the tensors that live as long as the program
};

template <class F, class Inputs>
Program<F, Inputs> program(F function, Inputs inputs, State state = {}) {
  return {std::move(function), std::move(inputs), std::move(state)};
}

/// The parameters and buffers of a module, as kept tensors.
template <class Module>
State tensors_of(Module module) {
  return [module] {
    std::vector<Tensor> tensors = module->parameters();
    for (const Tensor& buffer : module->buffers()) tensors.push_back(buffer);
    return tensors;
  };
}

/// What has to come out.
struct Expect {
  std::string eager{};     ///< words of the reason for never being replayed; empty: has to be replayed from call 3 on
  bool values = true;      ///< false: values differ by nature (random numbers); all else is compared
  bool gradients = false;  ///< true: runs with grad mode on
  double tolerance = 1;    ///< times that of the dtype
  double gradient_tolerance = 1;  ///< the same for gradients, which may have come through shorter dtypes
  int calls = 5;
  bool needs_compiler = false;  ///< the reason is the compiler's; other eager programs run without one
};

/// Options of most programs: not frozen, which saves a compilation; named as the test.
Options plain_options();
/// The same with freezing.
Options freezing_options();

/// Everything that one call can be seen to have done.
struct Outcome {
  Values results, arguments, state;
};

/// Compares what a call did with what it should have done.
void compare(const Outcome& got, const Outcome& expected, const Expect& expect, int call);

/// How two tensors differ in dtype, sizes, strides or values (by more than `tolerance` times what is usual for the
/// dtype); empty when they do not.
std::string difference(const Tensor& got, const Tensor& expected, double tolerance = 1);

/// The parts of `words`, which are separated by '&', that `text` does not contain; empty when it contains all.
std::string missing(std::string_view text, std::string_view words);

/// Calls `function`, a callable or a pointer to a module, with a tuple of arguments.
template <class F, class Arguments>
Outcome observe(F& function, Arguments arguments, const State& state) {
  Outcome outcome;
  const auto call = [&](auto&... argument) -> decltype(auto) {
    if constexpr (requires { function->forward(argument...); }) {
      return function->forward(argument...);
    } else {
      return function(argument...);
    }
  };
  if constexpr (std::is_void_v<decltype(std::apply(call, arguments))>) {
    std::apply(call, arguments);
  } else {
    outcome.results.add(std::apply(call, arguments));
  }
  outcome.arguments.add(arguments);
  if (state) outcome.state.add(state());
  return outcome;
}

constexpr uint64_t kSeed = 20240607;

/// Whether the variable TORCHCC_PROGRAMS is "lazy": check() then runs programs in lazy mode. With "training" it lets
/// gradients flow into everything that a program works on, and compares these too; with "sizes" it calls programs that
/// take arguments of other sizes with many.
bool is_lazy();

/// Sizes of a dimension, made by repeating rows, of all tensors among some arguments that have it.
struct Growth {
  int64_t axis = 0;
  int64_t from = 0;  ///< the size to change; that of the first tensor that has such a dimension
  int64_t to = 0;    ///< 0: nothing changes

  void apply(Tensor& tensor) {
    if (!tensor.defined() || tensor.dim() <= axis) return;
    if (from == 0) from = tensor.size(axis);
    if (to == 0 || tensor.size(axis) != from) return;
    tensor = tensor.index_select(axis, torch::arange(to).remainder(from));
  }
  void apply(std::optional<Tensor>& tensor) {
    if (tensor.has_value()) apply(*tensor);
  }
  void apply(std::vector<Tensor>& tensors) {
    for (Tensor& tensor : tensors) apply(tensor);
  }
  template <class T>
  void apply(T&) {}
  template <class... T>
  void apply(std::tuple<T...>& arguments) {
    std::apply([this](auto&... argument) { (apply(argument), ...); }, arguments);
  }
};

/// A program without its types: the function itself, or compiled.
struct Runner {
  /// Calls it with the arguments of a call number, after `growth` and `before` have changed these.
  std::function<Outcome(int call, Growth& growth, const std::function<void(const Values&)>& before)> run;
  std::function<torchcc::CompileStats()> stats;  ///< of the compiled form; waits for the compiler
};

/// Makes a program anew, from the same seed each time.
using MakeRunner = std::function<Runner(bool is_compiled)>;

/// See the top of this file.
void check(const MakeRunner& make, const Expect& expect);
/// The same with gradients of arguments and kept tensors; every call from the third on has to be compiled.
void check_trained(const MakeRunner& make, const Expect& expect);

template <class F, class Inputs>
Runner runner(F function, Inputs inputs, State state, std::function<torchcc::CompileStats()> stats) {
  return {[=](int call, Growth& growth, const auto& before) mutable {
            torch::manual_seed(kSeed + static_cast<uint64_t>(call));
            auto arguments = inputs(call);
            growth.apply(arguments);
            Values taken;
            taken.add(arguments);
            before(taken);
            taken.tensors.clear();  // nobody else has the arguments
            return observe(function, std::move(arguments), state);
          },
          std::move(stats)};
}

template <class Make>
MakeRunner runners(Make make, Options options) {
  return [make = std::move(make), options = std::move(options)](bool is_compiled) {
    torch::manual_seed(kSeed);
    auto program = make();
    if (!is_compiled) return runner(program.function, program.inputs, program.state, {});
    auto compiled = torchcc::compile(program.function, options);
    return runner(compiled, program.inputs, program.state, [compiled] {
      compiled.wait();
      return compiled.stats();
    });
  };
}

template <class Make>
void check(const Make& make, const Expect& expect = {}, Options options = plain_options()) {
  if (is_lazy()) options.mode = torchcc::CompileMode::lazy;
  check(runners(make, std::move(options)), expect);
}

}  // namespace programs
