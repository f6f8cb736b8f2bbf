"""Calls of the command line, and what its tests give to it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from typer.testing import CliRunner

from torchcc import cli, package_reader, package_writer
from torchcc.errors import Error

#: What the fixture ``packages`` exports.
MODELS = Path(__file__).resolve().with_name("package_models.py")


def run(*arguments: object, code: int = 0) -> str:
    """What a command prints."""
    result = CliRunner().invoke(cli.app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


def refuse(kind: type[Error], text: str, *arguments: object) -> None:
    """Checks that a command ends with an error that says what is wrong and what to do."""
    with pytest.raises(kind) as raised:
        run(*arguments)
    assert text in str(raised.value), raised.value
    assert "\n  fix:" in str(raised.value)


def outcomes(file: Path, code: int = 0) -> list[tuple[str, str, str]]:
    found = json.loads(run("verify", file, "--json", code=code))
    assert found["good"] == (code == 0)
    return [(one["function"], one["subject"].partition(",")[2].strip(), one["outcome"]) for one in found["checks"]]


def change(file: Path, out: Path, work: Path, **attributes: Any) -> Path:
    """The same package with other attributes of its variants."""
    functions = [
        dataclasses.replace(one, variants=[dataclasses.replace(variant, **attributes) for variant in one.variants])
        for one in package_reader.read(file, work)
    ]
    package_writer.write(out, functions)
    return out


def numpy_file(file: Path, tensor: torch.Tensor) -> Path:
    numpy.save(file, tensor.numpy())
    return file
