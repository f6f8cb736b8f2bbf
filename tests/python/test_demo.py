"""`torchcc demo` as a user runs it. One build is shared; what it says about speed is not judged here."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from torchcc import demo, demo_report, errors, loss_plot

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ran:
    """A finished `torchcc demo`."""

    status: int
    output: str
    errors: str
    cases: dict[str, dict]
    cache: Path
    plot: Path

    @property
    def program(self) -> Path:
        return Path(next(line for line in self.output.splitlines() if line.startswith("program  ")).split()[1])


def run_demo(cache: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torchcc", "demo", *arguments]
    variables = {**os.environ, "TORCHCC_CACHE": str(cache), **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def ran(cache: Path, file: Path) -> Ran:
    plot = file.with_suffix(".png")
    done = run_demo(cache, "--json", str(file), "--plot", str(plot))
    assert file.is_file(), done.stdout + done.stderr
    cases = {case["case"]: case for case in json.loads(file.read_text())["cases"]}
    return Ran(done.returncode, done.stdout, done.stderr, cases, cache, plot)


def own_cache(folder: Path, libraries: Path) -> Path:
    """A cache of its own but for torchcc's libraries, which take longest to build and other tests need too."""
    cache = folder / "cache"
    cache.mkdir()
    (cache / libraries.parent.name).symlink_to(libraries.parent.absolute())
    return cache


@pytest.fixture(scope="session")
def first(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("demo")
    return ran(own_cache(folder, libraries), folder / "first.json")


def test_data_are_scikit_learns() -> None:
    exported = runpy.run_path(str(ROOT / "tools" / "export_digits.py"))
    stored = np.fromfile(exported["FILE"], np.uint8)
    assert stored.size == 116_805
    assert np.array_equal(stored.reshape(1797, 65), exported["records"]())


def test_first_run_builds_and_is_right(first: Ran) -> None:
    assert "program built in" in first.output
    assert first.errors == ""
    for case in ("accuracy on held-out images", "largest difference of a logit from eager"):
        assert first.cases[case]["holds"], first.output
        assert first.cases["C++ network: " + case]["holds"], first.output
    for case in ("calls that ran compiled code", "compiled calls at a second start, no compiler"):
        assert first.cases["C++ network: " + case]["value"] > 2000, first.output
    assert first.cases["Python libraries in the process"] == {
        "case": "Python libraries in the process",
        "value": 0,
        "limit": 0,
        "unit": "files",
        "holds": True,
    }


def test_training_in_cpp_is_right(first: Ran) -> None:
    cases = {name.removeprefix("C++ training: "): case for name, case in first.cases.items() if "training: " in name}
    for case in ("accuracy on held-out images", "accuracy, trained eagerly"):
        assert (cases[case]["limit"], cases[case]["holds"]) == (0.96, True), first.output
    # 126 steps of about 108 operators; the first three run one by one, and are recorded.
    for case in ("operators that ran in compiled code", "the same at a second start, no compiler"):
        assert cases[case]["value"] > 10_000, first.output
    for case in ("largest difference of a step's loss from eager", "Python libraries in the process"):
        assert cases[case]["limit"] is not None
        assert cases[case]["holds"], first.output
    # Ten classes, at first all alike; then it learns.
    assert cases["loss of the first step"]["value"] == pytest.approx(np.log(10), abs=0.3)
    assert cases["loss of the last step"]["value"] < 0.3
    seconds = [cases[f"an epoch: {side}"]["value"] for side in ("compiled", "eager LibTorch")]
    assert cases["an epoch: compiled / eager"]["value"] == pytest.approx(seconds[0] / seconds[1])
    steps = [line for line in first.output.splitlines() if line.startswith("loss  ")]
    assert len(steps) == 7, first.output
    assert re.search(r"^ran +\d+ operators in compiled code, \d+ beside it one by one; \d+ steps", first.output, re.M)


def test_both_losses_are_drawn(first: Ran) -> None:
    pixels = matplotlib.image.imread(first.plot)
    assert pixels.shape[:2] == (675, 1200)
    # Two curves, in the first two colours of matplotlib's cycle, from the left to the right.
    for colour in ("#1f77b4", "#ff7f0e"):
        wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        _, columns = np.nonzero(np.abs(pixels[..., :3] - wanted).max(axis=2) < 0.02)
        assert columns.min() < 200
        assert columns.max() > 1100


def test_without_matplotlib_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(errors.Error, match=r"(?s)x\.png.*expected: +matplotlib.*pip install 'torchcc\[plot\]'"):
        loss_plot.require(tmp_path / "x.png")


def test_a_picture_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    done = run_demo(tmp_path, "--plot", str(tmp_path / "nowhere" / "x.png"))
    assert done.returncode == 1
    assert f"no folder {tmp_path / 'nowhere'}" in done.stderr
    assert list(tmp_path.iterdir()) == []  # nothing was built
    with pytest.raises(errors.ArgumentError, match="a folder"):
        loss_plot.require(tmp_path)
    with pytest.raises(errors.ArgumentError, match=r"cannot be written[\s\S]*nowhere"):
        loss_plot.draw(tmp_path / "nowhere" / "x.png", {"eager": [1.0, 2.0]})


def test_compares_with_eager_and_ends_with_a_status(first: Ran) -> None:
    for batch in ("1", "450"):
        compiled, eager, ratio = (
            first.cases[f"batch of {batch}: {what}"]
            for what in ("compiled, one call", "eager LibTorch, one call", "compiled / eager")
        )
        assert compiled["unit"] == eager["unit"] == "us"
        assert ratio["value"] == pytest.approx(compiled["value"] / eager["value"])
        assert ratio["limit"] is None
    assert first.status == (0 if all(case["holds"] for case in first.cases.values()) else 1)


def test_second_run_reuses_the_build(first: Ran, tmp_path: Path) -> None:
    built = first.program.stat().st_mtime_ns
    second = ran(first.cache, tmp_path / "second.json")
    assert "program reused from an earlier run" in second.output
    assert second.program == first.program
    assert second.program.stat().st_mtime_ns == built
    assert second.cases["accuracy on held-out images"] == first.cases["accuracy on held-out images"]


def test_program_names_a_file_that_it_cannot_read(first: Ran) -> None:
    done = subprocess.run(
        [first.program, "/nonexistent", "/nonexistent"], env={}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "/nonexistent: cannot be read\n"


def test_a_failing_program_is_an_error_with_its_log(tmp_path: Path) -> None:
    broken = tmp_path / "digits"
    broken.write_text("#!/bin/sh\necho it broke >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(errors.Error, match=r"(?s)failed.*3\n.*it broke.*digits\.log") as raised:
        demo._run(broken, [], frozenset(), {})
    assert "torchcc doctor" in str(raised.value)
    assert "it broke" in (tmp_path / "digits.log").read_text()


def test_a_broken_build_is_an_error_with_its_log(
    libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.18)\nproject(digits CXX)\nnonsense()\n")
    monkeypatch.setattr(demo, "_PROJECT", project)
    monkeypatch.setenv("TORCHCC_CACHE", str(own_cache(tmp_path, libraries)))
    with pytest.raises(errors.CompileError, match=r'(?s)Unknown CMake command "nonsense".*build\.log'):
        demo.run()


FACTS = {
    "target": "cpu-x86_64-avx2",
    **{"threads": "1", "held_out": "450", "accuracy": "0.99", "logit_difference": "1e-6", "python_files": "0"},
    **{"compiled_1_us": "10", "eager_1_us": "20", "compiled_all_us": "200", "eager_all_us": "400", "load_us": "2000"},
    **{"training_us": "2e6", "variants": "2", "replayed": "2000", "compile_seconds": "40", "reason": "none"},
}


TRAINING = {
    **{"threads": "1", "epochs": "2", "accuracy": "0.99", "eager_accuracy": "0.98", "python_files": "0"},
    **{"eager_losses": "2.3 1.2 0.6 0.3", "compiled_losses": "2.3 1.2 0.6 0.301", "compile_seconds": "40"},
    **{"eager_epoch_s": "0.4", "compiled_epoch_s": "0.2", "reason": "none"},
    **{"compiled_ops": "900", "eager_ops": "9", "eager_steps": "2"},
}


def report_of(
    region: dict[str, str], network: dict[str, str], again: dict[str, str], training: dict[str, str] = TRAINING
) -> demo_report.Report:
    return demo_report.Report(
        (
            demo_report.Part("region", demo_report.region_cases(region), region, Path("digits")),
            demo_report.Part("network", demo_report.network_cases(network, again), network, Path("convolutional")),
            demo_report.Part(
                "training",
                demo_report.training_cases(training, training),
                training,
                Path("training"),
                demo_report.training_notes(training),
            ),
        ),
        None,
    )


def test_the_cases_of_a_good_run_hold() -> None:
    assert report_of(FACTS, FACTS, FACTS).holds


@pytest.mark.parametrize(
    ("fact", "value", "case"),
    [
        ("accuracy", "0.95", "accuracy on held-out images"),
        ("logit_difference", "nan", "largest difference of a logit from eager"),
        ("python_files", "1", "Python libraries in the process"),
    ],
)
@pytest.mark.parametrize("part", [0, 1])
def test_a_case_beyond_its_limit_does_not_hold(
    part: int, fact: str, value: str, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {**FACTS, fact: value}
    report = report_of(bad, FACTS, FACTS) if part == 0 else report_of(FACTS, bad, FACTS)
    assert [one.case for one in report.cases if not one.holds] == [("C++ network: " if part else "") + case]
    assert not report.holds
    demo_report.show(report)
    assert "DOES NOT HOLD" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fact", "value", "case"),
    [
        ("accuracy", "0.95", "accuracy on held-out images"),
        ("eager_accuracy", "0.95", "accuracy, trained eagerly"),
        ("compiled_losses", "2.3 1.3 0.6 0.3", "largest difference of a step's loss from eager"),
        ("compiled_losses", "2.3 nan 0.6 0.3", "largest difference of a step's loss from eager"),
        ("python_files", "1", "Python libraries in the process"),
    ],
)
def test_a_training_beyond_its_limits_does_not_hold(fact: str, value: str, case: str) -> None:
    report = report_of(FACTS, FACTS, FACTS, {**TRAINING, fact: value})
    assert [one.case for one in report.cases if not one.holds] == [f"C++ training: {case}"]


def test_a_training_that_ran_no_compiled_code_does_not_hold() -> None:
    report = report_of(FACTS, FACTS, FACTS, {**TRAINING, "compiled_ops": "0"})
    assert [one.case for one in report.cases if not one.holds] == [
        "C++ training: operators that ran in compiled code",
        "C++ training: the same at a second start, no compiler",
    ]


def test_losses_along_the_way_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    demo_report.show(report_of(FACTS, FACTS, FACTS, TRAINING))
    printed = capsys.readouterr().out
    assert "step 1: eager 2.30000, compiled 2.30000\n" in printed
    assert "step 2: eager 1.20000, compiled 1.20000\n" in printed
    assert "step 4: eager 0.30000, compiled 0.30100\n" in printed
    assert "900 operators in compiled code" in printed
    demo_report.show(report_of(FACTS, FACTS, FACTS, {**TRAINING, "compiled_ops": "0", "reason": "no such compiler"}))
    assert "no such compiler" in capsys.readouterr().out


def test_a_program_that_never_ran_compiled_code_does_not_hold() -> None:
    eager = {**FACTS, "replayed": "0"}
    assert not report_of(FACTS, eager, FACTS).holds
    assert not report_of(FACTS, FACTS, eager).holds


def test_without_a_compiler_it_says_how_to_get_one(tmp_path: Path) -> None:
    done = run_demo(tmp_path, CXX="/nonexistent/c++")
    assert done.returncode == 1
    assert "CompileError: C++ compiler: /nonexistent/c++ was not found" in done.stderr
    assert "apt-get install g++" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_demo(tmp_path / "file")
    assert done.returncode == 1
    assert "set TORCHCC_CACHE to a folder that you can write to" in done.stderr
    assert "Traceback" not in done.stderr
