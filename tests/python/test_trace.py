"""Traces through a real compiler process: what it makes of them, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import Recorder

from torchcc import (
    _torch,
    compare,
    operators,
    package,
    package_reader,
    replay,
    trace,
    trace_arguments,
    trace_compiler,
    trace_json,
)
from torchcc.recording import Recording, RefusedError, check_artifact, check_replay, load


class Compiler:
    """A compiler process, asked over pipes as C++ does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torchcc.compiler"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TORCHCC_CACHE": str(folder)},
        )

    def package(self, name: str) -> Path:
        return self.folder / "compiled" / f"{name}.pt2"

    def send(self, recording: Path, **changes: Any) -> None:
        request = {
            "id": 7,
            "trace": str(recording / "trace.json"),
            "tensors": str(recording / "tensors.pt"),
            "package": str(self.package(recording.name)),
            "key": "the key",
            "freeze": False,
            "against": "",
            "options": {},
            "log": str(recording / "log"),
            **changes,
        }
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def ask(self, recording: Path, **changes: Any) -> dict[str, Any]:
        self.send(recording, **changes)
        while "progress" in (answer := self.receive()):
            assert answer["id"] == 7
        return answer

    def group(self) -> list[str]:
        """Commands of the processes in the compiler's group that still run."""
        listed = subprocess.run(["ps", "-eo", "pgid,stat,comm"], capture_output=True, text=True, check=True).stdout
        rows = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
        return [command for group, state, command in rows if group == str(self.process.pid) and state[0] != "Z"]

    def stop(self) -> None:
        """Ends the process, if it has not ended, and closes the pipes."""
        self.process.kill()
        with self.process:
            pass


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compiler]:
    started = Compiler(tmp_path_factory.mktemp("cache"))
    yield started
    assert started.process.poll() is None, "the compiler process is gone"
    started.stop()


@pytest.fixture
def another(tmp_path: Path) -> Iterator[Compiler]:
    """A process for tests that end it."""
    started = Compiler(tmp_path / "cache")
    yield started
    started.stop()


def layers(r: Recorder) -> list[torch.Tensor]:
    """Layers as torch::nn calls them, one that changes its buffers among them."""
    x = r.input(torch.randn(4, 3, 8, 8))
    weight = r.input(torch.randn(6, 3, 3, 3), "captured", "conv.weight")
    scale = r.input(torch.rand(6), "captured", "bn.weight")
    mean = r.input(torch.zeros(6), "captured", "bn.running_mean")
    variance = r.input(torch.ones(6), "captured", "bn.running_var")
    y = r("conv2d", x, weight, None, [1, 1], [1, 1])
    y = r("batch_norm", y, scale, None, mean, variance, True, 0.1, 1e-5, True)
    r("relu_", y)
    pooled, indices = r("max_pool2d_with_indices", y, [2, 2])
    y = r("dropout", r("contiguous", pooled, memory_format=torch.channels_last), 0.5, False)
    sequence = r("reshape", y, [4, 4, 24])
    attended = r("scaled_dot_product_attention", sequence, sequence, sequence)
    weights = [r.input(torch.randn(size) * 0.2, "captured", f"rnn.w{i}") for i, size in enumerate([(20, 24), (20, 5)])]
    state = r("zeros", [1, 4, 5])
    output, hidden, _ = r("lstm.input", attended, [state, state], weights, False, 1, 0.0, False, False, True)
    r.autocast = torch.bfloat16
    half = r("matmul", output, r("transpose.int", output, 1, 2))
    r.autocast = None
    table = r.input(torch.randn(9, 5), "captured", "embedding.weight")
    embedded = r("embedding", table, r.input(torch.tensor([[1, 2], [8, 0]]), "constant"))
    return [pooled, indices, attended, hidden, half, r("gelu", embedded, approximate="tanh")]


def writes(r: Recorder) -> list[torch.Tensor]:
    """In-place operators, views of what they change, and given outputs."""
    x = r.input(torch.randn(4, 6))
    counter = r.input(torch.tensor(3), "captured", "counter")
    r("add_.Tensor", counter, 1)
    base = r("mul.Scalar", x, 2.0)
    r("add_.Scalar", r("slice.Tensor", r("view", base, [6, 4]), 0, 1, 5, 2), 1.5)
    r("zero_", r("select.int", base, 0, 1))
    r("fill_.Scalar", r("as_strided", base, [2, 2], [6, 1], 3), 9)
    r("mul_.Tensor", r("select.int", x, 1, 0), counter)
    r("index_put_", base, [r.input(torch.tensor([0, 3, 3]), "constant")], r("ones", [3, 6]), True)
    given = r("empty.memory_format", [4, 6])
    r("exp.out", x, out=given)
    grown = r("mm.out", x, r("t", x), out=r("empty.memory_format", [0]))
    wide = r("sum.IntList_out", x, [1], out=r("empty.memory_format", [4], dtype=torch.float64))
    turned = r("mul.Scalar", x, 3)
    r("t_", turned)
    r("unsqueeze_", turned, 0)
    r("add_.Scalar", r("squeeze_.dim", r("transpose_", turned, 1, 2), 0), 1)
    shrunk = r("resize_", r("mul.Scalar", x, 4), [2, 3])
    r("_foreach_mul_.Scalar", [given, wide], 0.5)
    first, second = r("split.Tensor", base, 3, 1)
    assert r("equal", x, x)  # the C++ attention layer asks this
    return [base, given, grown, wide, turned, r("mul.Scalar", shrunk, 2), first, second]


def dtypes(r: Recorder) -> list[torch.Tensor]:
    """Complex, whole, half and boolean numbers; nothing; constants of all kinds; linear algebra."""
    x = r.input(torch.randn(4, 4, dtype=torch.float64), name="")
    z = r.input(torch.randn(4, 4, dtype=torch.complex64))
    count = r.input(torch.randint(-9, 9, (5,)))
    nothing = r.input(torch.zeros(0, 4, dtype=torch.float64))
    spectrum = r("fft_rfft", x)
    symmetric = r("add.Tensor", r("matmul", x, r("t", x)), r("eye", 4, dtype=torch.float64), alpha=4)
    q, _ = r("linalg_qr", x)
    values, order = r("topk", x, 2)
    mask = r("gt.Scalar", x, 0.0)
    return [
        spectrum,
        r("mul.Scalar", z, 1 + 2j),
        r("rsub.Scalar", r("mul.Scalar", z, 2), 1),
        r("abs", r("conj", z)),
        r("div.Tensor_mode", count, r.input(torch.tensor(4), "constant"), rounding_mode="floor"),
        r("bitwise_xor.Scalar", count, 5),
        r("cat", [nothing, x]),
        r("sum", nothing),
        r("linalg_solve", symmetric, x),
        r("linalg_cholesky", symmetric),
        r("abs", q),
        values,
        order,
        r("logical_not", mask),
        r("masked_fill.Scalar", x, mask, float("-inf")),
        r("to.dtype", x, torch.float16),
        r("softmax.int", r("to.dtype", x, torch.bfloat16), -1),
        r("einsum", "ij,kj->ik", [x, x]),
        r("cumsum", x, 1),
        r("arange", 3, dtype=torch.int32, device=torch.device("cpu")),
        r("clamp", x, None, 0.5),
    ]


@pytest.mark.parametrize("function", [layers, writes, dtypes])
def test_compiled_like_recorded(function: Any, compiler: Compiler, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recorder = Recorder(function.__name__)
    outputs = function(recorder)
    recording = recorder.write(tmp_path / function.__name__, outputs)

    answer = compiler.ask(recording)

    file = compiler.package(function.__name__)
    assert answer == {"id": 7, "package": str(file), "seconds": pytest.approx(60, abs=60)}, answer
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert [one for one in file.parent.iterdir() if one.suffix != ".pt2"] == []
    package_reader.check(file)
    assert package_reader.read_extra(file, package.KEY) == "the key"
    assert package_reader.read_extra(file, package.TRACE) == (recording / "trace.json").read_text()
    run_on_other_values(recording, file, tmp_path)


def run_on_other_values(recording: Path, file: Path, folder: Path) -> None:
    """The package's code against the trace run eagerly, and the package's graph, on inputs that nobody recorded."""
    recorded = trace_json.read(recording / "trace.json")
    inputs = [
        one + 1 if one.is_floating_point() or one.is_complex() else one
        for one in torch.load(recording / "tensors.pt", weights_only=True)["inputs"]
    ]
    run = _torch.load_library(package_reader.extract_library(file, folder))
    results = []
    with torch.no_grad():
        graph = _torch.load(str(file)).module()
        for function in (lambda tensors: replay.Replay(recorded)(*tensors), run, lambda tensors: graph(*tensors)):
            tensors = [one.clone() for one in inputs]
            results.append([*function(tensors), *(tensors[position] for position in recorded.mutated)])
    for one, *others in zip(*results, strict=True):
        for other in others:
            torch.testing.assert_close(other, one, rtol=3e-2, atol=3e-3)  # bfloat16 is among them


def test_random_numbers_follow_the_generator(compiler: Compiler, tmp_path: Path) -> None:
    r = Recorder("noise")
    x = r.input(torch.ones(6, 7))
    outputs = [r("dropout", x, 0.5, True), r("randn", [5]), r("bernoulli_.float", r("empty_like", x), 0.3)]
    recording = r.write(tmp_path / "noise", outputs)

    answer = compiler.ask(recording, options={"fallback_random": True})

    assert "error" not in answer, answer
    run = _torch.load_library(package_reader.extract_library(compiler.package("noise"), tmp_path))
    torch.manual_seed(5)
    first = run([torch.ones(6, 7)])
    second = run([torch.ones(6, 7)])
    torch.manual_seed(5)
    eager = replay.Replay(trace_json.read(recording / "trace.json"))(torch.ones(6, 7))
    for one, other, again in zip(first, eager, second, strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, again)


def test_frozen_package(compiler: Compiler, tmp_path: Path) -> None:
    r = Recorder("frozen")
    x = r.input(torch.randn(3, 16))
    weight = r.input(torch.randn(8, 16), "captured", "fc.weight")
    state = r.input(torch.zeros(8), "captured", "state")
    y = r("linear", x, weight)
    r("add_.Tensor", state, r("sum.dim_IntList", y, [0]))
    recording = r.write(tmp_path / "frozen", [y])

    answer = compiler.ask(recording, freeze=True)

    assert "error" not in answer, answer
    file = compiler.package("frozen")
    (function,) = package_reader.read_manifest(file)["functions"]
    assert [one["name"] for one in function["signature"]["inputs"]] == ["arg0", "state"]
    assert [one["mutated"] for one in function["signature"]["inputs"]] == [False, True]
    assert function["graph"] == ""
    assert not [one for one in package_reader.read_manifest(file)["records"] if one.startswith("models/")]
    run = _torch.load_library(package_reader.extract_library(file, tmp_path))
    torch.testing.assert_close(run([x, torch.zeros(8)])[0], y)
    for seconds, wins in ((0.0, True), (0.01, False)):
        compare_speed(recording, file, tmp_path, seconds, wins)


def compare_speed(recording: Path, file: Path, folder: Path, seconds: float, wins: bool) -> None:
    """The package against a function that takes ``seconds``, as if that were the frozen code of another package."""
    recorded = Recording(trace_json.read(recording / "trace.json"), [torch.randn(3, 16), torch.zeros(8)], [], None)

    def run(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        if seconds:
            time.sleep(seconds)
        return ()

    def measure() -> float:
        return trace_compiler.speedup(recorded, [0], run, str(file), folder)

    if wins:
        assert measure() > 1.03
    else:
        with pytest.raises(RefusedError, match="as fast as the plain code") as refused:
            measure()
        assert refused.value.kind == "slower"


@pytest.mark.parametrize(("seconds", "reason"), [(0.0, ""), (0.05, "eager is faster: PyTorch's operators take")])
def test_code_that_is_slower_than_its_operators(seconds: float, reason: str, tmp_path: Path) -> None:
    r = Recorder("eager")
    x = r.input(torch.randn(4, 16))
    recording = r.write(tmp_path / "eager", [r("relu", x)])

    def run(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        if seconds:  # even a sleep of no time takes longer than an operator on a busy machine
            time.sleep(seconds)
        return ()

    why = trace_compiler.why_eager(load(recording / "trace.json", recording / "tensors.pt"), [0], run)
    assert why[: len(reason)] == reason
    assert bool(why) == bool(reason)


def test_other_results_than_recorded(compiler: Compiler, tmp_path: Path) -> None:
    r = Recorder("wrong")
    x = r.input(torch.randn(3, 4))
    y = r("mul.Scalar", x, 2.0)
    recording = r.write(tmp_path / "wrong", [y])
    tensors = torch.load(recording / "tensors.pt", weights_only=True)

    tensors["outputs"][0][1, 2] += 0.01
    torch.save(tensors, recording / "tensors.pt")
    answer = compiler.ask(recording)
    assert answer["kind"] == "mismatch"
    assert answer["error"] == "the operators, run again, give another output 0: largest difference 0.01"
    assert answer["details"].splitlines()[-1] == answer["error"]

    r.values[1]["strides"] = [1, 3]
    r.write(tmp_path / "wrong", [y])
    content = json.loads((recording / "trace.json").read_text())
    content["outputs"] = [1]
    (recording / "trace.json").write_text(json.dumps(content))
    answer = compiler.ask(recording)
    assert answer["kind"] == "mismatch"
    assert "float32[3, 4] with strides [4, 1] in place of float32[3, 4] with strides [1, 3]" in answer["error"]
    assert not compiler.package("wrong").exists()


def test_outputs_have_memory_of_their_own(compiler: Compiler, tmp_path: Path) -> None:
    """Inductor drops the addition and returns the argument itself; a caller who writes to it would change both."""
    r = Recorder("own")
    x = r.input(torch.randn(3, 4))
    y = r("add.Tensor", x, r("zeros", [3, 4]))
    doubled = r("mul.Scalar", x, 2)
    recording = r.write(tmp_path / "own", [y, doubled, r("t", doubled)])
    assert "error" not in compiler.ask(recording)
    outputs = _torch.load_library(package_reader.extract_library(compiler.package("own"), tmp_path))([x])
    assert not compare.overlap(outputs[0], x)
    assert compare.overlap(outputs[1], outputs[2])


def test_outputs_have_the_recorded_strides(compiler: Compiler, tmp_path: Path) -> None:
    """Inductor would permute the first, which is written through a permuted view, and make the second dense."""
    r = Recorder("strided")
    x = r.input(torch.randn(3, 4))
    y = r("stack", [x, x], 1)
    r("masked_fill_.Scalar", r("permute", y, [2, 0, 1]), r("gt.Scalar", r("permute", y, [2, 0, 1]), 0.5), 7.0)
    spread = r("diagonal", r("cat", [x, x], 1))
    recording = r.write(tmp_path / "strided", [y, spread])
    assert "error" not in compiler.ask(recording)
    outputs = _torch.load_library(package_reader.extract_library(compiler.package("strided"), tmp_path))([x])
    for output, expected in zip(outputs, (y, spread), strict=True):
        torch.testing.assert_close(output, expected)
        assert output.stride() == expected.stride()


def test_compiled_code_is_checked(tmp_path: Path) -> None:
    r = Recorder("checked")
    x, state = r.input(torch.randn(3, 4)), r.input(torch.zeros(4), "captured", "state")
    r("add_.Tensor", state, r("select.int", x, 0, 1))
    y = r("mul.Scalar", x, 2)
    recording = r.write(tmp_path, [y, r("t", y)])
    recorded = load(recording / "trace.json", recording / "tensors.pt")
    shared = check_replay(recorded)
    assert shared == {(1, "output 0")}

    def check(*outputs: torch.Tensor, after: torch.Tensor = state) -> Mapping[int, str]:
        def run(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
            inputs[1].copy_(after)
            return outputs

        return check_artifact(recorded, [0, 1], run, shared, values=True)

    assert check(y, y.t()) == {}
    memory = torch.zeros(4, 7)
    spread = memory[:, ::2][:, :3].copy_(y.t()).t()
    assert check(spread, spread.t()) == {
        0: "has strides [2, 7] in place of [4, 1]",
        1: "has strides [7, 2] in place of [1, 4]",
    }
    for outputs, after, text in (
        ((y, y.t() * 1.001), state, "another output 1: largest difference"),
        ((y, y.t()), state + 1e-3, "another captured 'state' after the call"),
        ((y, y.t().double()), state, "another form of output 1"),
        ((y,), state, "2 results in place of 3"),
        ((y, y.clone().t()), state, "output 1 of the compiled code does not share memory with output 0"),
    ):
        with pytest.raises(RefusedError, match=text) as refused:
            check(*outputs, after=after)
        assert refused.value.kind == "mismatch"


def test_refused_before_anything_is_compiled(compiler: Compiler, tmp_path: Path) -> None:
    r = Recorder("dynamic")
    x = r.input(torch.tensor([0.0, 1.0, 2.0]))
    recording = r.write(tmp_path / "dynamic", [r("nonzero", x)])

    answer = compiler.ask(recording)
    assert (answer["kind"], answer["error"]) == ("export", "output 0 has sizes that depend on data")

    answer = compiler.ask(recording, options={"max_autotun": True})
    assert answer["kind"] == "compile"
    assert answer["error"].startswith("Inductor has no option 'max_autotun'; expected: for instance max_autotune")

    occupied = tmp_path / "file"
    occupied.touch()
    for folder in (occupied, Path("/proc/torchcc")):
        answer = compiler.ask(recording, package=str(folder / "x.pt2"))
        assert answer["kind"] == "write", answer

    (recording / "trace.json").write_text('{"format": "torchcc-trace", "version": 99}')
    answer = compiler.ask(recording)
    assert answer["kind"] == "export"
    assert "it cannot be read as a trace" in answer["error"]
    assert "\n" not in answer["error"]


def started_compilation(compiler: Compiler, folder: Path) -> None:
    """Returns once the C++ compiler runs."""
    r = Recorder("slow")
    recording = r.write(folder / "slow", [r("sin", r.input(torch.randn(50)))])
    compiler.send(recording)
    deadline = time.monotonic() + 100
    while "cc1plus" not in compiler.group():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ends_with_its_input_while_it_compiles(another: Compiler, tmp_path: Path) -> None:
    started_compilation(another, tmp_path)
    assert another.process.stdin
    start = time.monotonic()
    another.process.stdin.close()
    assert another.process.wait() == -signal.SIGKILL
    assert time.monotonic() - start < 1.5
    deadline = time.monotonic() + 5
    while another.group() or any((another.folder / "compiled").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-m", "torchcc.compiler"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
# A sibling that keeps the compiler's standard input open.
subprocess.Popen(["sleep", "60"], pass_fds=[child.stdin.fileno()], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_ends_with_its_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    # It watches its parent from when it has begun to read.
    while os.getpgid(child) != child:
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while (stat := Path(f"/proc/{child}/stat")).exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(parent.pid, signal.SIGKILL)  # the sibling
    parent.communicate()


def test_says_nothing_but_answers(another: Compiler) -> None:
    out, err = another.process.communicate(input="")
    assert (out, err) == ("", "")


def test_settings_are_restored() -> None:
    environment = trace.Environment(torch.float64, deterministic=True)
    with pytest.raises(ZeroDivisionError), environment.applied():
        assert torch.get_default_dtype() == torch.float64
        assert torch.are_deterministic_algorithms_enabled()
        raise ZeroDivisionError
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()


def test_operators_have_forms_that_export_takes() -> None:
    lacking = []
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("aten::") and "set_" not in name:
            operator = operators.find(name)
            try:
                operators.out_form(operator)
                if operators.changes_form(operator) and not name.startswith("aten::resize"):
                    operators.out_of_place(operator)
            except LookupError:
                lacking.append(name)
    assert len(lacking) < 10, lacking


def test_constants_survive() -> None:
    for constant in (None, True, 3, 0.1, float("inf"), 1 - 2j, "mean", [1, [2.5]], torch.int8, torch.strided):
        assert trace_arguments.decode(json.loads(json.dumps(trace_arguments.encode(constant))), {}) == constant
    for constant in (torch.channels_last, torch.device("cpu")):
        assert trace_arguments.decode(trace_arguments.encode(constant), {}) == constant


def test_numbers_follow_from_sizes() -> None:
    values = {3: torch.zeros(6, 5)}
    terms = {"terms": [{"product": [[3, 0], [3, 1]], "times": 2}], "plus": 1, "over": 4}
    steps = {"steps": [[3, 0], [3, 1], "*", 2, "//", -1, [3, 1], "*", "+", 8, "max"]}  # as C++ code says it itself
    for form, terms_give, steps_give in (
        ("whole", 15, 10),
        ("floating", 15.0, 10.0),
        ("inverse", 1 / 15, 1 / 10),
        ("root", 15**0.5, 10**0.5),
        ("inverse_root", 1 / 15**0.5, 1 / 10**0.5),
    ):
        assert trace_arguments.decode({"size": {**terms, "form": form}}, values) == terms_give
        assert trace_arguments.decode({"size": {**steps, "form": form}}, values) == steps_give


def test_rounding_is_accepted_and_wrong_results_are_not() -> None:
    torch.manual_seed(0)
    exact = torch.randn(1000, dtype=torch.float64)
    eager = (exact + 1e-3 * torch.randn(1000, dtype=torch.float64)).float()  # as after a long chain
    others = [(exact + 1e-3 * torch.randn(1000, dtype=torch.float64)).float() for _ in range(4)]
    as_good = (exact + 1e-3 * torch.randn(1000, dtype=torch.float64)).float()
    assert not compare.close(as_good, eager)
    assert compare.as_exact(as_good, eager, exact, others, 1.2e-7)
    wrong = eager.clone()
    wrong[17] = -wrong[17]
    assert not compare.as_exact(wrong, eager, exact, others, 1.2e-7)
    unstable = [one + torch.randn(1000) for one in others]
    assert not compare.as_exact(as_good, eager, exact, unstable, 1.2e-7)


def test_small_numbers_are_compared() -> None:
    masses = torch.tensor([1.6e-27, 9.1e-31], dtype=torch.float64)
    assert not compare.close(masses * 1.01, masses)
    assert compare.close(masses * (1 + 1e-12), masses)
    # Only rounding is left of a difference of equals: as good as the eager result, though far from it.
    zero = torch.zeros(1, dtype=torch.float64)
    noise = [torch.tensor([value]) for value in (3e-8, -2e-8, 4e-8)]
    assert compare.as_exact(torch.tensor([-3e-8]), noise[0], zero, noise[1:], 1.2e-7)
    assert not compare.as_exact(torch.tensor([1e-3]), noise[0], zero, noise[1:], 1.2e-7)


def test_infinities_must_be_in_the_same_places() -> None:
    exact = torch.tensor([1.0, float("inf"), float("nan")], dtype=torch.float64)
    assert compare.as_exact(exact.float(), exact.float(), exact, [exact.float() + 1e-6], 1.2e-7)
    for other in ([1.0, 2.0, float("nan")], [1.0, float("-inf"), float("nan")], [float("nan")] * 3):
        assert not compare.as_exact(torch.tensor(other), exact.float(), exact, [], 1.2e-7)


def test_shared_memory_is_seen() -> None:
    base = torch.zeros(4, 6)
    left, right = base.chunk(2, 1)
    assert compare.overlap(base.t(), left)
    assert not compare.overlap(left, right)  # they interleave
    z = torch.zeros(3, dtype=torch.complex64)
    assert compare.overlap(z, torch.view_as_real(z)[:, 1])
    assert not compare.overlap(z[:1], torch.view_as_real(z)[1:])
    assert not compare.overlap(base, base.clone())
    assert not compare.overlap(base[:0], base)
