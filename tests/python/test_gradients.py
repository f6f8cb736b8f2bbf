"""Backward of exported programs: both graphs, run in Python in place of compiled code, and what C++ is told of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim

import torchcc
from torchcc import (
    _torch,
    capture,
    gradients,
    inspection,
    operators,
    package,
    package_reader,
    package_writer,
    verify,
)
from torchcc.errors import CaptureError, CompileError
from torchcc.program_signature import signature_of
from torchcc.signature import Signature, Value

# PyTorch says so of its own code when Inductor is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*script_method.*is deprecated:DeprecationWarning")


class Perceptron(torch.nn.Module):
    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 8)
        self.norm = norm
        self.last = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(torch.nn.functional.gelu(self.norm(self.first(x))))
        return y


class Scaled(torch.nn.Module):
    """Reads a number, and gives sizes that backward has to compute again."""

    def forward(self, x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ y.T * scale.item(), -1) * x.shape[0]


class Several(torch.nn.Module):
    """Results that share memory, that are arguments, that have no gradient, and that depend on some arguments."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        z = torch.sigmoid(x) * y
        return z, z.transpose(0, 1), torch.exp(y), x, x.detach() + 1, (x > 0).sum()


class Picture(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 4, 3, padding=1)
        self.head = torch.nn.Linear(4 * 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.max_pool2d(torch.relu(self.conv(x)), 2)
        z: torch.Tensor = self.head(y.flatten(1))
        return z


class Words(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(10, 4)
        self.tied = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(self.table(ids).mean(1) @ self.tied.T, -1)


class Graphs(gradients.Code):
    """Both graphs, run by Python."""

    def __init__(self, made: _torch.Differentiated) -> None:
        super().__init__(self._runs(made.halves.forward), self._runs(made.halves.backward), gradients.describe(made))

    @staticmethod
    def _runs(module: Any) -> gradients.Run:
        def run(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            with torch.no_grad():
                return list(module(*tensors))

        return run


@functools.cache
def differentiated(case: str) -> tuple[package.Function, _torch.Differentiated, tuple[str, ...]]:
    """A program of a case, with its graphs and the names of its weights."""
    torch.manual_seed(1)
    n = Dim("n", min=1)
    modules: dict[str, tuple[torch.nn.Module, tuple[torch.Tensor, ...], Any]] = {
        "layer norm": (Perceptron(torch.nn.LayerNorm(8)), (torch.randn(5, 3, 6),), ({0: n},)),
        "batch norm": (Perceptron(torch.nn.BatchNorm1d(8)), (torch.randn(5, 6),), ({0: Dim("n", min=2)},)),
        "dropout": (Perceptron(torch.nn.Dropout(0.4)), (torch.randn(5, 6),), ({0: n},)),
        "number": (
            Scaled(),
            (torch.randn(5, 4), torch.randn(7, 4), torch.tensor(0.7, dtype=torch.float64)),
            ({0: n}, {0: Dim("m", min=1)}, None),
        ),
        "several": (Several(), (torch.randn(5, 4), torch.randn(5, 4)), ({0: n}, {0: n})),
        "picture": (Picture(), (torch.randn(3, 2, 4, 4),), ({0: n},)),
        "words": (Words(), (torch.randint(0, 10, (3, 5)),), ({0: n, 1: Dim("length", min=1)},)),
    }
    module, args, dynamic = modules[case]
    program = _torch.export(module, args, dynamic, prefer_general=case != "batch norm")
    function = package.Function(signature_of(program, "forward"), program, ())
    weights = tuple(_torch.weight_names(program))
    made = _torch.differentiate(program, weights, operators.for_complex, {"fallback_random": True})
    return function, made, weights


CASES = ("layer norm", "batch norm", "dropout", "number", "several", "picture", "words")


@pytest.mark.parametrize("case", CASES)
def test_the_graphs_give_what_eager_gives(case: str) -> None:
    function, made, weights = differentiated(case)
    checked = gradients.check_function(function, Graphs(made), weights)
    assert checked.startswith("gradients at ") and int(checked.split()[2]) >= 4


@pytest.mark.parametrize("case", CASES)
def test_nothing_kept_is_memory_of_the_program(case: str) -> None:
    function, made, weights = differentiated(case)
    assert function.program is not None
    held = _torch.weights(function.program)
    inputs = [*_torch.examples(function.program), *(held[name] for name in weights)]
    assert Graphs(made).shared_extras(inputs) == set()


def test_what_cpp_is_told() -> None:
    _, made, weights = differentiated("layer norm")
    told = gradients.describe(made)
    assert weights == ("first.weight", "first.bias", "norm.weight", "norm.bias", "last.weight", "last.bias")
    assert told["gradients"] == [0, 1, 2, 3, 4, 5, 6]
    assert told["tangents"] == [{"output": 0, "strides": None}]
    assert told["covered"] == [[0]] and told["reached"] == [[0, 1, 2, 3, 4, 5, 6]]
    # Autograd keeps the arguments of a matmul, which then must not change; but no bias, of which it would be a copy.
    assert {["x", *weights][position] for kind, position in told["saved"] if kind == "input"} == {
        *("x", "first.weight", "norm.weight", "norm.bias", "last.weight")
    }
    assert not told["random"]
    assert differentiated("dropout")[1].is_random


def test_results_that_depend_on_some_arguments() -> None:
    told = gradients.describe(differentiated("several")[1])
    assert [one["output"] for one in told["tangents"]] == [0, 1, 2, 3]
    assert told["reached"] == [[0, 1], [0, 1], [1], [0], [], []]
    assert told["covered"] == [[0], [0, 1], [2], [3], [4], [5]]


def test_gradients_of_weights_alone_are_less_work() -> None:
    function, _, weights = differentiated("layer norm")
    assert function.program is not None
    assert gradients.kinds(function.program) == ["weights", "all"]
    made = _torch.differentiate(function.program, weights, operators.for_complex, {}, arguments=False)
    told = gradients.describe(made)
    assert told["gradients"] == [1, 2, 3, 4, 5, 6] and told["reached"] == [[1, 2, 3, 4, 5, 6]]
    assert gradients.check_function(function, Graphs(made), weights).startswith("gradients at 5")
    for case in ("words", "several"):  # no gradients of arguments, none of weights
        program = differentiated(case)[0].program
        assert program is not None and gradients.kinds(program) == ["all"]


def test_statistics_are_written_and_have_no_gradient() -> None:
    _, made, weights = differentiated("batch norm")
    told = gradients.describe(made)
    names = ["x", *weights]
    assert {names[one] for one in told["gradients"]} == {
        *("x", "first.weight", "first.bias", "norm.weight", "norm.bias", "last.weight", "last.bias")
    }
    assert not {names[position] for kind, position in told["saved"] if kind == "input"} & {
        *("norm.running_mean", "norm.running_var", "norm.num_batches_tracked")
    }


def test_a_wrong_backward_is_noticed() -> None:
    function, made, weights = differentiated("picture")
    right = Graphs(made)

    def backward(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [one * 1.01 for one in made.halves.backward(*tensors)]

    wrong = gradients.Code(right.forward, backward, right.description)
    with pytest.raises(CompileError, match=r"(?s)forward: the compiled backward differs from eager.*gradient 0"):
        gradients.check_function(function, wrong, weights)


def test_memory_that_is_kept_and_belongs_to_the_program_is_noticed() -> None:
    _, made, _ = differentiated("picture")
    right = Graphs(made)

    def forward(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        outputs, extras = right.run_forward(tensors)
        return [*outputs, *extras[:-1], tensors[0][:, :1]]

    code = gradients.Code(forward, right.backward, right.description)
    x = torch.randn(3, 2, 4, 4)
    weights = [torch.randn(4, 2, 3, 3), torch.randn(4), torch.randn(3, 16), torch.randn(3)]
    extras = sum(kind == "extra" for kind, _ in right.description["saved"])
    assert code.shared_extras([x, *weights]) == {extras - 1}


def spring(x, stiffness, rest):  # type: ignore[no-untyped-def]
    return (stiffness * (x - rest).square()).sum(), torch.tanh(x)


def regions() -> dict[str, torchcc.Region]:
    from jaxtyping import Float32, Float64

    x = Float64[torch.Tensor, "n"]
    return {
        "function": torchcc.region(spring, grad=True, inputs={"x": x, "stiffness": x, "rest": float}),
        "module": torchcc.region(
            Perceptron(torch.nn.Tanh()), name="module", grad=True, inputs={"x": Float32[torch.Tensor, "n 6"]}
        ),
    }


@pytest.mark.parametrize("case", ["function", "module"])
def test_regions_are_compared_with_their_python_code(case: str) -> None:
    captured = capture.capture(regions()[case], case, {})
    weights = _torch.weight_names(captured.program)
    made = _torch.differentiate(captured.program, weights, operators.for_complex, {})
    right = Graphs(made)
    assert verify.verify_gradients(captured, right, weights) == "gradients at 5 sets of sizes"

    def backward(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        *most, last = made.halves.backward(*tensors)
        return [*most, last + 0.1]

    with pytest.raises(CompileError, match=f"region {case}: the compiled backward differs from eager"):
        verify.verify_gradients(captured, gradients.Code(right.forward, backward, right.description), weights)


class Writes(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x * 2


class Counts(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


class Detached(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach() * 2


@pytest.mark.parametrize(
    ("module", "example", "reason"),
    [
        (Writes(), torch.randn(3), "it writes into x"),
        (Counts(), torch.tensor([1, 2]), "no argument and no parameter is a floating point number"),
        (Detached(), torch.randn(3), "no result depends on an argument or parameter"),
    ],
)
def test_what_cannot_train(tmp_path: Path, module: torch.nn.Module, example: torch.Tensor, reason: str) -> None:
    with pytest.raises(CaptureError, match=f"(?s)function forward: its backward cannot be compiled.*{reason}"):
        torchcc.export(tmp_path / "model.pt2", module, (example,), train=True)
    assert not (tmp_path / "model.pt2").exists()


def test_a_package_keeps_code_for_training(tmp_path: Path) -> None:
    code, backward = tmp_path / "code.so", tmp_path / "backward.so"
    for file in (code, backward):
        file.write_bytes(file.name.encode())
    signature = Signature("f", (Value("x", "float32", (3,)),), (Value("out", "float32", (3,)),))
    told = gradients.describe(differentiated("picture")[1])
    training = package.Training([str(code)], [str(backward)], told, weights=("w",), target="a", torch="1.0")
    other = dataclasses.replace(training, target="b-avx512")
    fewer = dataclasses.replace(training, description={**told, "gradients": [1]})
    function = package.Function(signature, None, [package.Variant([str(code)])], training=[training])
    package_writer.write(tmp_path / "f.pt2", [function])
    (read,) = package_reader.read(tmp_path / "f.pt2", tmp_path / "read")
    (one,) = read.training
    assert [Path(file).read_bytes() for file in (*one.files, *one.files_backward)] == [b"code.so", b"backward.so"]
    assert dataclasses.replace(one, files=(), files_backward=()) == dataclasses.replace(
        training, files=(), files_backward=()
    )
    assert package.joined([training, other], [training]) == [other, training]
    assert package.joined([fewer, other], [training]) == [other, training, fewer]
    described = inspection.describe(tmp_path / "f.pt2")
    assert described["functions"][0]["training"][0]["gradients"] == 5
    assert "a, torch 1.0: 18 bytes of code for training, gradients for 5 inputs and weights" in inspection.text(
        described
    )
