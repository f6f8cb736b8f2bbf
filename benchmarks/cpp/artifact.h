#pragma once

#include <array>
#include <filesystem>

#include <ATen/core/Tensor.h>
#include <torch/csrc/inductor/aoti_runtime/interface.h>

namespace benchmarks {

/// A compiled library of a package, called through its bare C interface: no checks, no loader class.
class Artifact {
 public:
  /// Takes the shared library of the package's function `model` out of the file and opens it.
  explicit Artifact(const std::filesystem::path& package);
  ~Artifact();
  Artifact(const Artifact&) = delete;
  Artifact& operator=(const Artifact&) = delete;

  enum class Entry { shared, single_threaded };

  /// AOTInductorModelContainerRun, or AOTInductorModelContainerRunSingleThreaded, for two inputs and one output. The
  /// code takes over the input handles; the output handle is the caller's and is deleted here.
  template <Entry entry>
  void run(const at::Tensor& x, const at::Tensor& y) const {
    std::array<AtenTensorHandle, 2> inputs{handle(x), handle(y)};
    AtenTensorHandle output = nullptr;
    const auto function = entry == Entry::shared ? run_ : run_single_threaded_;
    if (function(container_, inputs.data(), inputs.size(), &output, 1, nullptr, nullptr) != 0) fail("the call failed");
    delete reinterpret_cast<at::Tensor*>(output);
  }

 private:
  static AtenTensorHandle handle(const at::Tensor& tensor) {
    return reinterpret_cast<AtenTensorHandle>(new at::Tensor(tensor));
  }
  template <class Function>
  Function* symbol(const char* name) const;
  [[noreturn]] static void fail(const char* what);

  void* library_ = nullptr;
  AOTInductorModelContainerHandle container_ = nullptr;
  decltype(&AOTInductorModelContainerRun) run_ = nullptr;
  decltype(&AOTInductorModelContainerRunSingleThreaded) run_single_threaded_ = nullptr;
};

}  // namespace benchmarks
