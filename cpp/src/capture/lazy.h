#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/StorageImpl.h>
#include <c10/util/SmallVector.h>
#include <c10/util/flat_hash_map.h>

#include "mode.h"
#include "recorder.h"
#include "segment.h"

namespace torchcc::detail {

/// Runs a program so that operators wait until somebody needs what they give.
///
/// The program's own code runs on every call. While its operators are those of a known segment, each only gives
/// tensors without memory (placeholders), which have the sizes, strides and dtype of the recording. Where the segment
/// ends, or the program does something else, what is pending is computed: by the segment's compiled code if all of its
/// operators came, else by these operators one by one; and the tensors that the program still has get their memory.
/// Operators that no segment begins with run at once, and are recorded as a new one.
///
/// Run at once, whatever the recordings say, are operators whose numbers or sizes depend on data, random ones, those
/// that autograd follows, and those on memory that PyTorch did not allocate, which the program may write to at any time.
class Lazy final : public Mode {
 public:
  explicit Lazy(Segments& segments);
  /// Computes what is pending. If that fails, tensors without memory stay so: their use is an error.
  ~Lazy() override;

  void step(const c10::OperatorHandle& handle, torch::jit::Stack* stack) override;
  /// At the end of the program's code: computes what is pending, and throws what that throws.
  void finish();
  /// The same at any time.
  void materialize();

 private:
  enum class State : uint8_t { idle, recording, following, passing };
  struct Used {
    ValueId id;
    const at::Tensor* tensor;
    bool written;
  };
  /// Real memory of something that is to be written into: until that is done, nobody can read it.
  struct Parked {
    c10::intrusive_ptr<c10::StorageImpl> storage;
    c10::DataPtr data;
  };

  bool waits(const Operator& op, const c10::IValue* arguments) const;
  bool is_involved(const Operator& op, const c10::IValue* arguments) const;
  bool begin(const Operator& op, const c10::IValue* arguments);
  void start(const Segments::Known& known, std::shared_ptr<Segment> segment);
  bool matches(const Operator& op, const c10::IValue* arguments);
  bool matches_argument(const c10::IValue& value, Tag number, bool written);
  bool matches_tensor(const at::Tensor& tensor, bool written);
  bool matches_external(const at::Tensor& tensor, ValueId id);
  bool matches_number(double number);
  void give(const Operator& op, torch::jit::Stack* stack);
  c10::IValue given();
  at::Tensor make(ValueId id);
  void park(ValueId id);

  void flush(std::string end);
  std::vector<bool> live() const;
  std::vector<at::Tensor> inputs() const;
  void compute(const std::vector<bool>& live);
  void compute_one_by_one(const std::vector<bool>& live, bool is_whole, const std::string& end);
  void bind(size_t memory, const at::Tensor& tensor);
  void clear();

  Segments& segments_;
  State state_ = State::idle;
  std::unique_ptr<Recorder> recorder_;

  // What is followed.
  std::shared_ptr<Segment> segment_;
  Segments::Known known_;
  size_t position_ = 0;              // of the next operator
  const int64_t* word_ = nullptr;    // in the trace's code
  bool differs_in_number_ = false;   // why the last operator did not match
  std::vector<at::Tensor> values_;   // per value: the first tensor that was it
  std::vector<c10::intrusive_ptr<c10::StorageImpl>> storages_;  // per memory
  std::vector<int32_t> tracked_;                                // per memory: tensors in values_
  ska::flat_hash_map<const c10::StorageImpl*, size_t> memory_of_;  // of externals
  std::vector<Parked> parked_;
  c10::SmallVector<Used, 8> used_;
  int64_t compiled_ops_ = 0;
  int64_t eager_ops_ = 0;
};

}  // namespace torchcc::detail
