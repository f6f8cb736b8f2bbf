#pragma once

#include <functional>
#include <string>
#include <vector>

#include <sys/types.h>

#include <c10/core/Device.h>

namespace torchcc::detail {

/// One trace to compile. See python/torchcc/compiler.py for the other side.
struct CompileRequest {
  std::string function;       ///< its name, for messages
  std::string trace;          ///< JSON
  std::vector<char> tensors;  ///< torch::pickle_save of recorded inputs and outputs
  std::string package;        ///< file to write
  std::string key;            ///< text to store in it
  bool freeze = false;
  std::string against;                          ///< package that a frozen one has to beat; may be empty
  std::string options;                          ///< JSON object
  std::string exports;                          ///< JSON object that makes it an export (see export.cpp), or empty
  int threads = 1;                              ///< of the program, for measuring
  c10::Device device = c10::Device(c10::kCPU);  ///< the GPU to compile for, or the CPU
  std::string log;                              ///< file for what the compiler prints
  double timeout = 0;                           ///< seconds
  std::function<void(const std::string&)> progress;
};

struct CompileAnswer {
  std::string error{};  ///< one line; empty on success
  std::string kind{};   ///< of the error: "mismatch", "export", "compile", "slower", "write", "argument"; else empty
  double seconds = 0;
  std::string slower{};  ///< why the function's own operators should run in place of the code; empty when it is faster
};

/// Sends a trace to the compiler process, which is started when there is none, and waits for the answer. From any
/// thread; requests queue. Never throws for what goes wrong with the compiler.
CompileAnswer compile_trace(const CompileRequest& request);

/// Makes the object that stop_compiler() ends.
void prepare_compiler();

/// Ends the compiler process, with what it is doing. Requests that wait are answered with an error.
void stop_compiler();

}  // namespace torchcc::detail
