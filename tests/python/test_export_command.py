"""`torchcc export`: what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from commands import MODELS, refuse

from torchcc.errors import ArgumentError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("one", "it gives no model"),
        ("unknown", "it gives a dict with 'dynamics'"),
        ("no_tuple", "its 'args' is something else"),
        ("no_module", "its 'module' is something else"),
        ("fails", "ZeroDivisionError"),
        ("nothing", "it has no function 'nothing'"),
        ("VALUE", "it has no function 'VALUE'"),
    ],
)
def test_functions_that_give_no_model(tmp_path: Path, name: str, text: str) -> None:
    refuse(ArgumentError, text, "export", f"{MODELS}:{name}", "-o", tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())


def test_exports_that_make_no_sense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    out = tmp_path / "x.pt2"
    source = f"{MODELS}:counter"
    refuse(ArgumentError, "no function is named", "export", MODELS, "-o", out)
    refuse(ArgumentError, "no such file", "export", f"{tmp_path / 'missing.py'}:build", "-o", out)
    refuse(ArgumentError, "not the name of a package", "export", source, "-o", tmp_path / "x.bin")
    refuse(ArgumentError, "unknown target 'gpu'", "export", source, "-o", out, "--target", "gpu")
    refuse(ArgumentError, "--option max: not understood", "export", source, "-o", out, "--option", "max")
    refuse(ArgumentError, "no option 'maxautotune'", "export", source, "-o", out, "--option", "maxautotune=1")
    (tmp_path / "broken.py").write_text("1 / 0")
    refuse(ArgumentError, "cannot be imported", "export", f"{tmp_path / 'broken.py'}:build", "-o", out)
    (tmp_path / "file").write_text("")
    refuse(
        ArgumentError, "cannot be written", "export", source, "--target", "portable", "-o", tmp_path / "file" / "x.pt2"
    )
    assert sorted(one.name for one in tmp_path.iterdir() if one.name != "__pycache__") == ["broken.py", "file"]
