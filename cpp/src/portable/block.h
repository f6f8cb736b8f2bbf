#pragma once

#include <memory>

#include "program.h"
#include "schema.h"

namespace torchcc::portable {

/// Reads a graph, the graphs of its control flow included. Throws Bad.
std::shared_ptr<const Block> parse_block(const json& graph);

/// Fills in which inputs are used and written to, and when values are needed for the last time.
void note_usage(Block& block);

}  // namespace torchcc::portable
