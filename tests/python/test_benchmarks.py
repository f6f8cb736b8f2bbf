"""The benchmarks run and write what they should. Times are not looked at: they are the benchmarks' own business."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchcc import CompileError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import capture, contest, footprint, harness, training  # noqa: E402

CALLS = [
    "torchcc, typed function",
    "torchcc::Function",
    "torchcc, typed function into a given output",
    "AOTIModelPackageLoader::run, unchecked",
    "AOTInductorModelContainerRun, unchecked",
    "AOTInductorModelContainerRunSingleThreaded, unchecked",
    "eager LibTorch",
    "Python, torch.compile",
    "Python, aoti_load_package",
]

PROMISED = {
    "torchcc's typed function over AOTIModelPackageLoader::run": 0.8,
    "torchcc's typed function over AOTInductorModelContainerRun": 1.3,
    "throughput of 2 threads over 1, at least": 1.7,
    "wrong results in 8 x 10,000 calls from 8 threads": 0,
}


def run(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_names_are_listed() -> None:
    on_gpus = ["cuda-mlp", "cuda-decode", "cuda-encoder", "cuda-training"]
    names = ["call_overhead", "packages", "capture", "lazy", "sizes", "footprint", "training", *on_gpus]
    assert [line.split()[0] for line in run().splitlines()] == names


def test_an_unknown_name_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks", "nothing"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "call_overhead" in ran.stderr


@pytest.mark.slow
def test_call_overhead(libraries: Path, tmp_path: Path) -> None:
    file = tmp_path / "cases.json"
    table = run("call_overhead", "--quick", "--json", file)
    cases = {case["case"]: case for case in json.loads(file.read_text())["cases"]}
    for case in cases.values():
        assert set(case) == {"case", "value", "limit", "unit", "holds"}
        assert case["case"] in table
        assert case["holds"] or case["limit"] is not None
    assert [name.removeprefix("call: ") for name in cases if name.startswith("call: ")] == CALLS
    assert all(cases[f"call: {name}"]["unit"] == "ns" and cases[f"call: {name}"]["value"] > 0 for name in CALLS)
    assert [name for name in cases if name.startswith("threads: ")] == [
        "threads: a call on one thread",
        *(f"threads: throughput of {count}" for count in (1, 2, 4, 8)),
    ]
    promised = {name: case["limit"] for name, case in cases.items() if case["limit"] is not None}
    two_cores = len(os.sched_getaffinity(0)) >= 2
    assert promised == {name: limit for name, limit in PROMISED.items() if two_cores or "threads over" not in name}
    assert cases["wrong results in 8 x 10,000 calls from 8 threads"]["value"] == 0


# Answers like a contender's program: each call takes as many nanoseconds as the program's last argument says.
FAKE = """
import json, sys
eager, difference, peak, nanoseconds = sys.argv[1:]
print("what ran", file=sys.stderr, flush=True)
state = {"difference": float(difference), "eager": eager, **({"peak": int(peak)} if peak else {})}
print(json.dumps(state), flush=True)
for line in sys.stdin:
    print(nanoseconds, flush=True)
"""


def fake(
    nanoseconds: int, name: str, difference: float = 0, eager: str = "", peak: int | None = None
) -> tuple[list[str], str]:
    memory = "" if peak is None else str(peak)
    return [sys.executable, "-c", FAKE, eager, str(difference), memory, str(nanoseconds)], name


def fakes(nanoseconds: int, *names: str) -> list[tuple[list[str], str]]:
    return [fake(nanoseconds, name) for name in names]


def test_cases_of_a_model(tmp_path: Path) -> None:
    samples = contest.Samples(missing={"onnx": "no onnxruntime"})
    programs = [
        fake(1000, "compiled"),
        fake(1010, "twin"),
        fake(1000, "aoti"),
        fake(2010, "eager"),
        *fakes(4020, "compile", "script"),
    ]
    for _ in range(2):
        contest.measure(samples, programs, 3, {})
    assert samples.stats == "what ran\n"
    assert [len(session["eager"]) for session in samples.sessions] == [3, 3]
    file = tmp_path / "cases.json"
    harness.write_json(harness.Report(capture.model_cases("model", samples)), file)
    written = json.loads(file.read_text())
    cases = {case["case"].removeprefix("model: "): case for case in written["cases"]}
    assert all(set(case) == {"case", "value", "limit", "unit", "holds"} for case in cases.values())
    assert cases["noise"]["value"] == pytest.approx(0.0099, abs=1e-4)
    best = cases["compiled C++ over the better of AOTInductor from C++ and torch.compile in Python, ties within noise"]
    assert best["value"] == pytest.approx(1005 / 1000)
    assert (best["limit"], best["holds"]) == (1.0, True)  # by less than the noise
    eager = cases["compiled C++ over eager C++, ties within noise"]
    assert (eager["value"], eager["limit"], eager["holds"]) == (0.5, 1.0, True)
    assert cases["compiled C++ over TorchScript from C++"]["value"] == 0.25
    missing = cases["compiled C++ over ONNX Runtime in Python"]
    assert (missing["value"], missing["holds"]) == (None, None)


def test_eager_has_a_twin() -> None:
    samples = contest.Samples(missing={"onnx": "no onnxruntime"})
    programs = [*fakes(1000, "compiled", "twin", "aoti", "compile", "script"), *fakes(980, "eager")]
    for _ in range(2):
        contest.measure(samples, [*programs, fake(940, "eager twin")], 2, {})
    assert samples.ratios("eager") == pytest.approx([1000 / 960] * 2)
    assert samples.noise() == pytest.approx(980 / 940 - 1)


def test_more_than_noise_does_not_hold() -> None:
    samples = contest.Samples(missing={"onnx": "no onnxruntime"})
    programs = [fake(1000, "compiled"), fake(1010, "twin"), *fakes(900, "aoti", "eager", "compile", "script")]
    contest.measure(samples, programs, 2, {})
    cases = [case for case in capture.model_cases("model", samples) if case.limit is not None]
    assert [case.holds for case in cases] == [True, False, False]


def test_a_ratio_is_no_surer_than_its_sessions() -> None:
    samples = contest.Samples(missing={"onnx": "no onnxruntime"})
    for nanoseconds in (1030, 1020, 980):
        programs = [*fakes(nanoseconds, "compiled", "twin"), *fakes(1000, "aoti", "eager", "compile", "script")]
        contest.measure(samples, programs, 2, {})
    cases = [case for case in capture.model_cases("model", samples) if case.limit is not None]
    assert [(case.value, case.holds) for case in cases[1:]] == [(1.02, True), (1.02, True)]
    assert cases[1].noise == pytest.approx(0.04)


def test_disturbed_times_are_left_out() -> None:
    quiet = [100.0, 102.0, 101.0, 103.0, 110.0, 99.0, 100.0, 124.0, 100.0, 105.0]
    assert contest.undisturbed(quiet) == quiet
    assert contest.undisturbed([300.0, *quiet, 126.0, 200.0]) == quiet
    assert contest.undisturbed([5.0]) == [5.0]


# The same as FAKE, but each second answer takes three times as long.
DISTURBED = FAKE.replace(
    "    print(nanoseconds, flush=True)", "    print(nanoseconds, flush=True); nanoseconds = 4000 - int(nanoseconds)"
)


def test_a_disturbed_session_goes_on() -> None:
    samples = contest.Samples()
    programs = [
        ([sys.executable, "-c", DISTURBED, "", "0", "", "1000"], "compiled"),
        *fakes(1000, "twin", "eager"),
    ]
    contest.measure(samples, programs, 8, {})
    assert set(samples.times("compiled")) == {1000}
    assert len(samples.times("compiled")) >= 8
    assert samples.disturbed >= 7
    assert samples.ratios("eager") == [1]


@pytest.mark.parametrize(("reason", "holds"), [("no compiler", False), ("eager is faster", True)])
def test_eager_where_compiled_was_expected_does_not_hold(reason: str, holds: bool) -> None:
    samples = contest.Samples(missing={"onnx": "no onnxruntime"})
    programs = [fake(9, "compiled", eager=reason), *fakes(9, "twin", "aoti", "eager", "compile", "script")]
    contest.measure(samples, programs, 2, {})
    cases = {case.name: case for case in capture.model_cases("model", samples)}
    assert cases["model: sessions in which compiled C++ ran no compiled code"].holds is holds


def test_a_wrong_result_is_refused() -> None:
    with pytest.raises(CompileError, match="aoti gives another result"):
        contest.measure(contest.Samples(), [fake(1, "compiled"), fake(1, "aoti", difference=0.5)], 1, {})


def test_a_program_that_fails_is_named() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(CompileError, match="no such model"):
        contest.measure(contest.Samples(), [(command, "compiled")], 1, {})


@pytest.mark.slow  # it builds the capture library first
def test_capture(tmp_path: Path) -> None:
    file = tmp_path / "cases.json"
    run("capture", "--quick", "--json", file)
    cases = {case["case"]: case for case in json.loads(file.read_text())["cases"]}
    limits = [case["limit"] for case in cases.values() if case["limit"] is not None]
    assert limits == [500, 500, 500, 500, 1000, 0, 1, 1]
    assert all(case["value"] is not None for name, case in cases.items() if "ONNX" not in name)


def test_footprint_is_drawn(tmp_path: Path) -> None:
    """Also where something could not be measured."""
    cases = [
        harness.Case(f"{model}: {quantity}, {kind}", None if kind == "ExecuTorch" else 2.0, unit, 3.0)
        for model in ("digits classifier", "MLP 128-256, batch 1")
        for quantity, unit in footprint.QUANTITIES.items()
        for kind in ("standalone", "libtorch", "ExecuTorch")
    ]
    ratio = harness.Case("digits classifier: time of a call, standalone over libtorch", 0.5, "ratio")
    footprint.draw(tmp_path / "footprint.png", [*cases, ratio])
    assert (tmp_path / "footprint.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow  # it exports four models twice
def test_footprint(tmp_path: Path) -> None:
    file = tmp_path / "cases.json"
    run("footprint", "--quick", "--json", file, "--plot", tmp_path / "footprint.png")
    assert (tmp_path / "footprint.png").read_bytes().startswith(b"\x89PNG")
    cases = {case["case"]: case for case in json.loads(file.read_text())["cases"]}
    limits = [case["limit"] for case in cases.values() if case["limit"] is not None]
    assert limits == [3, 5, 8, 4, 20, 1.1, 0.6, 1.1]
    assert all(case["value"] is not None for name, case in cases.items() if "ONNX" not in name)
    assert sum("ExecuTorch" in name for name in cases) == 16
    assert (
        cases["digits classifier: size, standalone"]["value"] < 3 < cases["digits classifier: size, libtorch"]["value"]
    )


def trained(compiled: int, peak: int, eager: str = "") -> contest.Samples:
    """Samples of a step that takes so many nanoseconds and bytes; eager C++ takes 1000 of both."""
    samples = contest.Samples()
    programs = [
        fake(compiled, "compiled", eager=eager, peak=peak),
        fake(compiled, "twin", peak=peak),
        fake(800, "loss", peak=1000),
        fake(1000, "eager", peak=1000),
        *fakes(700, "compile"),
        *fakes(2000, "python"),
    ]
    contest.measure(samples, programs, 2, {})
    return samples


def limited(samples: contest.Samples, name: str) -> dict[str, tuple[float | None, float | None, bool | None]]:
    cases = training.training_cases("net", samples, training.LIMITS[name])
    assert len({case.name for case in cases}) == len(cases)
    return {
        case.name.removeprefix("net: "): (case.value, case.limit, case.holds)
        for case in cases
        if case.limit is not None
    }


def test_cases_of_a_training() -> None:
    samples = trained(700, 1050)
    ran = "sessions in which the compiled step ran no compiled code"
    over = "compiled C++ step over "
    memory = f"peak of memory, {over}eager C++"
    assert limited(samples, "mlp") == {
        ran: (0, 0, True),
        f"{over}eager C++": (0.7, 0.7, True),
        f"{over}torch.compile in Python": (1.0, 1.05, True),
    }
    for name in ("cnn", "gpt"):
        assert limited(samples, name) == {ran: (0, 0, True), memory: (1.05, 1.05, True)}
    cases = {case.name: case for case in training.training_cases("net", samples, training.LIMITS["mlp"])}
    assert cases[f"net: {memory}"].value == 1.05
    assert cases["net: peak of memory, compiled C++ step"].value == 1.05
    assert cases[f"net: {over}C++, loss compiled, optimiser eager"].value == 0.875
    assert cases["net: eager Python"].value == 2


def test_a_training_beyond_its_limits_does_not_hold() -> None:
    slow = trained(740, 1051, eager="the function reads a value")
    assert [holds for *_, holds in limited(slow, "mlp").values()] == [False, False, False]
    assert [holds for *_, holds in limited(slow, "gpt").values()] == [False, False]
    assert "net: compiled C++ step ran no compiled code: the function reads a value" in training._notes("net", slow)


def test_other_losses_are_refused(tmp_path: Path) -> None:
    samples = contest.Samples()
    programs = [fake(1, "compiled", difference=2e-3)]
    with pytest.raises(CompileError, match="compiled gives another result"):
        contest.run_sessions(samples, "net", lambda folder: programs, 1, 1, 1, training._TOLERANCE)


@pytest.mark.slow  # it compiles forward, backward and optimiser, in C++ and in Python
def test_training(tmp_path: Path) -> None:
    file = tmp_path / "cases.json"
    run("training", "--quick", "--json", file)
    written = json.loads(file.read_text())
    cases = {case["case"]: case for case in written["cases"]}
    assert [case["limit"] for case in cases.values() if case["limit"] is not None] == [0, 0.7, 1.05]
    assert all(case["value"] is not None for case in cases.values())
    # An MLP of 84,490 weights: with gradients and two moments 4 times 338 kB; the activations of a batch are 1.1 MB.
    peaks = [case["value"] for name, case in cases.items() if case["unit"] == "kB"]
    assert all(1352 + 500 < peak < 10_000 for peak in peaks), peaks
    assert any("operators" in note for note in written["notes"])
