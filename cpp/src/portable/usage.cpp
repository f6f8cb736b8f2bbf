// Which inputs of a graph are written to, through views too, and when values are needed for the last time.
#include "block.h"

#include <algorithm>
#include <map>
#include <set>

namespace torchcc::portable {
namespace {

class Usage {
 public:
  explicit Usage(Block& block) : block_(block) {}

  void note() {
    for (uint32_t position = 0; position < block_.inputs.size(); ++position) {
      roots_[block_.inputs[position]] = {position};
    }
    block_.written.resize(block_.inputs.size());
    for (const Instruction& instruction : block_.instructions) {
      if (instruction.kind == Instruction::Kind::control) note_control(instruction);
      if (instruction.kind == Instruction::Kind::dispatched) note_aliases(instruction);
    }
    mark_last_uses();
  }

 private:
  template <class Visit>
  void visit(const Operand& operand, Visit visit_value) const {
    if (operand.kind == Operand::Kind::value) visit_value(operand.index);
    if (operand.kind == Operand::Kind::list) {
      for (const Operand& element : block_.lists[operand.index].elements) visit(element, visit_value);
    }
  }

  std::set<uint32_t> roots_of(const Operand& operand) const {
    std::set<uint32_t> roots;
    visit(operand, [&](uint32_t value) {
      if (const auto known = roots_.find(value); known != roots_.end()) {
        roots.insert(known->second.begin(), known->second.end());
      }
    });
    return roots;
  }

  void write(const Operand& operand) {
    for (const uint32_t root : roots_of(operand)) block_.written[root] = true;
  }

  void share(const std::vector<int64_t>& results, const std::set<uint32_t>& roots) {
    if (roots.empty()) return;
    for (const int64_t result : results) {
      if (result != Instruction::kUnused) roots_[static_cast<uint32_t>(result)].insert(roots.begin(), roots.end());
    }
  }

  void note_aliases(const Instruction& instruction) {
    const c10::FunctionSchema& schema = instruction.op->schema();
    std::set<uint32_t> shared;
    for (size_t i = 0; i < instruction.arguments.size(); ++i) {
      const c10::AliasInfo* alias = schema.arguments()[i].alias_info();
      // Without the annotation, an operator may still give its input back (dropout in evaluation).
      if (alias == nullptr && i != 0) continue;
      const std::set<uint32_t> roots = roots_of(instruction.arguments[i]);
      shared.insert(roots.begin(), roots.end());
      if (alias == nullptr) continue;
      const bool writes =
          alias->isWrite() || std::any_of(alias->containedTypes().begin(), alias->containedTypes().end(),
                                          [](const c10::AliasInfo& inner) { return inner.isWrite(); });
      if (writes) write(instruction.arguments[i]);
    }
    share(instruction.results, shared);
  }

  void note_control(const Instruction& instruction) {
    std::set<uint32_t> shared;
    for (const Operand& argument : instruction.arguments) {
      const std::set<uint32_t> roots = roots_of(argument);
      shared.insert(roots.begin(), roots.end());
    }
    for (const auto& block : instruction.blocks) {
      const bool writes = std::find(block->written.begin(), block->written.end(), true) != block->written.end();
      if (!writes) continue;
      for (const Operand& argument : instruction.arguments) write(argument);
    }
    share(instruction.results, shared);
  }

  void mark(Operand& operand, std::vector<bool>& seen) {
    if (operand.kind == Operand::Kind::list) {
      std::vector<Operand>& elements = block_.lists[operand.index].elements;
      for (auto element = elements.rbegin(); element != elements.rend(); ++element) mark(*element, seen);
    } else if (operand.kind != Operand::Kind::constant && !seen[operand.index]) {
      seen[operand.index] = true;
      operand.is_last = true;
    }
  }

  void mark_last_uses() {
    std::vector<bool> seen(block_.values);
    for (auto output = block_.outputs.rbegin(); output != block_.outputs.rend(); ++output) mark(*output, seen);
    for (auto one = block_.instructions.rbegin(); one != block_.instructions.rend(); ++one) {
      for (int64_t& result : one->results) {
        if (result != Instruction::kUnused && !seen[static_cast<size_t>(result)]) result = Instruction::kUnused;
      }
      for (auto operand = one->arguments.rbegin(); operand != one->arguments.rend(); ++operand) mark(*operand, seen);
    }
    for (const uint32_t input : block_.inputs) block_.used.push_back(seen[input]);
  }

  Block& block_;
  std::map<uint32_t, std::set<uint32_t>> roots_;  ///< inputs of the block that a value may be a view of
};

bool draws(const Block& block) {
  return std::any_of(block.instructions.begin(), block.instructions.end(), [](const Instruction& one) {
    if (one.op && one.op->hasTag(at::Tag::nondeterministic_seeded)) return true;
    return std::any_of(one.blocks.begin(), one.blocks.end(), [](const auto& inner) { return draws(*inner); });
  });
}

}  // namespace

bool Program::draws_random_numbers() const { return draws(*block_); }

void note_usage(Block& block) { Usage(block).note(); }

}  // namespace torchcc::portable
