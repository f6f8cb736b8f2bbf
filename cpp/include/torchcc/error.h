#pragma once

#include <stdexcept>
#include <string>

namespace torchcc {

/// Base of every exception that torchcc throws. `what()` is a complete message: the thing that is wrong, what was
/// expected, what came, and what to do next. Thrown as such when compiled code itself fails while it runs. A GPU with
/// too little memory is PyTorch's c10::OutOfMemoryError instead, as in eager code.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The call is wrong: an argument does not fit the signature (count, dtype, rank, size, device, undefined tensor).
class ArgumentError : public Error {
 public:
  using Error::Error;
};

/// The code cannot be captured.
class CaptureError : public Error {
 public:
  using Error::Error;
};

/// The compiler failed; the message ends with the compiler's own last lines.
class CompileError : public Error {
 public:
  using Error::Error;
};

/// The package file is missing, damaged, of another version, or made for another machine.
class PackageError : public Error {
 public:
  using Error::Error;
};

}  // namespace torchcc
