"""`torchcc.load`: functions of packages in Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import change, numpy_file, refuse, run

import torchcc
from torchcc import _torch
from torchcc.errors import ArgumentError


def test_load(packages: Path, tmp_path: Path) -> None:
    loaded = torchcc.load(packages / "both.pt2")
    assert loaded.names == list(loaded) == ["forward"] and len(loaded) == 1
    function = loaded["forward"]
    assert (function.backend, function.target, function.reasons) == ("compiled", _torch.cpu_target()[0], [])
    graph = torchcc.load(packages / "both.pt2", compiled=False)["forward"]
    assert (graph.backend, graph.target, len(graph.reasons)) == ("portable", "", 2)
    assert "portable>" in repr(graph)
    for x in (torch.randn(5, 8), torch.randn(8, 1).t(), torch.randn(8, 4).t()):
        torch.testing.assert_close(function(x), graph(x=x))
    other = change(packages / "both.pt2", tmp_path / "other.pt2", tmp_path / "work", torch="2.0")
    refused = torchcc.load(other)["forward"]
    assert refused.backend == "portable"
    assert refused.reasons[0].endswith(f"compiled with torch 2.0, this is torch {_torch.tree_version()}")
    count = torchcc.load(packages / "counter.pt2")["forward"]
    assert count(torch.ones(2, 3)).tolist() == [4, 4, 4]
    assert count(torch.ones(2, 3)).tolist() == [8, 8, 8]


def test_functions_share_weights_in_python(packages: Path) -> None:
    loaded = torchcc.load(packages / "net.pt2")
    programs = [loaded[name]._function.program for name in loaded.names]
    one, other = (program.state_dict["embed.weight"] for program in programs if program is not None)
    assert one is other


def test_calls_that_do_not_fit(packages: Path) -> None:
    forward = torchcc.load(packages / "net.pt2")["forward"]
    ids, bias, mask = torch.ones(2, 3, dtype=torch.int64), torch.ones(16), torch.ones(2, 3)
    outputs = forward(ids, bias, mask)
    assert outputs[0] is outputs["scores"] and [one.shape for one in outputs] == [(2, 4), (16,), ()]
    for args, kwargs, text in (
        ((ids, bias), {}, "nothing for 'mask'"),
        ((ids, bias, mask, mask), {}, "4 arguments"),
        ((ids, bias, mask), {"ids": ids}, "'ids' twice"),
        ((ids, bias), {"masks": mask}, "'masks', which it does not take"),
        ((ids.int(), bias, mask), {}, "int32[2, 3]"),
        ((ids, bias[0], mask), {}, "float32[]"),
        ((ids, bias[:3], mask), {}, "sizes [3]"),
        ((ids, bias, mask[:1]), {}, "argument 'mask' does not fit"),
        ((ids[:0], bias, mask[:0]), {}, "batch = 0"),
        ((ids.expand(2, 3).repeat(1, 30), bias, mask.repeat(1, 30)), {}, "length = 90"),
        ((ids, bias, 3), {}, "a int"),
    ):
        with pytest.raises(ArgumentError) as raised:
            forward(*args, **kwargs)
        assert text in str(raised.value)
    with pytest.raises(ArgumentError, match="no result 'score'"):
        outputs["score"]
    with pytest.raises(ArgumentError, match="no function 'decode'"):
        torchcc.load(packages / "net.pt2")["decode"]


@pytest.mark.usefixtures("libraries")
def test_numbers_in_calls(tmp_path: Path) -> None:
    class Scale(torch.nn.Module):
        def forward(self, x: torch.Tensor, k: int) -> torch.Tensor:
            return x * k

    program = torch.export.export(
        Scale(), (torch.ones(3), 4), dynamic_shapes={"x": None, "k": torch.export.Dim.DYNAMIC}
    )
    _torch.save(program, tmp_path / "plain.pt2")
    run("compile", tmp_path / "plain.pt2", "-o", tmp_path / "scale.pt2", "--target", "portable")
    function = torchcc.load(tmp_path / "scale.pt2")["forward"]
    assert function(torch.ones(3), 5).tolist() == function(torch.ones(3), torch.tensor(5)).tolist() == [5, 5, 5]
    for number in (2.5, True):
        with pytest.raises(ArgumentError, match="'k' does not fit"):
            function(torch.ones(3), number)
    x = numpy_file(tmp_path / "x.npy", torch.ones(3))
    called = json.loads(run("run", tmp_path / "scale.pt2", "-i", x, "-i", "k=7", "--json"))
    assert called["outputs"][0]["values"] == [7, 7, 7]
    refuse(ArgumentError, "not understood", "run", tmp_path / "scale.pt2", "-i", x, "-i", "k=2.5")
