"""Fused attention of GPUs, as verification sees it; it runs on the CPU here."""

from __future__ import annotations

import torch

from torchcc import operators, trace, trace_arguments

FORWARD = torch.ops.aten._scaled_dot_product_efficient_attention.default
BACKWARD = torch.ops.aten._scaled_dot_product_efficient_attention_backward.default


def test_fused_attention_in_float64() -> None:
    q, k, v = (torch.randn(2, 3, 8, 4, dtype=torch.float64).requires_grad_() for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    gradient = torch.randn_like(expected)
    results = operators.wide_attention(FORWARD, [q, k, v, None, True, 0.0, True, 0.3])
    assert results is not None and len(results) == 4
    torch.testing.assert_close(results[0], expected.detach())
    wanted = torch.autograd.grad(expected, (q, k, v), gradient)
    rest = [results[0], results[1], results[2], results[3], 0.0, [True, True, True, False], True, 0.3]
    gradients = operators.wide_attention(BACKWARD, [gradient, q, k, v, None, *rest])
    assert gradients is not None and len(gradients) == 4
    for got, one in zip(gradients, wanted, strict=False):
        torch.testing.assert_close(got, one)


def test_other_calls_run_as_they_are() -> None:
    q = torch.randn(2, 3, 8, 4)
    assert operators.wide_attention(FORWARD, [q, q, q, None, True, 0.0, True, None]) is None
    assert operators.wide_attention(torch.ops.aten.relu.default, [q]) is None


def test_the_state_of_a_generator_that_is_not_used_is_no_value() -> None:
    def recorded(dropout: float) -> trace.Trace:
        args = ({"tensor": 0}, {"tensor": 0}, {"tensor": 0}, None, True, trace_arguments.encode(dropout), False, None)
        op = trace.Op("aten::_scaled_dot_product_efficient_attention", args, (1, 2, 3, 4))
        one = trace.Metadata(torch.float32, (1, 1, 8, 4), (32, 32, 4, 1), 0, device="cuda")
        given = trace.Input(0, "argument", "arg0")
        return trace.Trace("f", trace.Environment(), (one,) * 5, (given,), (op,), (1, 3), (), False)

    assert recorded(0.0).unwritten == {2, 3, 4}
    assert recorded(0.5).unwritten == frozenset()
    assert recorded(0.0).on_gpu
