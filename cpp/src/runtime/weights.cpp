#include "weights.h"

#include <algorithm>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>
#include <torchcc/error.h>
#include <nlohmann/json.hpp>

#include "archive.h"
#include "message.h"
#include "refusal.h"

namespace torchcc::detail {
namespace {

using nlohmann::json;

std::vector<int64_t> numbers(const json& node) {
  std::vector<int64_t> values;
  for (const json& one : node) values.push_back(one.at("as_int").get<int64_t>());
  return values;
}

/// Elements of memory that a tensor of these sizes and strides reaches over; -1 when there are no such tensors.
int64_t reach(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  int64_t last = 0;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return 0;
    int64_t step = 0;
    if (sizes[d] < 0 || strides[d] < 0 || __builtin_mul_overflow(sizes[d] - 1, strides[d], &step) ||
        __builtin_add_overflow(last, step, &last)) {
      return -1;
    }
  }
  return last < INT64_MAX / 2 ? last + 1 : -1;
}

struct Entry {
  std::string record;
  bool is_parameter = false;
  bool is_on_gpu = false;
  c10::ScalarType dtype = c10::ScalarType::Float;
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
  int64_t offset = 0;
};

Entry read_entry(const Archive& archive, const std::string& name, const json& node, const std::string& folder) {
  if (node.at("use_pickle").get<bool>() || node.at("tensor_meta").is_null()) {
    archive.fail("weights that are plain tensors", "'" + name + "', which is an object of Python",
                 "export the model with plain tensors");
  }
  const json& meta = node.at("tensor_meta");
  const auto device = meta.at("device").at("type").get<std::string>();
  if (device != "cpu" && device != "cuda") {
    archive.fail("weights on the CPU, or on a GPU by CUDA", "'" + name + "' on " + device, "export the model on these");
  }
  return {folder + node.at("path_name").get<std::string>(),
          node.at("is_param").get<bool>(),
          device == "cuda",
          portable::exported_dtype(meta.at("dtype").get<int64_t>()),
          numbers(meta.at("sizes")),
          numbers(meta.at("strides")),
          meta.at("storage_offset").at("as_int").get<int64_t>()};
}

/// `bytes` are those of the record, of which there are `size`, where the weight is to be.
at::Tensor make(const Archive& archive, const std::string& name, const Entry& entry,
                const std::shared_ptr<std::byte>& bytes, uint64_t size, c10::Device device) {
  const auto item = static_cast<uint64_t>(c10::elementSize(entry.dtype));
  if (entry.sizes.size() != entry.strides.size()) archive.fail("a stride for each size of '" + name + "'", "others");
  const int64_t reached = reach(entry.sizes, entry.strides);
  const int64_t needed = entry.offset + reached;
  if (entry.offset < 0 || entry.offset > INT64_MAX / 2 || reached < 0 || static_cast<uint64_t>(needed) > size / item) {
    archive.fail("the whole weight '" + name + "'", std::to_string(size) + " bytes of it");
  }
  // Not a view of a tensor of all bytes: a parameter may not be one.
  return at::from_blob(
      bytes.get() + static_cast<uint64_t>(entry.offset) * item, entry.sizes, entry.strides, [keep = bytes](void*) {},
      at::TensorOptions().dtype(entry.dtype).device(device), device);
}

/// A record's bytes in the memory of a GPU.
at::Tensor copied(const std::shared_ptr<std::byte>& bytes, uint64_t size, c10::Device device) {
  const auto count = static_cast<int64_t>(size);
  return at::from_blob(bytes.get(), {count}, at::kByte).to(device);
}

bool is_same(const at::Tensor& a, const at::Tensor& b) {
  return a.const_data_ptr() == b.const_data_ptr() && a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         a.strides() == b.strides();
}

}  // namespace

void Weights::add(const Archive& archive, const std::string& model, const Records& records, Gpu& gpu) {
  // Tensors of inference mode have no version.
  const c10::InferenceMode off(false);
  const c10::AutoGradMode no_grad(false);
  auto set = std::make_shared<Set>(*current());
  for (const std::string kind : {"weights", "constants"}) {
    const std::string folder = "data/" + kind + "/";
    const std::string config = folder + model + "_" + kind + "_config.json";
    const auto text = records.texts.find(config);
    if (text == records.texts.end()) continue;
    try {
      const json root = json::parse(text->second);
      for (const auto& [name, node] : root.at("config").items()) {
        const Entry entry = read_entry(archive, name, node, folder);
        const auto found = records.bytes.find(entry.record);
        if (found == records.bytes.end()) archive.fail("the weight '" + name + "'", "no record " + entry.record);
        const auto& [bytes, size] = found->second;
        if (entry.is_on_gpu && !gpu.device) archive.fail("weights on the CPU", "'" + name + "' on a GPU");
        at::Tensor tensor;
        if (entry.is_on_gpu) {
          at::Tensor& held = gpu.records[entry.record];
          if (!held.defined()) held = copied(bytes, size, *gpu.device);
          const std::shared_ptr<std::byte> there(static_cast<std::byte*>(held.mutable_data_ptr()),
                                                 [held](std::byte*) {});
          tensor = make(archive, name, entry, there, size, *gpu.device);
        } else {
          tensor = make(archive, name, entry, bytes, size, c10::Device(c10::kCPU));
        }
        size_t position = static_cast<size_t>(std::find(names_.begin(), names_.end(), name) - names_.begin());
        const bool is_known = position != names_.size();
        if (!is_known || !is_same(set->tensors[position], tensor)) {
          position = names_.size();
          names_.push_back(is_known ? model + "." + name : name);
          is_parameter_.push_back(entry.is_parameter);
          set->tensors.push_back(tensor);
          set->loaded.emplace_back(tensor);
        }
        positions_[{model, name}] = position;
      }
    } catch (const json::exception& error) {
      archive.fail("a well-formed record " + config, first_line(error.what()));
    } catch (const PackageError&) {
      throw;
    } catch (const Error& error) {
      archive.fail("a well-formed record " + config, error.what());
    }
  }
  is_written_.resize(names_.size());
  current_ = std::move(set);
}

size_t Weights::find(const std::string& model, const std::string& name) const {
  const auto known = positions_.find({model, name});
  return known == positions_.end() ? names_.size() : known->second;
}

void Weights::replace(std::string_view function, std::span<const NamedTensor> weights) {
  const std::lock_guard lock(replacing_);
  auto set = std::make_shared<Set>(*current());
  const c10::InferenceMode off(false);
  const c10::AutoGradMode no_grad(false);
  for (const auto& [name, tensor] : weights) {
    const auto position = static_cast<size_t>(std::find(names_.begin(), names_.end(), name) - names_.begin());
    if (position == names_.size()) refuse_weight_name(function, name);
    const at::Tensor& old = set->tensors[position];
    if (!tensor.defined() || tensor.scalar_type() != old.scalar_type() || tensor.sizes() != old.sizes() ||
        tensor.device() != old.device() || tensor.layout() != at::kStrided) {
      refuse_weight_form(function, name, old, tensor);
    }
    const bool is_kept =
        tensor.strides() == old.strides() && !is_written_[position] && !tensor.is_conj() && !tensor.is_neg();
    const at::Tensor kept =
        is_kept ? tensor : at::empty_strided(old.sizes(), old.strides(), old.options()).copy_(tensor);
    // Weights that are one tensor under several names stay one.
    const at::Tensor before = old;
    for (at::Tensor& one : set->tensors) {
      if (before.numel() > 0 && is_same(one, before)) one = kept;
    }
    set->tensors[position] = kept;
  }
  set->is_original = false;
  current_.store(std::move(set), std::memory_order_release);
}

}  // namespace torchcc::detail
