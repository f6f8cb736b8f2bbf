#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <torchcc/detail/core.h>

namespace torch::nn {
class Module;
}

namespace torchcc::detail {

/// The C++ variables that a lambda or functor captures, as far as they can be seen without knowing its type.
///
/// Watched are the words of the closure itself, and for each that is an address, the memory there: the first word,
/// which is the variable that is captured by reference, or the first member; and the words after it, which may be
/// further members, or may belong to something else. All words are guards. One of the latter that changes while the
/// function records the same is dropped. torch::nn modules among all these are found by their type information; their
/// training flags, and those of all their parts, are guards too.
class ClosureWatch {
 public:
  ClosureWatch() = default;
  explicit ClosureWatch(ClosureBytes closure);

  /// The watched words as they are now.
  std::vector<uint64_t> read() const;
  /// Whether they are what read() gave earlier, but for dropped ones.
  bool is(const std::vector<uint64_t>& earlier) const;
  /// Whether those are that certainly are variables of the function.
  bool is_certain(const std::vector<uint64_t>& earlier) const;
  /// Whether two results of read() are the same, but for dropped words.
  bool same(const std::vector<uint64_t>& a, const std::vector<uint64_t>& b) const;
  /// Drops the words in which two results differ, if all of them are uncertain; else drops nothing and gives false.
  bool drop_differences(const std::vector<uint64_t>& a, const std::vector<uint64_t>& b) const;

  /// Appends the training flags of the modules, 64 to a word.
  void append_modes(std::vector<int64_t>& words) const;

 private:
  struct Place {
    const std::byte* address;
    uint32_t size;
    bool is_certain;  ///< it is the function's own
  };
  struct Modules {
    std::vector<std::shared_ptr<torch::nn::Module>> owners;  // so that all stay
    std::vector<const torch::nn::Module*> all;
  };
  void add(const std::byte* address, uint32_t size, bool is_certain);
  void add_memory(const std::byte* address);

  std::vector<Place> places_;
  std::vector<std::pair<const std::byte*, const std::byte*>> objects_;  ///< on the heap: from, to
  std::unique_ptr<std::atomic<bool>[]> dropped_;                        // per place
  Modules modules_;
};

}  // namespace torchcc::detail
