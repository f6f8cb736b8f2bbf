// torchcc-run: calls a function of a package on tensors in files, for `torchcc run`, `torchcc verify` and `torchcc
// bench`.
//
//   torchcc-run PACKAGE FUNCTION INPUTS OUTPUTS [--portable] [--seconds S] [--threads N] [--operators LIBRARY]...
//
// INPUTS is what Python's torch.save() writes of a tuple of calls, each a tuple of tensors in the signature's order;
// OUTPUTS gets a tuple of results, each a tuple of tensors; both are on the CPU, wherever the function runs. Prints one
// line of JSON: the backend, the target, why others were passed over, the seconds that loading took, and, with
// --seconds, the median nanoseconds of the last call's repetitions.

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include <dlfcn.h>

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <torchcc/package.h>
#include <nlohmann/json.hpp>

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::vector<char> read(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw std::runtime_error(file + ": it cannot be read");
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

std::vector<c10::IValue> elements(const c10::IValue& value) {
  if (value.isTuple()) return value.toTupleRef().elements().vec();
  return value.toListRef().vec();
}

struct Settings {
  bool portable = false;
  double seconds = 0;
};

Settings read_settings(int count, char** arguments) {
  Settings settings;
  for (int i = 5; i < count; ++i) {
    const std::string name = arguments[i];
    if (name == "--portable") {
      settings.portable = true;
      continue;
    }
    if (i + 1 == count) throw std::runtime_error(name + ": unknown, or without its value");
    const std::string value = arguments[++i];
    if (name == "--seconds") {
      settings.seconds = std::stod(value);
    } else if (name == "--threads") {
      at::set_num_threads(std::stoi(value));
    } else if (name == "--operators") {
      if (dlopen(value.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) throw std::runtime_error(dlerror());
    } else {
      throw std::runtime_error(name + ": unknown");
    }
  }
  return settings;
}

/// Work on a GPU goes on after the call.
void wait_for(const std::vector<at::Tensor>& results) {
  for (const at::Tensor& result : results) {
    if (result.is_cuda()) return c10::impl::VirtualGuardImpl(c10::kCUDA).synchronizeDevice(result.device().index());
  }
}

double median_nanoseconds(const torchcc::Function& function, const std::vector<torchcc::Argument>& arguments,
                          double seconds) {
  std::vector<double> times;
  const Clock::time_point start = Clock::now();
  while (times.size() < 5 || seconds_since(start) < seconds) {
    const Clock::time_point before = Clock::now();
    wait_for(function.call(arguments));
    times.push_back(seconds_since(before) * 1e9);
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

int run(int count, char** arguments) {
  if (count < 5) throw std::runtime_error("usage: torchcc-run PACKAGE FUNCTION INPUTS OUTPUTS [options]");
  const Settings settings = read_settings(count, arguments);
  const c10::AutoGradMode no_grad(false);
  const Clock::time_point start = Clock::now();
  torchcc::LoadOptions options;
  options.compiled = !settings.portable;
  const torchcc::Function function = torchcc::load(std::string(arguments[1]), options)[arguments[2]];
  nlohmann::ordered_json report{{"load_seconds", seconds_since(start)}};
  std::vector<c10::IValue> results;
  for (const c10::IValue& call : elements(torch::jit::pickle_load(read(arguments[3])))) {
    std::vector<at::Tensor> tensors;
    for (const c10::IValue& tensor : elements(call)) {
      const std::vector<torchcc::Value>& inputs = function.signature().inputs;
      const size_t position = tensors.size();
      const bool is_known = position < inputs.size();  // else the call itself says that there are too many
      tensors.push_back(is_known ? tensor.toTensor().to(inputs[position].device) : tensor.toTensor());
    }
    const std::vector<torchcc::Argument> given(tensors.begin(), tensors.end());
    std::vector<c10::IValue> outputs;
    for (at::Tensor& tensor : function.call(given)) outputs.emplace_back(tensor.cpu());
    results.emplace_back(c10::ivalue::Tuple::create(std::move(outputs)));
    if (settings.seconds > 0) report["nanoseconds"] = median_nanoseconds(function, given, settings.seconds);
  }
  const std::vector<char> bytes = torch::jit::pickle_save(c10::ivalue::Tuple::create(std::move(results)));
  std::ofstream(arguments[4], std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  const torchcc::Stats stats = function.stats();
  report["backend"] = stats.backend;
  report["target"] = stats.target;
  report["reasons"] = stats.reasons;
  report["portable_calls"] = stats.portable_calls;
  report["portable_reason"] = stats.portable_reason;
  report["threads"] = at::get_num_threads();
  std::cout << report.dump() << "\n";
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return run(count, arguments);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
