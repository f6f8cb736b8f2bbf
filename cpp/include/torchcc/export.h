#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <torchcc/detail/callable.h>
#include <torchcc/detail/leaves.h>
#include <torchcc/error.h>

namespace torchcc {

/// How a C++ function is exported. A plain value.
struct ExportOptions {
  std::string name = "forward";             ///< of the function in the package
  std::vector<std::string> arguments = {};  ///< names of the tensors among the arguments; by default arg0, arg1, ...
  std::vector<std::string> targets = {"native"};  ///< as torchcc.export in Python: portable, native, avx2, avx512
  bool updatable = false;                         ///< weights stay replaceable, instead of being packed into the code

  /// Names of captured tensors (weights), where `function` is not itself a module: for instance those of
  /// net->named_parameters(). Others are named captured0, captured1, ...
  std::map<std::string, at::Tensor> weights = {};

  /// Options of Inductor by their name there.
  std::map<std::string, std::variant<bool, int64_t, double, std::string>> options = {};
  double timeout = 600;                                   ///< seconds that the compiler may take
  std::function<void(const std::string&)> progress = {};  ///< called with one line of text, in the calling thread
};

namespace detail {

/// Records calls of one function, and has a package made of them.
class FunctionCapture {
 public:
  FunctionCapture(const ExportOptions& options, std::unique_ptr<ModuleView> module);
  ~FunctionCapture();
  FunctionCapture(const FunctionCapture&) = delete;
  FunctionCapture& operator=(const FunctionCapture&) = delete;

  /// Around a call of the function.
  void begin(const Leaves& arguments);
  void finish(const Leaves& results);

  void write(const std::filesystem::path& file);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace detail

/// Writes a package of a function that is written in C++: a `.pt2` file that torch.export.load opens in Python, and
/// torchcc::load in C++. The weights have the names of the torch::nn module.
///
/// `function` is what torchcc::compile takes: a module, or a callable; it is called three times on `arguments`, without
/// gradients, so modules should be in evaluation mode. The graph is for the sizes of these arguments. Numbers among the
/// arguments are burnt in; tensors that the function does not use are left out; tensors that it captures and writes
/// into become buffers, which persist between calls.
///
/// Throws CaptureError when the function cannot be captured (what it does depends on values, or it differs from call to
/// call), CompileError when the compiler fails or is missing, ArgumentError for options that make no sense; then no
/// file is written. Not safe while others change the module.
template <class F, class... Args>
void export_function(const std::filesystem::path& file, F&& function, std::tuple<Args...> arguments,
                     const ExportOptions& options = {}) {
  using Wrap = detail::CallableOf<std::decay_t<F>>;
  auto callable = Wrap::make(std::forward<F>(function));
  std::unique_ptr<detail::ModuleView> module;
  if constexpr (requires { callable.view(); }) module = callable.view();
  detail::FunctionCapture capture(options, std::move(module));
  for (int call = 0; call < 3; ++call) {
    detail::Leaves leaves;
    detail::Leaf<std::tuple<Args...>>::take(arguments, leaves);
    capture.begin(leaves);
    const auto result = std::apply(callable, arguments);
    detail::Leaves results;
    detail::Leaf<std::decay_t<decltype(result)>>::take(result, results);
    capture.finish(results);
  }
  capture.write(file);
}

/// The same for a function of one tensor.
template <class F>
void export_function(const std::filesystem::path& file, F&& function, const at::Tensor& argument,
                     const ExportOptions& options = {}) {
  export_function(file, std::forward<F>(function), std::make_tuple(argument), options);
}

}  // namespace torchcc
