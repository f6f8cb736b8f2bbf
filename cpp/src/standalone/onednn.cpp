// Convolutions and matrix products from oneDNN (version 3): the shapes are those of PyTorch's operators, the kernels
// oneDNN's own.
#include <torchcc/standalone/onednn.h>

#include <algorithm>
#include <bit>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <unordered_map>
#include <utility>
#include <vector>

#include <dnnl.hpp>

#include "arena.h"
#include "state.h"

namespace torchcc::generated {
namespace {

using dnnl::memory;
using Numbers = std::vector<int64_t>;

dnnl::engine& engine() {
  static dnnl::engine own(dnnl::engine::kind::cpu, 0);
  return own;
}

dnnl::stream& stream() {
  static thread_local dnnl::stream own(engine());
  return own;
}

memory::data_type type_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return memory::data_type::f32;
    case ScalarType::BFloat16: return memory::data_type::bf16;
    case ScalarType::Half: return memory::data_type::f16;
    default:
      throw std::runtime_error("a convolution or product of " + dtype_name(dtype) + ", which oneDNN does not have");
  }
}

Numbers numbers(IntArrayRef values) { return {values.begin(), values.end()}; }

memory::desc described(const Tensor& tensor) {
  return {numbers(tensor.sizes()), type_of(tensor.scalar_type()), numbers(tensor.strides())};
}

/// A convolution's numbers, one for each dimension of space.
struct Shape {
  Numbers stride, padding, dilation, output_padding;
  bool transposed;
  int64_t groups;
};

/// PyTorch's weights as oneDNN has them: outputs before inputs, and groups in a dimension of their own.
memory::desc described_weight(const Tensor& weight, const Shape& shape) {
  const IntArrayRef sizes = weight.sizes();
  const IntArrayRef strides = weight.strides();
  const size_t outer = shape.transposed ? 1 : 0;
  Numbers dims{sizes[outer], sizes[1 - outer]};
  Numbers steps{strides[outer], strides[1 - outer]};
  if (shape.groups > 1) {
    const int64_t first = sizes[0] / shape.groups;
    dims = shape.transposed ? Numbers{shape.groups, sizes[1], first} : Numbers{shape.groups, first, sizes[1]};
    steps = shape.transposed ? Numbers{first * strides[0], strides[1], strides[0]}
                             : Numbers{first * strides[0], strides[0], strides[1]};
  }
  dims.insert(dims.end(), sizes.begin() + 2, sizes.end());
  steps.insert(steps.end(), strides.begin() + 2, strides.end());
  return {dims, type_of(weight.scalar_type()), steps};
}

Numbers output_sizes(const Tensor& input, const Tensor& weight, const Shape& shape) {
  Numbers sizes{input.sizes()[0], shape.transposed ? weight.sizes()[1] * shape.groups : weight.sizes()[0]};
  for (size_t d = 0; d < shape.stride.size(); ++d) {
    const int64_t size = input.sizes()[d + 2];
    const int64_t reach = shape.dilation[d] * (weight.sizes()[d + 2] - 1) + 1;
    sizes.push_back(shape.transposed
                        ? (size - 1) * shape.stride[d] - 2 * shape.padding[d] + reach + shape.output_padding[d]
                        : (size + 2 * shape.padding[d] - reach) / shape.stride[d] + 1);
  }
  return sizes;
}

/// Strides of the result: channels last where those of the input are, as in PyTorch.
Numbers output_strides(const Tensor& input, const Numbers& sizes) {
  const bool channels_last = input.dim() >= 4 && input.strides()[1] == 1 && !input.is_contiguous();
  Numbers strides(sizes.size(), 1);
  int64_t step = channels_last ? sizes[1] : 1;
  for (size_t d = sizes.size(); d-- > (channels_last ? 2u : 0u);) {
    strides[d] = step;
    step *= sizes[d];
  }
  if (channels_last) strides[0] = step;
  return strides;
}

/// A primitive, and what it wants its memory to be like.
struct Prepared {
  dnnl::primitive primitive;
  memory::desc input, weight, output, scratch;
};

template <class Primitive>
Prepared prepared(const dnnl::algorithm algorithm, const memory::desc& input, const memory::desc& weight,
                  const memory::desc& bias, const memory::desc& output, const Shape& shape) {
  const auto any = [](const memory::desc& one) {
    return memory::desc(one.get_dims(), one.get_data_type(), memory::format_tag::any);
  };
  Numbers dilation, last_padding;
  for (size_t d = 0; d < shape.stride.size(); ++d) {
    dilation.push_back(shape.dilation[d] - 1);
    last_padding.push_back(shape.padding[d] - (shape.transposed ? shape.output_padding[d] : 0));
  }
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);  // so that threads can share the primitive
  const typename Primitive::primitive_desc found(engine(), dnnl::prop_kind::forward_inference, algorithm, any(input),
                                                 any(weight), bias, any(output), shape.stride, dilation, shape.padding,
                                                 last_padding, attributes);
  return {Primitive(found), found.src_desc(), found.weights_desc(), found.dst_desc(), found.scratchpad_desc()};
}

/// Primitives by all that they depend on, and weights in the order that they want, for all threads.
class Cache {
 public:
  template <class Make>
  std::shared_ptr<const Prepared> primitive(const Numbers& key, const Make& make) {
    {
      const std::shared_lock lock(mutex_);
      if (const auto found = primitives_.find(key); found != primitives_.end()) return found->second;
    }
    auto made = std::make_shared<const Prepared>(make());
    const std::unique_lock lock(mutex_);
    if (primitives_.size() >= kMost) primitives_.clear();  // as many sizes as that do not come again
    return primitives_.emplace(key, std::move(made)).first->second;
  }

  /// A weight of the model's, packed once.
  memory packed(memory weight, const memory::desc& wanted) {
    const std::pair key(static_cast<const void*>(weight.get_data_handle()), wanted.get_size());
    {
      const std::shared_lock lock(mutex_);
      const auto range = packed_.equal_range(key);
      for (auto one = range.first; one != range.second; ++one) {
        if (one->second.get_desc() == wanted) return one->second;
      }
    }
    memory made(wanted, engine());
    dnnl::reorder(weight, made).execute(stream(), weight, made);
    stream().wait();
    const std::unique_lock lock(mutex_);
    return packed_.emplace(key, made)->second;
  }

 private:
  static constexpr size_t kMost = 256;
  std::shared_mutex mutex_;
  std::map<Numbers, std::shared_ptr<const Prepared>> primitives_;
  std::multimap<std::pair<const void*, size_t>, memory> packed_;
};

Cache& cache() {
  static Cache own;
  return own;
}

/// Memory of a form, from the thread's store.
memory room(const memory::desc& form, Tensor& owner) {
  owner = empty({static_cast<int64_t>(form.get_size())}, kByte);
  return {form, engine(), owner.data_ptr()};
}

/// The tensor itself where it has the wanted form, else a copy that has it.
memory as(const memory::desc& wanted, memory given, Tensor& owner) {
  if (given.get_desc() == wanted) return given;
  memory copy = room(wanted, owner);
  dnnl::reorder(given, copy).execute(stream(), given, copy);
  return copy;
}

Numbers key_of(const Tensor& input, const Tensor& weight, bool has_bias, const Shape& shape) {
  Numbers key{shape.transposed ? 1 : 0, shape.groups, has_bias ? 1 : 0, static_cast<int64_t>(input.scalar_type())};
  for (const IntArrayRef one : {input.sizes(), input.strides(), weight.sizes(), weight.strides()}) {
    key.push_back(static_cast<int64_t>(one.size()));
    key.insert(key.end(), one.begin(), one.end());
  }
  for (const Numbers* one : {&shape.stride, &shape.padding, &shape.dilation, &shape.output_padding}) {
    key.insert(key.end(), one->begin(), one->end());
  }
  return key;
}

void convolve(const Tensor& input, const Tensor& weight, const Tensor* bias, const Shape& shape, Tensor& result) {
  const Numbers sizes = output_sizes(input, weight, shape);
  AtenTensorHandle handle = nullptr;
  aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), output_strides(input, sizes).data(),
                           static_cast<int32_t>(input.scalar_type()), 0, 0, &handle);
  result = std::move(*handle);
  delete_handle(handle);
  if (result.numel() == 0) return;
  const memory::desc input_form = described(input);
  const memory::desc weight_form = described_weight(weight, shape);
  const memory::desc bias_form = bias == nullptr ? memory::desc() : described(*bias);
  const memory::desc output_form = described(result);
  const auto made = cache().primitive(key_of(input, weight, bias != nullptr, shape), [&] {
    return shape.transposed ? prepared<dnnl::deconvolution_forward>(dnnl::algorithm::deconvolution_direct, input_form,
                                                                    weight_form, bias_form, output_form, shape)
                            : prepared<dnnl::convolution_forward>(dnnl::algorithm::convolution_auto, input_form,
                                                                  weight_form, bias_form, output_form, shape);
  });
  Tensor owned_input, owned_weight, owned_output, owned_scratch;
  const memory given_weight(weight_form, engine(), weight.data_ptr());
  const memory given_output(output_form, engine(), result.data_ptr());
  const bool is_direct = made->output == output_form;
  std::unordered_map<int, memory> arguments{
      {DNNL_ARG_SRC, as(made->input, memory(input_form, engine(), input.data_ptr()), owned_input)},
      {DNNL_ARG_WEIGHTS, made->weight == weight_form              ? given_weight
                         : detail::is_constant(weight.data_ptr()) ? cache().packed(given_weight, made->weight)
                                                                  : as(made->weight, given_weight, owned_weight)},
      {DNNL_ARG_DST, is_direct ? given_output : room(made->output, owned_output)},
      {DNNL_ARG_SCRATCHPAD, room(made->scratch, owned_scratch)}};
  if (bias != nullptr) arguments.emplace(DNNL_ARG_BIAS, memory(bias_form, engine(), bias->data_ptr()));
  made->primitive.execute(stream(), arguments);
  if (!is_direct) {
    memory target = given_output;
    dnnl::reorder(arguments.at(DNNL_ARG_DST), target).execute(stream(), arguments.at(DNNL_ARG_DST), target);
  }
  stream().wait();
}

/// What is added to a product: a tensor that is expanded to it.
struct Summand {
  const Tensor* tensor = nullptr;
  float scale = 0;  ///< PyTorch's beta
};

/// With dimensions of its own where the tensor is repeated.
memory::desc described_summand(const Tensor& tensor, size_t rank) {
  Numbers sizes(rank - static_cast<size_t>(tensor.dim()), 1), strides(sizes.size(), 0);
  for (size_t d = 0; d < static_cast<size_t>(tensor.dim()); ++d) {
    sizes.push_back(tensor.strides()[d] == 0 ? 1 : tensor.sizes()[d]);
    strides.push_back(tensor.strides()[d]);
  }
  int64_t step = 1;  // oneDNN wants a stride where there is one element too
  for (size_t d = rank; d-- > 0;) {
    if (sizes[d] == 1) strides[d] = step;
    step = std::max(step, strides[d] * sizes[d]);
  }
  return {sizes, type_of(tensor.scalar_type()), strides};
}

/// result = summand.scale * summand + scale * (one @ other)
void multiply(const Tensor& one, const Tensor& other, const Summand& summand, float scale, Tensor& result) {
  if (result.numel() == 0) return;
  if (one.numel() == 0) throw std::runtime_error("a product of matrices without elements, which oneDNN does not have");
  const bool is_sum = summand.tensor != nullptr && summand.scale != 0;
  const float before = is_sum ? scale / summand.scale : scale;  // what the product is multiplied with before the sum
  const bool is_packed = detail::is_constant(other.data_ptr());
  const memory::desc one_form = described(one);
  const memory::desc other_form = described(other);
  const memory::desc output_form = described(result);
  const memory::desc summand_form =
      is_sum ? described_summand(*summand.tensor, static_cast<size_t>(result.dim())) : memory::desc();
  Numbers key{2, static_cast<int64_t>(one.scalar_type()), is_sum ? 1 : 0, is_packed ? 1 : 0};
  for (const float number : {scale, is_sum ? summand.scale : 0}) key.push_back(std::bit_cast<int32_t>(number));
  for (const memory::desc& form : {one_form, other_form, output_form, summand_form}) {
    if (form.is_zero()) continue;
    for (const Numbers& numbers : {form.get_dims(), form.get_strides()}) {
      key.push_back(static_cast<int64_t>(numbers.size()));
      key.insert(key.end(), numbers.begin(), numbers.end());
    }
  }
  const auto made = cache().primitive(key, [&] {
    dnnl::post_ops then;
    if (before != 1) then.append_eltwise(dnnl::algorithm::eltwise_linear, before, 0);
    if (is_sum) then.append_binary(dnnl::algorithm::binary_add, summand_form);
    if (is_sum && summand.scale != 1) then.append_eltwise(dnnl::algorithm::eltwise_linear, summand.scale, 0);
    dnnl::primitive_attr attributes;
    attributes.set_post_ops(then);
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const memory::desc any(other_form.get_dims(), other_form.get_data_type(), memory::format_tag::any);
    const dnnl::matmul::primitive_desc found(engine(), one_form, is_packed ? any : other_form, output_form, attributes);
    return Prepared{dnnl::matmul(found), found.src_desc(), found.weights_desc(), found.dst_desc(),
                    found.scratchpad_desc()};
  });
  Tensor owned_scratch;
  const memory given(other_form, engine(), other.data_ptr());
  std::unordered_map<int, memory> arguments{
      {DNNL_ARG_SRC, memory(one_form, engine(), one.data_ptr())},
      {DNNL_ARG_WEIGHTS, made->weight == other_form ? given : cache().packed(given, made->weight)},
      {DNNL_ARG_DST, memory(output_form, engine(), result.data_ptr())},
      {DNNL_ARG_SCRATCHPAD, room(made->scratch, owned_scratch)}};
  if (is_sum) {
    const int position = before == 1 ? 0 : 1;
    arguments.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(position) | DNNL_ARG_SRC_1,
                      memory(summand_form, engine(), summand.tensor->data_ptr()));
  }
  made->primitive.execute(stream(), arguments);
  stream().wait();
}

AOTITorchError sum_and_product(Tensor& result, const Tensor& summand, const Tensor& one, const Tensor& other,
                               double beta, double alpha) {
  multiply(one, other, {&summand, static_cast<float>(beta)}, static_cast<float>(alpha), result);
  return 0;
}

}  // namespace

AOTITorchError aoti_torch_cpu_mm_out(AtenTensorHandle result, AtenTensorHandle one, AtenTensorHandle other) {
  multiply(*one, *other, {}, 1, *result);
  return 0;
}

AOTITorchError aoti_torch_cpu_bmm_out(AtenTensorHandle result, AtenTensorHandle one, AtenTensorHandle other) {
  multiply(*one, *other, {}, 1, *result);
  return 0;
}

AOTITorchError aoti_torch_cpu_addmm_out(AtenTensorHandle result, AtenTensorHandle summand, AtenTensorHandle one,
                                        AtenTensorHandle other, double beta, double alpha) {
  return sum_and_product(*result, *summand, *one, *other, beta, alpha);
}

AOTITorchError aoti_torch_cpu_baddbmm_out(AtenTensorHandle result, AtenTensorHandle summand, AtenTensorHandle one,
                                          AtenTensorHandle other, double beta, double alpha) {
  return sum_and_product(*result, *summand, *one, *other, beta, alpha);
}

AOTITorchError aoti_torch_cpu_convolution(AtenTensorHandle input, AtenTensorHandle weight, const AtenTensorHandle* bias,
                                          const int64_t* stride, int64_t, const int64_t* padding, int64_t,
                                          const int64_t* dilation, int64_t, int32_t transposed,
                                          const int64_t* output_padding, int64_t, int64_t groups,
                                          AtenTensorHandle* made) {
  const auto rank = static_cast<std::ptrdiff_t>(weight->dim() - 2);
  const Shape shape{Numbers(stride, stride + rank),
                    Numbers(padding, padding + rank),
                    Numbers(dilation, dilation + rank),
                    Numbers(output_padding, output_padding + rank),
                    transposed != 0,
                    groups};
  RAIIAtenTensorHandle handle(detail::new_handle());
  convolve(*input, *weight, bias == nullptr ? nullptr : *bias, shape, *handle.get());
  *made = handle.release();
  return 0;
}

}  // namespace torchcc::generated
