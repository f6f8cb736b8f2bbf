"""What a region's annotations and options are read as. The refusals are in the error catalogue."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from jaxtyping import BFloat16, Bool, Float32, Float64, Int64
from torch import Tensor

import torchcc
from torchcc.signature import Symbol


class Moments(NamedTuple):
    mean: Tensor
    spread: Tensor


def test_reads_tensors_numbers_and_constants() -> None:
    @torchcc.region(ranges={"n": (1, 8), "k": (0, 3)})
    def f(
        x: Float32[Tensor, "n 768"],
        mask: Bool[Tensor, "n"],
        alpha: float,
        k: int,
        flag: bool,
        mode: str = "mean",
        eps: float = 1e-5,
    ) -> Float32[Tensor, "n"]:
        return x.sum(1)

    declared = f.declare("f", {})
    assert [value.type() for value in declared.inputs] == [
        "float32[n, 768]",
        "bool[n]",
        "double",
        "int64_t",
        "bool",
    ]
    assert (declared.inputs[3].minimum, declared.inputs[3].maximum) == (0, 3)
    assert declared.constants == {"mode": "mean", "eps": 1e-5}
    assert declared.symbols == (Symbol("n", 1, 8),)


def test_params_win() -> None:
    @torchcc.region(params={"k": 2, "eps": 1.0})
    def f(x: Float32[Tensor, "n"], k: int, eps: float = 1e-5) -> Tensor:
        return x * k + eps

    assert f.declare("f", {"k": 5, "unrelated": 1}).constants == {"k": 5, "eps": 1.0}


def test_anonymous_dimensions_are_their_own_symbols() -> None:
    @torchcc.region
    def f(x: Float64[Tensor, "_ _"], y: Int64[Tensor, "_"]) -> Tensor:
        return x

    assert [symbol.name for symbol in f.declare("f", {}).symbols] == ["x_0", "x_1", "y_0"]


def test_named_results() -> None:
    @torchcc.region
    def f(x: BFloat16[Tensor, "n"]) -> Moments:
        return Moments(x.mean(), x.std())

    declared = f.declare("f", {})
    assert declared.output_names == ("mean", "spread")
    assert declared.returns is None


def test_module_with_given_annotations() -> None:
    region = torchcc.region(torch.nn.Linear(3, 4), name="linear", inputs={"input": Float32[Tensor, "n 3"]})
    assert [value.type() for value in region.declare("linear", {}).inputs] == ["float32[n, 3]"]


def test_still_callable() -> None:
    @torchcc.region
    def twice(x: Float32[Tensor, "n"]) -> Tensor:
        """Doubles.

        More.
        """
        return 2 * x

    assert twice(torch.ones(3)).tolist() == [2, 2, 2]
    assert twice.name == "twice"
    assert twice.doc == "Doubles."


def test_refuses_what_cannot_be_called() -> None:
    with pytest.raises(torchcc.ArgumentError, match="a function or a torch.nn.Module"):
        torchcc.region(3)  # type: ignore[call-overload]
