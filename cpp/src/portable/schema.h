#pragma once

#include <string>
#include <utility>

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

#include "program.h"

namespace torchcc::portable {

using nlohmann::json;

// Fields of torch.export's JSON; see torch/_export/serde/schema.py. Not read with the classes that libtorch has for it:
// they take a field that they do not know for None.

/// What is wrong with a graph: what was expected, and what came. Thrown by all that reads one, and by nothing else.
struct Bad {
  std::string expected;
  std::string got;
};

[[noreturn]] void bad(std::string expected, std::string got);

c10::Layout layout_of(int64_t number);
c10::MemoryFormat memory_format_of(int64_t number);
c10::Device device_of(const json& node);
double number_of(const json& node);

/// PyTorch writes a union as an object with one member.
std::pair<std::string, const json&> member(const json& node);

/// "model.py:12" of the innermost line of a Python stack trace; empty without one.
std::string location_of(const json& metadata);

}  // namespace torchcc::portable
