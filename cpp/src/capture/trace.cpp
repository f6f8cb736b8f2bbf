#include "trace.h"

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <mutex>
#include <string_view>

#include <ATen/core/enum_tag.h>
#include <c10/util/flat_hash_map.h>
#include <torchcc/signature.h>

namespace torchcc::detail {
namespace {

template <class Names>
bool is_in(std::string_view name, const Names& names) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}
bool is_one_of(std::string_view name, std::initializer_list<std::string_view> names) { return is_in(name, names); }

// Numbers that follow from what guards check.
constexpr std::string_view kMetadata[] = {"size",
                                          "sym_size",
                                          "stride",
                                          "sym_stride",
                                          "numel",
                                          "sym_numel",
                                          "dim",
                                          "storage_offset",
                                          "sym_storage_offset",
                                          "is_complex",
                                          "is_floating_point",
                                          "is_signed",
                                          "is_same_size",
                                          "is_pinned",
                                          "is_contiguous",
                                          "is_conj",
                                          "is_neg",
                                          "is_inference",
                                          "is_leaf",
                                          "_is_zerotensor",
                                          "result_type",
                                          "can_cast",
                                          "promote_types",
                                          "get_device",
                                          "output_nr",
                                          "is_non_overlapping_and_dense",
                                          "_has_compatible_shallow_copy_type",
                                          "requires_grad",
                                          "retains_grad",
                                          "qscheme",
                                          "dense_dim",
                                          "sparse_dim",
                                          "_nnpack_available",
                                          "cudnn_is_acceptable",
                                          "_use_cudnn_ctc_loss",
                                          "is_coalesced",
                                          "_use_cudnn_rnn_flatten_weight",
                                          "is_set_to",
                                          "_fused_sdp_choice",
                                          "_debug_has_internal_overlap"};

// Give the longest lengths of sequences too, which are sizes of the arguments.
constexpr std::string_view kGivesSizes[] = {"_scaled_dot_product_flash_attention",
                                            "_scaled_dot_product_cudnn_attention"};

// Shapes that follow from data, where the schema has no tag for it.
constexpr std::string_view kDynamic[] = {"nonzero_numpy", "argwhere", "bincount", "_pack_padded_sequence",
                                         "unique_consecutive"};

constexpr std::string_view kUninitialized[] = {"empty",         "empty_like",        "new_empty",
                                               "empty_strided", "new_empty_strided", "empty_permuted"};

constexpr std::string_view kIgnoresData[] = {"empty_like",   "new_empty", "new_empty_strided", "zeros_like",
                                             "ones_like",    "full_like", "rand_like",         "randn_like",
                                             "randint_like", "new_zeros", "new_ones",          "new_full"};

// What the program can see of a tensor beside its data and sizes.
constexpr std::string_view kChangesTensors[] = {"requires_grad_", "detach_", "retain_grad", "_backward", "backward",
                                                "set_data",       "data",    "rename_",     "rename",    "set_"};

bool writes(const c10::Argument& argument) {
  const c10::AliasInfo* alias = argument.alias_info();
  if (alias == nullptr) return false;
  return alias->isWrite() || std::any_of(alias->containedTypes().begin(), alias->containedTypes().end(),
                                         [](const c10::AliasInfo& inner) { return inner.isWrite(); });
}

Tag number_kind(const c10::Argument& argument) {
  c10::TypePtr type = argument.real_type();
  while (type->kind() == c10::TypeKind::OptionalType || type->kind() == c10::TypeKind::ListType) {
    type = type->containedType(0);
  }
  switch (type->kind()) {
    case c10::TypeKind::ScalarTypeType: return Tag::dtype;
    case c10::TypeKind::LayoutType: return Tag::layout;
    case c10::TypeKind::MemoryFormatType: return Tag::memory_format;
    default: return Tag::integer;
  }
}

bool is_tensor(const c10::Argument& argument) {
  c10::TypePtr type = argument.type();
  while (type->kind() == c10::TypeKind::OptionalType || type->kind() == c10::TypeKind::ListType) {
    type = type->containedType(0);
  }
  return type->kind() == c10::TypeKind::TensorType;
}

Operator read(const c10::OperatorHandle& handle) {
  const c10::FunctionSchema& schema = handle.schema();
  Operator op;
  op.schema = &schema;
  op.name = schema.name() + (schema.overload_name().empty() ? "" : "." + schema.overload_name());
  op.returns = schema.returns().size();
  std::string_view base = schema.name();
  base.remove_prefix(std::min(base.size(), base.find("::") + 2));
  for (const c10::Argument& argument : schema.arguments()) {
    const int position = static_cast<int>(op.arguments.size());
    op.arguments.push_back(
        {number_kind(argument), writes(argument), is_one_of(argument.name(), {"running_mean", "running_var"})});
    if (is_one_of(argument.name(), {"train", "training", "use_input_stats"})) op.training = position;
    if (is_one_of(argument.name(), {"p", "dropout_p"})) op.probability = position;
    if (is_one_of(argument.name(), {"num_classes", "output_size"})) op.given_size = position;
  }
  const bool gives_numbers = !std::all_of(schema.returns().begin(), schema.returns().end(), is_tensor);
  op.is_metadata = gives_numbers && is_in(base, kMetadata);
  op.is_to_device = op.name == "aten::to.device";
  op.is_equal = op.name == "aten::equal";
  op.is_detach = op.name == "aten::detach";
  op.gives_sizes = is_in(base, kGivesSizes);
  op.reads_host = gives_numbers && !op.is_metadata && !op.is_equal && !op.gives_sizes;
  op.is_view = !schema.returns().empty() &&
               std::all_of(schema.returns().begin(), schema.returns().end(),
                           [](const c10::Argument& one) { return one.alias_info() != nullptr && !writes(one); });
  op.is_index = op.name == "aten::index.Tensor" || op.name == "aten::_unsafe_index.Tensor";
  op.has_dynamic_shape = !op.is_equal && (handle.hasTag(at::Tag::dynamic_output_shape) ||
                                          handle.hasTag(at::Tag::data_dependent_output) || is_in(base, kDynamic));
  op.is_random = handle.hasTag(at::Tag::nondeterministic_seeded);
  op.is_uninitialized = is_in(base, kUninitialized);
  op.ignores_data = is_in(base, kIgnoresData);
  op.changes_tensors = handle.hasTag(at::Tag::inplace_view) || is_in(base, kChangesTensors) ||
                       std::any_of(schema.arguments().begin(), schema.arguments().end(),
                                   [](const c10::Argument& one) { return one.kwarg_only() && writes(one); });
  op.changes_storage = is_one_of(base, {"resize_", "resize_as_", "set_", "set_data", "resize_storage_bytes_"});
  op.is_conversion = base == "to" || base == "_to_copy" || base == "cpu";
  op.may_move = op.is_conversion || is_one_of(base, {"copy_", "copy", "_foreach_copy_", "_foreach_copy"});
  op.may_depend = op.reads_host || op.is_equal || op.has_dynamic_shape || op.changes_storage || op.may_move;
  return op;
}

std::string constant_text(const int64_t* word) {
  switch (static_cast<Tag>(word[0])) {
    case Tag::none: return "none";
    case Tag::tensor: return std::string("%").append(std::to_string(word[1]));
    case Tag::list: return std::string("a list of ").append(std::to_string(word[1]));
    case Tag::floating: return std::to_string(std::bit_cast<double>(word[1]));
    case Tag::boolean: return word[1] != 0 ? "true" : "false";
    case Tag::dtype: return dtype_name(static_cast<c10::ScalarType>(word[1]));
    case Tag::text: return "a string";
    default: return std::to_string(word[1]);
  }
}

/// The first item in which the words of two steps differ; list elements count as items.
std::string step_difference(const Trace& before, const Trace& after, size_t step) {
  const int64_t* a = before.code.data() + before.steps[step].begin;
  const int64_t* a_end = before.code.data() + before.end_of(step);
  const int64_t* b = after.code.data() + after.steps[step].begin;
  while (a < a_end) {
    const size_t size = length(a);
    if (size != length(b) || !std::equal(a, a + size, b)) return constant_text(a) + " became " + constant_text(b);
    a += size;
    b += size;
  }
  return "";
}

const Operator& shared_operator_of(const c10::OperatorHandle& handle) {
  static std::mutex mutex;
  // Never deleted: threads may still run when the program's statics go.
  static auto& operators = *new std::map<const void*, const Operator>;
  const std::lock_guard lock(mutex);
  const auto known = operators.find(&handle.schema());
  return known != operators.end() ? known->second : operators.emplace(&handle.schema(), read(handle)).first->second;
}

}  // namespace

const Operator& operator_of(const c10::OperatorHandle& handle) {
  // The schema of a registered operator stays where it is. Recordings outlive the thread that made them, so the
  // operators are the process's; each thread has a table of its own, to look them up without a lock.
  thread_local ska::flat_hash_map<const void*, const Operator*> table;
  const Operator*& entry = table[&handle.schema()];
  if (entry == nullptr) entry = &shared_operator_of(handle);
  return *entry;
}

const Operator& operator_named(const char* name) {
  const c10::OperatorHandle handle = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  return operator_of(handle);
}

size_t length(const int64_t* word) {
  switch (static_cast<Tag>(word[0])) {
    case Tag::none: return 1;
    case Tag::complex:
    case Tag::device: return 3;
    case Tag::text: return 2 + (static_cast<size_t>(word[1]) + 7) / 8;
    default: return 2;
  }
}

std::optional<std::vector<uint32_t>> differing_numbers(const Trace& before, const Trace& after) {
  if (before.steps.size() != after.steps.size() || before.code.size() != after.code.size()) return std::nullopt;
  for (size_t i = 0; i < before.steps.size(); ++i) {
    const Trace::Step& a = before.steps[i];
    const Trace::Step& b = after.steps[i];
    if (a.op != b.op || a.begin != b.begin || a.autocast != b.autocast || a.grad != b.grad) return std::nullopt;
  }
  for (size_t id = 0; id < after.value_begin.size(); ++id) {  // `before` may have more, of its numbers
    if (id >= before.value_begin.size() || before.value_begin[id] != after.value_begin[id]) return std::nullopt;
  }
  if (!std::equal(after.values.begin(), after.values.end(), before.values.begin())) return std::nullopt;
  std::vector<uint32_t> found;
  const auto is_float = [](int64_t tag) {
    return static_cast<Tag>(tag) == Tag::floating || static_cast<Tag>(tag) == Tag::number;
  };
  for (size_t i = 0; i < before.code.size(); i += length(before.code.data() + i)) {
    const size_t size = length(before.code.data() + i);
    if (std::equal(before.code.begin() + i, before.code.begin() + i + size, after.code.begin() + i)) continue;
    if (!is_float(before.code[i]) || !is_float(after.code[i])) return std::nullopt;
    found.push_back(static_cast<uint32_t>(i));
  }
  return found;
}

void append_as_strided(Trace& trace, ValueId root, ValueId view) {
  const int64_t* words = trace.value(view);
  const auto add = [&](Tag tag, int64_t word) {
    trace.code.push_back(static_cast<int64_t>(tag));
    trace.code.push_back(word);
  };
  add(Tag::tensor, root);
  for (int64_t list = 0; list < 2; ++list) {  // sizes, then strides
    add(Tag::list, words[kRank]);
    for (int64_t d = 0; d < words[kRank]; ++d) add(Tag::integer, words[kSizes + list * words[kRank] + d]);
  }
  add(Tag::integer, words[kOffset]);
  add(Tag::tensor, view);
}

std::string value_type(const Trace& trace, ValueId id) {
  const int64_t* words = trace.value(id);
  std::string text = dtype_name(static_cast<c10::ScalarType>(words[kDtype])) + "[";
  for (int64_t d = 0; d < words[kRank]; ++d) text += (d == 0 ? "" : ", ") + std::to_string(words[kSizes + d]);
  return text + (words[kDevice] == 0 ? "]" : "] on cuda");
}

std::string difference(const Trace& before, const Trace& after) {
  const size_t steps = std::min(before.steps.size(), after.steps.size());
  for (size_t i = 0; i < steps; ++i) {
    const Trace::Step& a = before.steps[i];
    const Trace::Step& b = after.steps[i];
    const auto at = [&] { return "operator " + std::to_string(i) + " (" + a.op->name + "): "; };
    if (a.op != b.op) return at() + "it was " + b.op->name + " in the next call";
    if (a.autocast != b.autocast) return at() + "autocast differs";
    if (a.grad != b.grad) return at() + "grad mode differs";
    const size_t size = before.end_of(i) - a.begin;
    if (size != after.end_of(i) - b.begin ||
        !std::equal(before.code.begin() + a.begin, before.code.begin() + a.begin + static_cast<std::ptrdiff_t>(size),
                    after.code.begin() + b.begin)) {
      return at() + step_difference(before, after, i);
    }
  }
  if (before.steps.size() != after.steps.size()) {
    return std::to_string(before.steps.size()) + " operators became " + std::to_string(after.steps.size());
  }
  if (before.value_begin != after.value_begin || before.values != after.values) {
    for (size_t id = 0; id < std::min(before.value_begin.size(), after.value_begin.size()); ++id) {
      const std::string a = value_type(before, static_cast<ValueId>(id));
      const std::string b = value_type(after, static_cast<ValueId>(id));
      if (a != b) return "a value of " + a + " became " + b;
    }
    return "the layout of a value changed";
  }
  if (before.requires_grad != after.requires_grad) return "whether a value requires grad changed";
  return "";
}

}  // namespace torchcc::detail
