#pragma once

#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

namespace torchcc::detail {

/// Why this program cannot use a GPU by CUDA; empty when it can.
std::string why_no_cuda();

/// Whether it can. Fast.
bool has_gpu();

/// The GPU that is current in this thread. Only where has_gpu().
c10::Device current_gpu();

/// The GPU of this index, for -1 the current one. Only where why_no_cuda() is empty; throws ArgumentError for an index
/// that no GPU has.
c10::Device cuda_device(int index);

/// The architecture of a GPU, as "sm90"; "unknown" when the driver does not tell.
std::string cuda_architecture(c10::Device device);

/// The GPU's stream on which PyTorch's operators of this thread run, as CUDA knows it.
void* current_stream(c10::Device device);

/// Whether a CUDA graph is being recorded on that stream.
bool is_capturing(c10::Device device);

/// A new stream of a GPU, as CUDA knows it, that does not wait for the default one. Throws Error.
void* make_stream(c10::Device device);

/// A number for the current stream.
int64_t current_stream_id(c10::Device device);

/// Whether compiled code can read a tensor where it is: kernels for GPUs load 16 bytes at once, as PyTorch's allocator
/// aligns tensors, and a view may begin elsewhere.
bool is_aligned(const at::Tensor& tensor);

/// The tensor, or, where compiled code cannot read it, a copy of the same strides.
at::Tensor aligned(const at::Tensor& tensor);

}  // namespace torchcc::detail
