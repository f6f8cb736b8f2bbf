#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include <c10/core/Device.h>
#include <torch/csrc/inductor/aoti_runtime/interface.h>

namespace torchcc::detail {

/// One AOTInductor shared library, loaded and ready to run on one device. run() is safe from many threads at once.
class Library {
 public:
  struct Source {
    std::string name;        ///< of the function, for messages
    std::string origin;      ///< of the package, for messages
    std::string code;        ///< the shared library's bytes
    std::string extern_ops;  ///< AOTInductor's JSON of operators without a C entry point; empty when there are none
    bool exclusive = false;  ///< must not run beside any other compiled code; see run()
    c10::Device device = c10::Device(c10::kCPU);  ///< where it runs: the CPU, or one GPU
  };

  /// Throws PackageError when the code cannot be loaded or does not have `inputs` inputs and `outputs` outputs.
  Library(const Source& source, size_t inputs, size_t outputs);
  ~Library();
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  size_t inputs() const { return inputs_; }
  size_t outputs() const { return outputs_; }
  c10::Device device() const { return device_; }

  /// Runs the code; on a GPU, on the stream that is the current one there, without waiting for it. Takes over the input
  /// handles; the caller takes over the output handles. Throws Error with the compiled code's own message when it
  /// fails, and c10::OutOfMemoryError, as PyTorch's operators do, when a GPU has too little memory for it.
  void run(AtenTensorHandle* inputs, AtenTensorHandle* outputs) const;

 private:
  class Files;
  class Runner;
  void run_ready(AtenTensorHandle* inputs, AtenTensorHandle* outputs) const;
  void run_now(AtenTensorHandle* inputs, AtenTensorHandle* outputs) const;
  [[noreturn, gnu::cold]] void fail_run() const;
  [[noreturn, gnu::cold]] void fail_memory() const;

  std::string name_;
  size_t inputs_;
  size_t outputs_;
  bool exclusive_;
  c10::Device device_;
  std::unique_ptr<Runner> runner_;
  AOTInductorModelContainerHandle container_ = nullptr;
  AOTIProxyExecutorHandle extern_ops_ = nullptr;
  decltype(&AOTInductorModelContainerRunSingleThreaded) run_ = nullptr;
  AOTIRuntimeError (*last_error_)(const char**) = nullptr;  ///< since torch 2.12; null where the code has none
  mutable std::atomic<bool> ready_{false};  ///< a call has returned, so the container has nothing left to write
  mutable std::mutex first_call_;
  mutable std::atomic<bool> failed_{false};  ///< some call failed
};

}  // namespace torchcc::detail
