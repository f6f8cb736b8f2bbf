"""Models as programs without libtorch: right, alone, and with the messages of the libtorch runtime."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from errors.test_cpp_mistakes import GOLDEN
from sanitizers import SETTINGS

import torchcc
from torchcc import native, paths, toolchain
from torchcc.errors import ArgumentError, CompileError

HERE = Path(__file__).resolve().parent / "standalone"


def _models() -> Any:
    spec = importlib.util.spec_from_file_location("standalone_models", HERE / "models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODELS = _models()


def export(folder: Path, name: str, **options: Any) -> Any:
    given = getattr(MODELS, name)()
    return torchcc.export(folder / f"{name}.pt2", **given, **{"targets": ["standalone"], **options})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    exported = export(folder, "classifier")
    # The sources are compared with the graph before anybody gets them, at several sizes.
    assert re.match(r"\d sets of sizes$", exported.checks["forward, standalone"])
    assert not exported.package.exists()
    export(folder, "cache", weights="file")
    return folder


def build(models: Path, folder: Path, targets: Sequence[str], *definitions: str) -> Path:
    command = [
        *(native.cmake(), "-S", HERE, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={native.ninja()}"),
        *(f"-DCMAKE_CXX_COMPILER={shutil.which(toolchain.cxx())}", f"-DCMAKE_PREFIX_PATH={paths.cmake_dir()}"),
        *(f"-DTORCHCC_PYTHON={sys.executable}", f"-DTORCHCC_TEST_MODELS={models}"),
        *("-DTORCHCC_WARNINGS_AS_ERRORS=ON", *definitions),
    ]
    for one in (command, [native.cmake(), "--build", folder, "--target", *targets]):
        done = subprocess.run([str(part) for part in one], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.fail(f"{one}\n{done.stdout[-8000:]}{done.stderr[-8000:]}", pytrace=False)
    return folder


@pytest.fixture(scope="module")
def release(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    targets = ("app", "app_static", "mistakes")
    return build(models, tmp_path_factory.mktemp("release"), targets, "-DCMAKE_BUILD_TYPE=Release")


def run(program: Path, *arguments: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(one) for one in (program, *arguments)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def check_app(program: Path, models: Path, work: Path, **environment: str) -> list[str]:
    """Runs both models in C++, and compares with eager PyTorch; gives what the program prints."""
    classifier, cache = MODELS.classifier()["module"], MODELS.cache()["module"]
    images = torch.randint(0, 17, (7, 8, 8), dtype=torch.uint8)
    tokens = torch.randn(5, 1, 32)
    for name, tensor in (("images", images), ("tokens", tokens)):
        (work / name).write_bytes(tensor.numpy().tobytes())
    (work / "logits").unlink(missing_ok=True)
    (work / "steps").unlink(missing_ok=True)
    weights = models / "cache.standalone" / "cache.weights"
    printed = run(program, *(work / one for one in ("images", "logits", "tokens", "steps")), weights, **environment)
    with torch.no_grad():
        logits = classifier(images)
        steps = torch.stack([cache(token, torch.tensor([step])) for step, token in enumerate(tokens)])
    for name, expected in (("logits", logits), ("steps", steps)):
        got = torch.frombuffer(bytearray((work / name).read_bytes()), dtype=torch.float32).view(expected.shape)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    return printed.splitlines()


@pytest.mark.parametrize("program", ["app", "app_static"])
def test_two_models_in_a_program_without_libtorch(release: Path, models: Path, tmp_path: Path, program: str) -> None:
    printed = check_app(release / program, models, tmp_path)
    assert printed[0] == "cache: it is used before its weights were given"
    assert "allocations 0" in printed
    assert "threads agree" in printed
    assert printed[-2:] == ["forward(images: uint8[n, 8, 8]) -> float32[n, 10] with 1 <= n", "compiled"]


def test_needs_no_libraries_but_those_of_the_languages(release: Path) -> None:
    needed = [line.split()[0] for line in run(Path(shutil.which("ldd") or "ldd"), release / "app").splitlines()]
    known = ("linux-vdso", "libstdc++", "libm.", "libmvec", "libgcc_s", "libc.", "/lib64/ld-")
    assert needed and all(one.startswith(known) for one in needed), needed
    for program in ("app", "app_static"):
        headers = run(Path(shutil.which("readelf") or "readelf"), "-lW", release / program)
        (stack,) = [line for line in headers.splitlines() if "GNU_STACK" in line]
        assert "RWE" not in stack and " RW " in stack


def entries(text: str) -> dict[str, str]:
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip() for part in text.strip().split("## ") if part}


def test_messages_of_the_libtorch_runtime(release: Path) -> None:
    printed, own = run(release / "mistakes").split("# of these tensors\n\n")
    got, expected = entries(printed), entries(GOLDEN.read_text())
    assert len(got) == 31
    for title, text in got.items():
        text = re.sub(r"torchcc::(k[A-Z]|empty)", r"at::\1", text)
        assert re.sub(r"reason: .*", "reason: ...", text) == expected[title], title
    *mistakes, results = own.strip().split("\n\n")
    for text in mistakes:
        assert re.match(r"## .*\nArgumentError: .*\n(  signature: .*\n)?  expected: .*\n  got: .*\n  fix: .*", text), (
            text
        )
    assert results == "blend -4 -16 accumulate 3 1 0"


@pytest.mark.slow
def test_sanitizers(models: Path, tmp_path: Path) -> None:
    flags = "-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
    folder = build(models, tmp_path / "asan", ("app", "mistakes"), f"-DCMAKE_CXX_FLAGS={flags}")
    check_app(folder / "app", models, tmp_path, **SETTINGS["asan-ubsan"])
    assert "blend -4 -16" in run(folder / "mistakes", **SETTINGS["asan-ubsan"])


def test_operators_of_libtorch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CompileError,
        match=r"(?s)cannot have all.*got: +aten\.convolution.*fix: +ship it with libtorch.*a library: onednn",
    ):
        export(tmp_path, "convolutions")
    assert not list(tmp_path.iterdir())


def test_one_instruction_set(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="one standalone target"):
        export(tmp_path, "classifier", targets=["standalone", "standalone-avx2"])
    with pytest.raises(ArgumentError, match="weights cannot be 'here'"):
        export(tmp_path, "classifier", weights="here")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convolutions", "encoder", "recurrent"])
@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")  # torch.export, of an LSTM
def test_other_models(name: str, tmp_path: Path) -> None:
    exported = export(tmp_path, name, libraries=["onednn"])
    assert "sets of sizes" in exported.checks["forward, standalone"]
