#pragma once

// Operators that Inductor generates no code for, from oneDNN: for generated sources of programs that link it.

#include <torchcc/standalone/generated.h>

namespace torchcc::generated {

AOTITorchError aoti_torch_cpu_convolution(AtenTensorHandle input, AtenTensorHandle weight, const AtenTensorHandle* bias,
                                          const int64_t* stride, int64_t stride_rank, const int64_t* padding,
                                          int64_t padding_rank, const int64_t* dilation, int64_t dilation_rank,
                                          int32_t transposed, const int64_t* output_padding,
                                          int64_t output_padding_rank, int64_t groups, AtenTensorHandle* made);

// Matrix products, where Inductor has none: result = one @ other, or beta * summand + alpha * (one @ other).
AOTITorchError aoti_torch_cpu_mm_out(AtenTensorHandle result, AtenTensorHandle one, AtenTensorHandle other);
AOTITorchError aoti_torch_cpu_bmm_out(AtenTensorHandle result, AtenTensorHandle one, AtenTensorHandle other);
AOTITorchError aoti_torch_cpu_addmm_out(AtenTensorHandle result, AtenTensorHandle summand, AtenTensorHandle one,
                                        AtenTensorHandle other, double beta, double alpha);
AOTITorchError aoti_torch_cpu_baddbmm_out(AtenTensorHandle result, AtenTensorHandle summand, AtenTensorHandle one,
                                          AtenTensorHandle other, double beta, double alpha);

}  // namespace torchcc::generated
