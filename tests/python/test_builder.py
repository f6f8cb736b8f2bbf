"""One real build from Python, and what it leaves behind."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

import torchcc
from torchcc import capture, verify, workers
from torchcc.builder import Built

SOURCE = '''
import torch
import torchcc
from constants import OFFSET
from jaxtyping import Float32
from torch import Tensor


class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 4)
        self.factor = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Float32[Tensor, "n 8"]) -> Float32[Tensor, "n 4"]:
        """Scales."""
        return self.linear(x) * self.factor


torch.manual_seed(0)
scale = torchcc.region(Scale().eval(), out=False)


@torchcc.region(out=False, ranges={"n": (1, 64)})
def shifted(x: Float32[Tensor, "n 2*m"], y: Float32[Tensor, "m"], alpha: float, power: int):
    """Shifts."""
    return x + OFFSET, alpha * torch.cat([y, y]) ** power
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("build")
    (path / "kernels.py").write_text(SOURCE)
    (path / "constants.py").write_text("OFFSET = 0.5\n")
    return path


@pytest.fixture(scope="module")
def built(folder: Path) -> Built:
    out = folder / "out"
    return torchcc.build([folder / "kernels.py"], out, params={"power": 2}, depfile=out / "kernels.d")


def test_leaves_only_what_it_names(built: Built) -> None:
    names = sorted(file.name for file in built.package.parent.iterdir())
    assert names == ["kernels.cpp", "kernels.d", "kernels.h", "kernels.pt2"]
    assert set(built.checks) == {"scale", "shifted"}
    assert "std::tuple<at::Tensor, at::Tensor> shifted(const at::Tensor& x, const at::Tensor& y, double alpha);" in (
        built.header.read_text()
    )


def test_depfile_lists_imports(built: Built, folder: Path) -> None:
    text = (built.package.parent / "kernels.d").read_text()
    assert str(folder / "constants.py") in text
    assert str(folder / "kernels.py") in text
    assert "site-packages" not in text


def test_pytorch_reads_it(built: Built) -> None:
    """``torch.export.load`` and ``aoti_load_package`` take the first function, with the weights' own names."""
    program = torch.export.load(built.package)
    compiled = torch._inductor.aoti_load_package(str(built.package))
    assert set(program.state_dict) == {"factor", "linear.weight", "linear.bias"}
    x = torch.randn(6, 8)
    expected = torch.nn.functional.linear(x, *(program.state_dict[f"linear.{name}"] for name in ("weight", "bias"))) * 3
    torch.testing.assert_close(program.module()(x), expected)
    torch.testing.assert_close(compiled(x), expected.detach())


def test_manifest(built: Built) -> None:
    with zipfile.ZipFile(built.package) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        manifest = json.loads(archive.read("kernels/extra/torchcc.json"))
        names = {name.partition("/")[2] for name in archive.namelist()}
        assert b"/tmp" not in archive.read("kernels/extra/torchcc.json")
    assert manifest["format_version"] == 2
    assert set(manifest["records"]) == {name for name in names if name.startswith(("data/", "models/"))}
    signatures = [function["signature"] for function in manifest["functions"]]
    assert [signature["name"] for signature in signatures] == ["scale", "shifted"]
    assert signatures[1]["symbols"] == [
        {"name": "n", "min": 1, "max": 64},
        {"name": "m", "min": 0, "max": None},
    ]
    assert signatures[1]["outputs"][1]["sizes"] == [{"text": "2*m", "value": ["*", 2, "m"]}]


def test_a_failed_build_changes_nothing(built: Built, folder: Path) -> None:
    before = {file: file.read_bytes() for file in built.package.parent.iterdir()}
    broken = folder / "broken.py"
    broken.write_text(SOURCE.replace("x + OFFSET", "x.nonzero() if x.sum() > 0 else x"))
    with pytest.raises(torchcc.CaptureError, match="torch.export cannot capture it"):
        torchcc.build([broken], built.package.parent, name="kernels", params={"power": 2})
    assert before == {file: file.read_bytes() for file in built.package.parent.iterdir()}


def test_verify_refuses_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that is a little wrong, at one size only, is not shipped."""

    def double(x):  # type: ignore[no-untyped-def]
        return 2 * x

    region = torchcc.region(double, inputs={"x": torchcc_float()})
    captured = capture.capture(region, "double", {})

    def run(library: str, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        (x,) = tensors
        return [2 * x + 0.01 * (x.shape[0] == 17)]

    monkeypatch.setattr(verify._torch, "run_library", run)
    with pytest.raises(torchcc.CompileError, match="with n = 17") as error:
        verify.verify(captured, "unused", None)
    assert "largest difference 0.01" in str(error.value)


def torchcc_float() -> object:
    from jaxtyping import Float32

    return Float32[torch.Tensor, "n"]


def job(folder: Path, **changes: object) -> workers.Job:
    given = {
        "title": "region x",
        "program": str(folder / "missing.pt2"),
        "into_outputs": False,
        "options": {},
        "imports": (),
        "log": str(folder / "x.log"),
    }
    return workers.Job(**{**given, **changes})  # type: ignore[arg-type]


def test_compiler_failure_names_the_log(tmp_path: Path) -> None:
    with pytest.raises(torchcc.CompileError) as error:
        workers.compile_all([job(tmp_path)], lambda job, result: None)
    assert str(tmp_path / "x.log") in str(error.value)
    assert "missing.pt2" in str(error.value)
    assert "Traceback" in (tmp_path / "x.log").read_text()


def test_compiler_that_is_killed(tmp_path: Path) -> None:
    """A compiler process that dies (out of memory, say) is an error with its status, not a hang."""
    (tmp_path / "dies.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(torchcc.CompileError, match="ended with status -9"):
        workers.compile_all([job(tmp_path, imports=(str(tmp_path / "dies.py"),))], lambda job, result: None)
