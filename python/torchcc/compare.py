"""When two results of the same maths count as equal, although they were rounded in another order."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# (relative, absolute) per dtype: those of torch.testing.assert_close, with room for another order of summation. Below
# 6e-8 in float64, so that a value that went through float32 on its way is noticed.
_TOLERANCES = {
    torch.float16: (4e-3, 1e-3),
    torch.bfloat16: (3.2e-2, 1e-2),
    torch.float32: (1e-4, 1e-4),
    torch.float64: (1e-9, 1e-9),
    torch.complex64: (1e-4, 1e-4),
    torch.complex128: (1e-9, 1e-9),
}

# How much further from the exact result than eager PyTorch compiled code may be. Both are rounded about equally often,
# in another order; where the exact result is near, a factor of this size is chance.
_FACTOR = 4.0

# Above this error of the eager result, relative to the largest value, nothing can be said about compiled code.
_HOPELESS = 0.01

# Elements up to which the address of each is compared.
_FEW = 1 << 24


def tolerances(dtype: torch.dtype) -> tuple[float, float]:
    """Relative and absolute tolerance for results of a dtype; zero for whole numbers."""
    return _TOLERANCES.get(dtype, (0.0, 0.0))


def equal(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two tensors of one dtype and shape are equal within the dtype's tolerances."""
    relative, absolute = tolerances(expected.dtype)
    return torch.allclose(got, expected, rtol=relative, atol=absolute, equal_nan=True)


def largest_difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference between two tensors of one shape; NaN when either has one."""
    if not expected.numel():
        return 0.0
    wide = torch.complex128 if expected.dtype.is_complex else torch.float64
    return float((got.to(wide) - expected.to(wide)).abs().max())


def same_form(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two tensors have the same dtype and shape."""
    return got.dtype == expected.dtype and got.shape == expected.shape


def difference(got: torch.Tensor, expected: torch.Tensor) -> str:
    """How two tensors differ, for people."""
    if same_form(got, expected):
        return f"largest difference {largest_difference(got, expected):.3g}"
    return f"{got.dtype} {list(got.shape)} in place of {expected.dtype} {list(expected.shape)}"


def close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Like :func:`equal`, but small numbers are not all the same: the absolute tolerance shrinks with the largest."""
    relative, absolute = tolerances(expected.dtype)
    if not absolute:
        return torch.equal(got, expected)
    return torch.allclose(got, expected, rtol=relative, atol=absolute * min(1.0, _largest(expected)), equal_nan=True)


def as_exact(
    got: torch.Tensor, expected: torch.Tensor, exact: torch.Tensor, others: Sequence[torch.Tensor], precision: float
) -> bool:
    """Whether a result that is not :func:`close` is still as good as the eager one.

    Both are compared with the exact result. The eager one gets a few tries, because its error may be small by luck: on
    the inputs as they are, and on inputs changed by one rounding.

    Args:
        got: Result to judge.
        expected: The eager result, of the same dtype and shape.
        exact: The result in float64 or complex128, of the same shape.
        others: Eager results for inputs that differ by one rounding.
        precision: Relative rounding error of the least precise dtype on the way, for instance 1.2e-7.
    """
    finite = torch.isfinite(exact) & torch.isfinite(expected) & torch.isfinite(got)
    wrong = ~finite & ~torch.isclose(got, expected, rtol=0, atol=0, equal_nan=True)
    if bool(wrong.any()):
        return False
    exact = exact[finite]
    error = max(largest_difference(one[finite].nan_to_num(), exact) for one in (expected, *others))
    # What is mostly rounding says nothing about compiled code, unless it is small by any measure.
    meaningful = error <= max(_HOPELESS, 16 * precision) * _largest(exact) or equal(got, expected)
    return meaningful and largest_difference(got[finite], exact) <= _FACTOR * error


def next_to(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A copy whose values differ by up to one rounding; whole numbers stay as they are."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    noise = torch.randint(-1, 2, tensor.shape, generator=generator).to(tensor.device)
    return tensor * (1 + noise * torch.finfo(tensor.dtype).eps).to(tensor.dtype)


def _largest(tensor: torch.Tensor) -> float:
    """Largest finite absolute value."""
    sizes = tensor.abs()
    sizes = sizes[torch.isfinite(sizes)]
    return float(sizes.max()) if sizes.numel() else 0.0


def overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors share an element in memory, so that a change of one is a change of the other."""
    (begin, end), (other_begin, other_end) = _span(one), _span(other)
    if end <= other_begin or other_end <= begin:
        return False
    if one.numel() + other.numel() > _FEW:
        return True
    unit = max(one.element_size(), other.element_size())  # elements are aligned: they overlap if they share a unit
    return bool(torch.isin(_addresses(one) // unit, _addresses(other) // unit).any())


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """First byte, and the one after the last."""
    if not tensor.numel():
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _addresses(tensor: torch.Tensor) -> torch.Tensor:
    """The address of every element."""
    found = torch.tensor(tensor.data_ptr())
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        found = found.unsqueeze(-1) + torch.arange(size) * stride * tensor.element_size()
    return found.flatten()
