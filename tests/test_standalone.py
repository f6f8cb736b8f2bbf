"""Models as programs without libtorch: right, alone, and with the messages of the libtorch runtime."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from errors.test_cpp_mistakes import GOLDEN
from sanitizers import SETTINGS, fix_addresses
from standalone_models import Call, calls, export, read_results, write_calls

from torchcc import calling
from torchcc.errors import ArgumentError, CompileError
from torchcc.standalone import isa_of

HERE = Path(__file__).resolve().parent / "standalone"


@pytest.fixture(scope="module")
def release(standalone_build: Callable[..., Path]) -> Path:
    return standalone_build("release", ("app", "app_static", "single_convolutions", "mistakes"))


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run([str(one) for one in command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def portable(folder: Path, made: Sequence[Call]) -> list[torch.Tensor]:
    """What the portable engine of the libtorch runtime gives."""
    results: dict[tuple[str, str], list[list[torch.Tensor]]] = {}
    for package, function, _ in made:
        given = [tensors for one, other, tensors in made if (one, other) == (package, function)]
        if (package, function) not in results:
            results[package, function], _ = calling.call_cpp(folder / f"{package}.pt2", function, given, portable=True)
    return [tensor for package, function, _ in made for tensor in results[package, function].pop(0)]


def check_calls(
    program: Sequence[str | Path], made: Sequence[Call], expected: Sequence[torch.Tensor], work: Path, *others: Path
) -> str:
    """Makes calls in a program, and compares; gives what it prints."""
    write_calls(work / "calls", made)
    printed = run(*program, work / "calls", work / "results", *others)
    for got, wanted in zip(read_results(work / "results", expected), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    return printed


@pytest.fixture(scope="module")
def expected(standalone: Path, libraries: Path) -> list[torch.Tensor]:
    return portable(standalone, calls(["classifier", "zoo"]))


@pytest.mark.parametrize("name", ["app", "app_static"])
def test_two_models_in_a_program_without_libtorch(
    release: Path, standalone: Path, expected: list[torch.Tensor], tmp_path: Path, name: str
) -> None:
    """The classifier, MiniLM, an LSTM and a GPT's steps give what the portable engine gives, at several sizes."""
    weights = standalone / "zoo.standalone" / "zoo.weights"
    made = calls(["classifier", "zoo"])
    printed = check_calls([release / name], made, expected, tmp_path, weights).splitlines()
    assert printed[0] == "zoo: it is used before its weights were given"
    assert "allocations 0" in printed
    assert "threads agree" in printed
    assert printed[-2:] == ["forward(images: uint8[n, 8, 8]) -> float32[n, 10] with 1 <= n", "compiled"]


def test_convolutions(release: Path, standalone: Path, libraries: Path, tmp_path: Path) -> None:
    """A CNN, with oneDNN; nothing is left of its batch norm. And products of any sizes."""
    made = calls(["convolutions"])
    check_calls([release / "single_convolutions"], made, portable(standalone, made), tmp_path)
    source = (standalone / "convolutions.standalone/convolutions.cpp").read_text()
    assert "aoti_torch_cpu_mm_out" in source and "aoti_torch_cpu_addmm_out" in source
    assert "aoti_torch_cpu_convolution" in source and "running_var" not in source and "rsqrt" not in source


def test_sources_are_compared_before_anybody_gets_them(standalone: Path) -> None:
    checks = json.loads((standalone / "checks.json").read_text())
    zoo = ("zoo: embed", "zoo: predict", "zoo: decode")
    names = ("classifier: forward", *zoo, "convolutions: forward", "convolutions: relate", "scalar: forward")
    assert set(checks) == {f"{name}, standalone" for name in names}
    assert all(re.match(r"\d sets of sizes$", one) for one in checks.values())


def needed(program: Path) -> list[str]:
    return [line.split()[0] for line in run(shutil.which("ldd") or "ldd", program).splitlines()]


def test_needs_no_libraries_but_those_of_the_languages(release: Path) -> None:
    known = ("linux-vdso", "libstdc++", "libm.", "libmvec", "libgcc_s", "libc.", "/lib64/ld-")
    found = needed(release / "app")
    assert found and all(one.startswith(known) for one in found), found
    onednn = [one for one in needed(release / "single_convolutions") if not one.startswith(known)]
    assert onednn and all(one.startswith(("libdnnl", "libgomp", "libdl.", "libpthread.")) for one in onednn), onednn
    for program in ("app", "app_static"):
        headers = run(shutil.which("readelf") or "readelf", "-lW", release / program)
        (stack,) = [line for line in headers.splitlines() if "GNU_STACK" in line]
        assert "RWE" not in stack and " RW " in stack


def entries(text: str) -> dict[str, str]:
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip() for part in text.strip().split("## ") if part}


def test_messages_of_the_libtorch_runtime(release: Path) -> None:
    printed, own = run(release / "mistakes").split("# of these tensors\n\n")
    got, expected = entries(printed), entries(GOLDEN.read_text())
    assert len(got) == 37
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
@pytest.mark.parametrize(("preset", "flag"), [("asan-ubsan", "address,undefined"), ("tsan", "thread")])
def test_sanitizers(
    standalone: Path,
    standalone_build: Callable[..., Path],
    release: Path,
    expected: list[torch.Tensor],
    tmp_path: Path,
    preset: str,
    flag: str,
) -> None:
    fix_addresses()
    flags = f"-O1 -g1 -fno-omit-frame-pointer -fsanitize={flag} -fno-sanitize-recover=all"
    # The regions need not be generated again.
    shutil.copytree(standalone, tmp_path / "models", ignore=shutil.ignore_patterns("*.pt2"))
    shutil.copytree(release / "regions.torchcc", tmp_path / "models", dirs_exist_ok=True)
    for file in (tmp_path / "models").rglob("*.flags"):  # sanitizers and optimisation take minutes together
        file.write_text(file.read_text().replace("-O3", "-O1"))
    build = standalone_build(preset, ("app", "mistakes"), tmp_path / "models", CMAKE_CXX_FLAGS=flags)
    command = ["env", *(f"{key}={value}" for key, value in SETTINGS[preset].items())]
    weights = tmp_path / "models/zoo.standalone/zoo.weights"
    printed = check_calls([*command, build / "app"], calls(["classifier", "zoo"]), expected, tmp_path, weights)
    assert "threads agree" in printed
    assert "blend -4 -16" in run(*command, build / "mistakes")


def test_any_machine(standalone: Path, standalone_build: Callable[..., Path], libraries: Path, tmp_path: Path) -> None:
    """Sources without vectors of their own; and conditions on sizes, which the program checks."""
    models = standalone / "scalar"
    assert [file.name for file in models.iterdir()] == ["classifier.standalone"]  # no package for sources alone
    assert (models / "classifier.standalone/classifier.flags").read_text().startswith("-march=armv8-a ")
    program = (
        standalone_build("scalar", ["single_classifier"], models, TORCHCC_TEST_MARCH="x86-64") / "single_classifier"
    )
    made = calls(["classifier"])
    check_calls([program], made, portable(standalone, made), tmp_path)
    write_calls(tmp_path / "calls", [("classifier", "forward", (torch.zeros(3, 8, 8, dtype=torch.uint8),))])
    refused = subprocess.run(
        [program, tmp_path / "calls", tmp_path / "results"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert refused.stderr == (
        "forward: the code is not for these sizes\n"
        "  signature: forward(images: uint8[n, 8, 8]) -> float32[n, 10] with 1 <= n, n != 3\n"
        "  expected:  n != 3\n"
        "  got:       n = 3\n"
        "  fix:       pass sizes for which this holds, or export the function with sizes like these\n"
    )


def test_another_machine(
    standalone: Path, standalone_build: Callable[..., Path], libraries: Path, tmp_path: Path
) -> None:
    """The same sources are built for 64-bit ARM, with a toolchain file, and run in an emulator."""
    tools = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64-static": "qemu-user-static"}
    missing = [package for tool, package in tools.items() if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"it needs the Debian packages {' and '.join(missing)}, which .ci/run installs")
    options = {"CMAKE_TOOLCHAIN_FILE": HERE / "aarch64.cmake", "CMAKE_EXE_LINKER_FLAGS": "-static"}
    program = standalone_build("aarch64", ["single_classifier"], standalone / "scalar", **options) / "single_classifier"
    assert "AArch64" in run(shutil.which("readelf") or "readelf", "-h", program)
    made = calls(["classifier"])
    check_calls([shutil.which("qemu-aarch64-static") or "", program], made, portable(standalone, made), tmp_path)


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
    with pytest.raises(ArgumentError, match=r"(?s)simdlen cannot be 128.*expected: +one of: 0, 256, 512"):
        isa_of(128)
    command = [sys.executable, "-m", "torchcc", "export", "x.py:build", "-o", "x.pt2", "--simdlen", "0"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "--simdlen 0: there are no sources" in ran.stderr and "write --target standalone" in ran.stderr
