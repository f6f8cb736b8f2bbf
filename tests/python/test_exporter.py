"""`torchcc.export`: which sizes a function takes, and models of an installed library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import torchcc
from torchcc.errors import ArgumentError, CaptureError


class Branches(torch.nn.Module):
    """Does something else for one row."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] == 1 else x + y.sum()

    def other(self, y: torch.Tensor) -> torch.Tensor:
        return y + 1


def test_a_size_without_a_range_leaves_out_what_the_code_treats_apart(tmp_path: Path) -> None:
    args = torch.randn(3, 2), torch.randn(4)
    dynamic = {"x": {0: "rows"}, "y": {0: "count"}}
    exported = torchcc.export(tmp_path / "model.pt2", Branches(), args, dynamic=dynamic, targets=["portable"])
    assert str(exported.signatures[0]).endswith("with 2 <= rows, 1 <= count")
    with pytest.raises(CaptureError, match="rows"):
        torchcc.export(
            tmp_path / "no.pt2", Branches(), args, dynamic=dynamic, ranges={"rows": (1, 9)}, targets=["portable"]
        )
    assert not (tmp_path / "no.pt2").exists()


def test_a_range_may_be_of_one_method_only(tmp_path: Path) -> None:
    methods = {
        "forward": torchcc.Method((torch.randn(3, 2), torch.randn(4)), dynamic={"x": {0: "rows"}}),
        "other": torchcc.Method((torch.randn(4),), dynamic={"y": {0: "count"}}),
    }
    ranges = {"rows": (2, 5), "count": (1, 6)}
    file = tmp_path / "model.pt2"
    exported = torchcc.export(file, Branches(), methods=methods, ranges=ranges, targets=["portable"])
    assert [str(one).partition(" with ")[2] for one in exported.signatures] == ["2 <= rows <= 5", "1 <= count <= 6"]


def test_a_size_may_follow_from_another(tmp_path: Path) -> None:
    args = torch.randn(7, 2), torch.randn(3)
    for text, signature in (("2*n+1", "(x: float32[2*n+1, 2], y: float32[n])"), ("2n", "")):
        dynamic = {"x": {0: text}, "y": {0: "n"}}
        if signature:
            exported = torchcc.export(tmp_path / "model.pt2", Branches(), args, dynamic=dynamic, targets=["portable"])
            assert signature in str(exported.signatures[0])
        else:
            with pytest.raises(ArgumentError, match="dynamic= has '2n', which is no size"):
                torchcc.export(tmp_path / "no.pt2", Branches(), args, dynamic=dynamic, targets=["portable"])


@pytest.mark.usefixtures("libraries")
def test_a_graph_of_classes_of_an_installed_module(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    model = transformers.ViTForImageClassification(config).eval()
    file = tmp_path / "model.pt2"
    torchcc.export(
        file,
        model,
        kwargs={"pixel_values": torch.randn(2, 3, 16, 16)},
        dynamic={"pixel_values": {0: "batch"}},
        targets=["portable"],
    )
    command = [sys.executable, "-m", "torchcc", "verify", file, "--import", "transformers.modeling_outputs"]
    verified = subprocess.run([str(one) for one in command], capture_output=True, text=True, check=False)
    assert verified.returncode == 0 and "equal" in verified.stdout, verified.stderr
