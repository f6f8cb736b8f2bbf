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
  int calls = 5;
};

/// Options of most programs: not frozen, which saves a compilation; named as the test.
Options plain_options();
/// The same with freezing.
Options freezing_options();

/// Everything that one call can be seen to have done.
struct Outcome {
  Values results, arguments, state;
};

void compare(const Outcome& got, const Outcome& expected, const Expect& expect, int call);
void compare_results(const Outcome& got, const Outcome& expected, const Expect& expect, int call);
void check_stats(const torchcc::CompileStats& stats, const Expect& expect);

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

/// Whether the variable TORCHCC_PROGRAMS is "training": check() then lets gradients flow into everything that a program
/// works on, and compares these too.
bool trains();
/// Whether it is "lazy": check() then runs programs in lazy mode.
bool is_lazy();
/// One line for the summary that the test module prints in the end.
void note_lazy(const torchcc::CompileStats& stats);
/// Lets gradients flow into floating-point tensors that are leaves.
void require_gradients(const Values& values);
/// Differentiates the results of a call, with random gradients of them, and gives the gradients of arguments and state.
/// The results stay, without autograd's graph.
Values differentiate(Outcome& outcome, int call);
/// One line for the summary that the test module prints in the end.
void note_training(const torchcc::CompileStats& stats);

/// What comes out of calling a program once, with gradients of everything.
template <class F, class Inputs>
Outcome train(F& function, Inputs& inputs, const State& state, bool into_arguments, int call, Values& gradients) {
  torch::manual_seed(kSeed + static_cast<uint64_t>(call));
  auto arguments = inputs(call);
  Values taken;
  taken.add(arguments);
  if (into_arguments) require_gradients(taken);
  Outcome outcome = observe(function, std::move(arguments), state);
  gradients = differentiate(outcome, call);
  return outcome;
}

/// Whether a program runs while its arguments, or only its own tensors, require grad.
template <class Make>
bool is_differentiable(const Make& make, bool into_arguments) {
  try {
    torch::manual_seed(kSeed);
    auto program = make();
    Values gradients;
    train(program.function, program.inputs, program.state, into_arguments, 1, gradients);
    return true;
  } catch (const c10::Error&) {  // it writes into leaves, or an operator has no derivative
    return false;
  }
}

template <class Make>
void check_gradients(const Make& make, const Expect& expect, const Options& options) {
  const at::AutoGradMode grad_mode(true);
  const bool into_arguments = is_differentiable(make, true);
  if (!into_arguments && !is_differentiable(make, false)) return;
  torch::manual_seed(kSeed);
  auto plain = make();
  torch::manual_seed(kSeed);
  auto other = make();
  auto compiled = torchcc::compile(other.function, options);
  for (int call = 1; call <= expect.calls; ++call) {
    Values expected_gradients, got_gradients;
    const Outcome expected = train(plain.function, plain.inputs, plain.state, into_arguments, call, expected_gradients);
    const Outcome got = train(compiled, other.inputs, other.state, into_arguments, call, got_gradients);
    compare(got, expected, expect, call);
    compare({got_gradients, {}, {}}, {expected_gradients, {}, {}}, expect, call);
  }
  compiled.wait();
  note_training(compiled.stats());
}

template <class Make>
void check(const Make& make, const Expect& expect = {}, Options options = plain_options()) {
  if (trains()) return check_gradients(make, expect, options);
  if (is_lazy()) options.mode = torchcc::CompileMode::lazy;
  const at::AutoGradMode grad_mode(expect.gradients);
  torch::manual_seed(kSeed);
  auto plain = make();
  torch::manual_seed(kSeed);
  auto other = make();
  auto compiled = torchcc::compile(other.function, options);
  std::vector<std::pair<Outcome, Outcome>> outcomes;
  for (int call = 1; call <= expect.calls; ++call) {
    torch::manual_seed(kSeed + static_cast<uint64_t>(call));
    Outcome expected = observe(plain.function, plain.inputs(call), plain.state);
    torch::manual_seed(kSeed + static_cast<uint64_t>(call));
    Outcome got = observe(compiled, other.inputs(call), other.state);
    compare(got, expected, expect, call);
    outcomes.emplace_back(std::move(got), std::move(expected));
  }
  // A later call must not have written into the results of an earlier one, unless eager does so too.
  for (int call = 1; call <= expect.calls; ++call) {
    const auto& [got, expected] = outcomes[static_cast<size_t>(call - 1)];
    compare_results(got, expected, expect, call);
  }
  compiled.wait();
  if (is_lazy()) {
    note_lazy(compiled.stats());
  } else {
    check_stats(compiled.stats(), expect);
  }
}

}  // namespace programs
