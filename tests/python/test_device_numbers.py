"""Numbers as tensors of rank 0: the same values and dtypes as with numbers of Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from torchcc._torch.device_numbers import NeededOnHostError, keep_on_device


def _kept(function: Callable[..., Any], tensor: torch.Tensor, *numbers: float) -> tuple[Any, list[torch.Tensor]]:
    """A function's graph without reads of numbers, and these as tensors."""

    def read(x: torch.Tensor, *given: torch.Tensor) -> Any:
        return function(x, *(one.item() for one in given))

    given = [torch.tensor(number, dtype=torch.float64) for number in numbers]
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(one) for one in (tensor, *given)]
    with mode:
        graph: Any = make_fx(read, select_decomp_table())(*fakes)
    keep_on_device(graph.graph)
    graph.graph.lint()
    graph.recompile()
    assert not any("scalar_dense" in str(node.target) for node in graph.graph.nodes)
    return graph, given


FUNCTIONS: dict[str, Callable[[torch.Tensor, float, float], torch.Tensor]] = {
    "sum": lambda x, a, b: x + a - b,
    "reversed": lambda x, a, b: a / x * b,
    "rank 0": lambda x, a, b: x.sum() * a + b,
    "power": lambda x, a, b: x.abs() ** a + b ** (x / 20),
    "maths": lambda x, a, b: x * (1 - a * 0.01) / (-b + a / 2 - 3) ** 2,
    "addcdiv": lambda x, a, b: torch.addcdiv(x, x, x.abs() / b + 1, value=-a),
    "addcmul": lambda x, a, b: torch.addcmul(x * b, x, x, value=1 - a),
    "compared": lambda x, a, b: (x > a) | (x <= b),
    "full": lambda x, a, b: torch.full_like(x, a) * b,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_are_the_same(name: str, dtype: torch.dtype) -> None:
    function = FUNCTIONS[name]
    x = torch.tensor([-1.5, 0.25, 3.0, 40.0]).to(dtype)
    if name == "full" and dtype == torch.int64:
        return  # it makes whole numbers of the others
    graph, _ = _kept(function, x, 0.3, 0.7)
    for numbers in ((0.3, 0.7), (0.1, 1.9), (0.1, 1e100) if dtype == torch.float64 else (2.0, 3.0)):
        got = graph(x, *(torch.tensor(one, dtype=torch.float64) for one in numbers))
        wanted = function(x, *numbers)
        assert got.dtype == wanted.dtype
        wide = {"rtol": 2e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}  # eager CPUs round the number too
        torch.testing.assert_close(got, wanted, equal_nan=True, **wide)


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (torch.fmod, "aten::fmod.Scalar"),
        (lambda x, a: torch.clamp(x, max=a), "aten::clamp"),
        (lambda x, a: torch.full_like(x, a, dtype=torch.int64), "aten::full"),
        (lambda x, a: x.to(torch.complex64) * a, "aten::mul.Tensor"),
    ],
)
def test_operators_that_need_the_number_are_named(function: Callable[..., Any], operator: str) -> None:
    with pytest.raises(NeededOnHostError, match=operator):
        _kept(function, torch.ones(3), 0.5)
