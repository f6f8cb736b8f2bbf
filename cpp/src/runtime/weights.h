#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <torchcc/function.h>

#include "aliases.h"
#include "manifest.h"
#include "program.h"

namespace torchcc::detail {

/// The parameters, buffers and constants of one model of a package. Safe to use from many threads at once.
class Weights {
 public:
  /// One consistent state. Immutable but for what is in the tensors.
  struct Set {
    std::vector<at::Tensor> tensors;
    std::vector<Snapshot> loaded;
    bool is_original = true;  ///< none was replaced

    /// Whether the weight at this position is what was loaded.
    bool is_current(size_t position) const { return is_original && loaded[position].is_current(tensors[position]); }
  };

  /// The archive's records, checked: texts, and the memory of weights.
  struct Records {
    std::map<std::string, std::string> texts;
    std::map<std::string, std::pair<std::shared_ptr<std::byte>, uint64_t>> bytes;
  };

  /// The GPU of weights for CUDA, and the records that were copied there while a package is loaded.
  struct Gpu {
    std::optional<c10::Device> device;
    std::map<std::string, at::Tensor> records;
  };

  /// Adds what a graph of the archive, stored there under the name `model`, has. Weights of the same name and memory as
  /// known ones are the same. Not safe while others use this. Throws PackageError when one is missing or damaged, or
  /// there is no GPU for it.
  void add(const Archive& archive, const std::string& model, const Records& records, Gpu& gpu);

  const std::vector<std::string>& names() const { return names_; }
  /// The position of a weight that a graph calls by this name; the number of names when there is none.
  size_t find(const std::string& model, const std::string& name) const;
  bool is_parameter(size_t position) const { return is_parameter_[position]; }

  std::shared_ptr<const Set> current() const { return current_.load(std::memory_order_acquire); }
  /// Replaces some. `function` is who asks, for messages. Throws ArgumentError.
  void replace(std::string_view function, std::span<const NamedTensor> weights);
  /// Says that a graph writes into a weight, so that replacements of it are copied.
  void note_written(size_t position) { is_written_[position] = true; }

  /// Held by calls that write into weights.
  std::mutex& writing() const { return writing_; }

 private:
  std::vector<std::string> names_;                                   ///< unique
  std::map<std::pair<std::string, std::string>, size_t> positions_;  ///< by model and name
  std::vector<bool> is_parameter_;
  std::vector<bool> is_written_;
  std::atomic<std::shared_ptr<const Set>> current_{std::make_shared<const Set>()};
  std::mutex replacing_;
  mutable std::mutex writing_;
};

}  // namespace torchcc::detail
