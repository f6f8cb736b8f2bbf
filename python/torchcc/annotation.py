"""Reads the annotations of a region's arguments and results.

A tensor is annotated with jaxtyping, e.g. ``Float32[Tensor, "n 768"]``; a number with ``float``, ``int`` or ``bool``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torchcc import sizes

#: jaxtyping's names of dtypes that have the same name in PyTorch.
DTYPES = frozenset(
    f"{kind}{bits}"
    for kind, widths in {
        "uint": (8, 16, 32, 64),
        "int": (8, 16, 32, 64),
        "float": (16, 32, 64),
        "bfloat": (16,),
        "complex": (64, 128),
    }.items()
    for bits in widths
) | {"bool"}

_NUMBERS = {float: "float64", int: "int64", bool: "bool"}


@dataclass(frozen=True)
class TensorType:
    """A tensor annotation: PyTorch's dtype name, and one size per dimension."""

    dtype: str
    sizes: tuple[sizes.Size, ...]


@dataclass(frozen=True)
class NumberType:
    """A Python number: dtype ``"float64"``, ``"int64"`` or ``"bool"``."""

    dtype: str


def read(annotation: Any, owner: str) -> TensorType | NumberType:
    """Reads one annotation.

    Args:
        annotation: A jaxtyping array type, or ``float``, ``int`` or ``bool``.
        owner: A name that is unique to the annotated thing; symbols for ``_`` are made from it.

    Raises:
        ValueError: It is none of these. The message says what is wrong with it.
    """
    if annotation in _NUMBERS:
        return NumberType(_NUMBERS[annotation])
    dtypes = getattr(annotation, "dtypes", None)
    dimensions = getattr(annotation, "dim_str", None)
    if dtypes is None or dimensions is None:
        raise ValueError(f"it is annotated with {_name(annotation)}")
    # jaxtyping lists NumPy's old name of bool beside the new one, and any class where the dtype is left open.
    names = {str(dtype).removesuffix("_") for dtype in dtypes} if isinstance(dtypes, list | tuple) else set()
    if len(names) != 1:
        raise ValueError(f"{_name(annotation)} stands for many dtypes")
    (dtype,) = names
    if dtype not in DTYPES:
        raise ValueError(f"the dtype {dtype} is not supported")
    read_sizes = tuple(
        _read_dimension(token, f"{owner}_{position}") for position, token in enumerate(str(dimensions).split())
    )
    return TensorType(dtype, read_sizes)


def _read_dimension(token: str, anonymous: str) -> sizes.Size:
    if "..." in token or token.startswith("*"):
        raise ValueError(f"the dimensions {token!r} leave the rank open")
    if token.startswith(("#", "?", "{")):
        raise ValueError(f"the dimension {token!r} is of a kind that is not supported")
    token = token.rpartition("=")[2]
    if token.startswith("_"):
        return anonymous
    return sizes.parse(token)


def _name(annotation: Any) -> str:
    return "nothing" if annotation is None else str(getattr(annotation, "__name__", annotation))
