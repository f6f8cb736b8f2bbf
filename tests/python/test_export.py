"""Whole models through ``torchcc.export``: in C++ they give what the module gives in Python, compiled or not."""

from __future__ import annotations

import copy
import inspect
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from models import FAMILIES, Family

import torchcc
from torchcc import _torch, agreement, native, package_reader

# Compiled in every run, because they differ most: sizes of 1 and others, state in buffers, several methods, containers.
# The others are compiled by `pytest -m slow`: each takes a compiler 15 to 60 seconds.
COMPILED = ("vision_transformer", "decoder_with_cache_in_buffers", "encode_and_decode", "dicts")


pytestmark = [
    # PyTorch's recurrent layers keep their weights in a list too, and its export says so.
    pytest.mark.filterwarnings("ignore:The tensor attributes self.*were assigned during export:UserWarning"),
    # Its scan looks at the gradients of all operands, and imports what is deprecated.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
]


@pytest.fixture(scope="session")
def runner(libraries: Path) -> Path:
    """The program ``torchcc-run``."""
    return native.runner()


def make(name: str) -> Family:
    torch.manual_seed(20260301)
    return FAMILIES[name]()


def export(family: Family, file: Path, *targets: str) -> torchcc.Exported:
    example = {name: call(**family.sizes[0]) for name, call in family.methods.items()}
    if list(example) == ["forward"]:
        method = example["forward"]
        return torchcc.export(
            file,
            family.module,
            method.args,
            method.kwargs,
            dynamic=method.dynamic,
            ranges=family.ranges,
            targets=targets,
        )
    return torchcc.export(file, family.module, methods=example, ranges=family.ranges, targets=targets)


def fresh(family: Family, method: str, seed: int) -> list[torchcc.Method]:
    """Calls with other arguments than the example's, at all sizes of the family."""
    torch.manual_seed(seed)
    return [family.methods[method](**sizes) for sizes in family.sizes]


def inputs(family: Family, method: str, call: torchcc.Method, signature: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors of a call as C++ takes them: by the names that the signature has for the leaves of the arguments."""
    bound = inspect.signature(getattr(family.module, method)).bind(*call.args, **call.kwargs)
    leaves = {}
    for path, leaf in torch.utils._pytree.tree_flatten_with_path(dict(bound.arguments))[0]:
        keys = (next(getattr(key, kind) for kind in ("key", "idx", "name") if hasattr(key, kind)) for key in path)
        leaves[".".join(map(str, keys))] = leaf
    assert {name for name, leaf in leaves.items() if isinstance(leaf, torch.Tensor)} == {
        value["name"] for value in signature["inputs"]
    }
    return [leaves[value["name"]] for value in signature["inputs"]]


def in_python(module: Any, calls: Sequence[torchcc.Method]) -> list[list[torch.Tensor]]:
    """Results of calls one after the other, as C++ gives them."""
    with torch.no_grad():
        results = [module(*copy.deepcopy(call.args), **copy.deepcopy(dict(call.kwargs))) for call in calls]
        # After the last call, so that a result that is a view of a buffer would show it.
        return [agreement.as_tensors(_torch.flatten(result)) for result in results]


def in_cpp(
    runner: Path, file: Path, method: str, calls: Sequence[Sequence[torch.Tensor]], *options: str
) -> tuple[list[list[torch.Tensor]], dict[str, Any]]:
    """Results of calls one after the other in one C++ process, and what it says about itself."""
    given, results = file.with_suffix(".inputs"), file.with_suffix(".outputs")
    torch.save(tuple(tuple(call) for call in calls), given)
    command = [runner, file, method, given, results, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [list(call) for call in torch.load(results)], json.loads(done.stdout)


def check(got: Sequence[Sequence[torch.Tensor]], expected: Sequence[Sequence[torch.Tensor]]) -> None:
    assert len(got) == len(expected)
    for call, (ones, others) in enumerate(zip(got, expected, strict=True)):
        assert len(ones) == len(others)
        for position, (one, other) in enumerate(zip(ones, others, strict=True)):
            assert agreement.close(one, other), f"call {call}, result {position}: {one} in place of {other}"


def compare_in_cpp(runner: Path, family: Family, file: Path, backend: str, *options: str) -> None:
    """Compares all functions of a package with the module, on calls one after the other."""
    for seed, entry in enumerate(package_reader.read_manifest(file)["functions"]):
        signature = entry["signature"]
        calls = fresh(family, signature["name"], seed)
        given = [inputs(family, signature["name"], call, signature) for call in calls]
        expected = in_python(getattr(copy.deepcopy(family.module), signature["name"]), calls)
        got, stats = in_cpp(runner, file, signature["name"], given, *options)
        check(got, expected)
        assert stats["backend"] == backend, stats
        assert stats["portable_calls"] == (0 if backend == "compiled" else len(calls)), stats
        if family.stateful:  # else the buffers would not be tested
            assert any(not torch.equal(*pair) for pair in zip(expected[0], expected[-1], strict=True))


def compile_and_compare(runner: Path, name: str, file: Path) -> None:
    family = make(name)
    made = export(family, file, "native")
    assert {check.split(",")[0] for check in made.checks} == set(family.methods)
    compare_in_cpp(runner, family, file, "compiled")


@pytest.mark.parametrize("name", FAMILIES)
def test_family_runs_operator_by_operator(runner: Path, name: str, tmp_path: Path) -> None:
    family = make(name)
    file = tmp_path / "model.pt2"
    before = copy.deepcopy(family.module.state_dict())
    assert export(family, file, "portable").checks == {}
    # The user goes on with the module: export has changed nothing in it.
    check([list(family.module.state_dict().values())], [list(before.values())])
    compare_in_cpp(runner, family, file, "portable", "--portable")
    # PyTorch's own loader reads the file too.
    first = next(iter(family.methods))
    calls = fresh(family, first, 7)
    expected = in_python(getattr(copy.deepcopy(family.module), first), calls)
    check(in_python(_torch.load(str(file)).module(), calls), expected)


@pytest.mark.parametrize("name", COMPILED)
def test_family_runs_compiled(runner: Path, name: str, tmp_path: Path) -> None:
    compile_and_compare(runner, name, tmp_path / "model.pt2")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in COMPILED])
def test_other_family_runs_compiled(runner: Path, name: str, tmp_path: Path) -> None:
    compile_and_compare(runner, name, tmp_path / "model.pt2")


@pytest.mark.parametrize("target", ["portable", pytest.param("native", marks=pytest.mark.slow)])
def test_limits_of_sizes_from_data_are_checked(runner: Path, target: str, tmp_path: Path) -> None:
    file, given = tmp_path / "model.pt2", tmp_path / "inputs"
    export(make("sizes_from_data"), file, target)
    for n, good in ((50, True), (51, False)):
        torch.save(((torch.ones(2 * n), torch.ones(n)),), given)
        command = [runner, file, "forward", given, tmp_path / "outputs"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False)
        assert (done.returncode == 0) == good, done.stderr
        assert good or "u0 <= 100" in done.stderr


class Comparison(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, bool]:
        return x + 1, x.shape[0] > 5


class Overlap(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y.unfold(0, 3, 1).add_(1)
        return y


@pytest.mark.parametrize(
    ("module", "dynamic", "says"),
    [
        (Comparison(), {"x": {0: "n"}}, "a comparison of sizes, for instance, cannot be a result"),
        (Overlap(), None, "clone what overlaps itself"),
    ],
)
@pytest.mark.parametrize("target", ["portable", "native"])
def test_what_pytorch_cannot_store(
    module: torch.nn.Module, dynamic: Any, says: str, target: str, tmp_path: Path
) -> None:
    with pytest.raises(torchcc.CaptureError, match=says):
        torchcc.export(tmp_path / "model.pt2", module, (torch.randn(8),), dynamic=dynamic, targets=[target])
    assert not list(tmp_path.iterdir())


def test_there_are_many_families() -> None:
    assert len(FAMILIES) >= 25
    assert set(COMPILED) < set(FAMILIES)
