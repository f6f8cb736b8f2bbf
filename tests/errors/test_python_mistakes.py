"""One mistake per file: the whole message that `torchcc build` gives for it, against python_messages.txt.

``TORCHCC_UPDATE=1 pytest tests/errors/test_python_mistakes.py`` writes the messages anew; read the difference.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import torchcc
from torchcc import builder, cli, toolchain
from torchcc.cli import options

GOLDEN = Path(__file__).resolve().parent / "python_messages.txt"

HEAD = """
import torch
import torchcc
from jaxtyping import Float, Float32, Int64
from torch import Tensor

"""

# The mistake is in the file, the regions of which are built.
IN_THE_FILE = {
    "no annotation": "@torchcc.region\ndef f(x): return x",
    "annotation without sizes": "@torchcc.region\ndef f(x: Tensor): return x",
    "annotation of many dtypes": '@torchcc.region\ndef f(x: Float[Tensor, "n"]): return x',
    "open rank": '@torchcc.region\ndef f(x: Float32[Tensor, "... n"]): return x',
    "broadcasting dimension": '@torchcc.region\ndef f(x: Float32[Tensor, "#n"]): return x',
    "size that is no expression": '@torchcc.region\ndef f(x: Float32[Tensor, "n/2"]): return x',
    "argument list": '@torchcc.region\ndef f(*x: Float32[Tensor, "n"]): return x[0]',
    "symbol only in an expression": '@torchcc.region\ndef f(x: Float32[Tensor, "2*n"]): return x',
    "range of no size": '@torchcc.region(ranges={"m": (1, 2)})\ndef f(x: Float32[Tensor, "n"]): return x',
    "range that is no range": '@torchcc.region(ranges={"n": (5, 2)})\ndef f(x: Float32[Tensor, "n"]): return x',
    "range of a number that is no range": (
        '@torchcc.region(ranges={"k": (3, -1)})\ndef f(x: Float32[Tensor, "n"], k: int): return x + k'
    ),
    "result that is a number": '@torchcc.region\ndef f(x: Float32[Tensor, "n"]) -> float: return x.sum()',
    "result without a dtype": '@torchcc.region\ndef f(x: Float32[Tensor, "n"]) -> Float[Tensor, ""]: return x.sum()',
    "result other than annotated": '@torchcc.region\ndef f(x: Float32[Tensor, "n"]) -> Int64[Tensor, "n"]: return x',
    "no result": '@torchcc.region\ndef f(x: Float32[Tensor, "n"]): x.add_(1)',
    "result that is no tensor": '@torchcc.region\ndef f(x: Float32[Tensor, "n"]): return x, 3',
    "result that is a dict": '@torchcc.region\ndef f(x: Float32[Tensor, "n"]): return {"y": x}',
    "annotation that fails": "from __future__ import annotations\n@torchcc.region\ndef f(x: Unknown): return x",
    "branch on a value": '@torchcc.region\ndef f(x: Float32[Tensor, "n"]): return x if x.sum() > 0 else -x',
    "branch on a number": '@torchcc.region\ndef f(x: Float32[Tensor, "n"], k: int): return x if k > 0 else -x',
    "fixed size": '@torchcc.region\ndef f(x: Float32[Tensor, "n"]): return x + torch.ones(7)',
    "sizes that must be equal": (
        '@torchcc.region\ndef f(x: Float32[Tensor, "n"], y: Float32[Tensor, "m"]): return x + y'
    ),
    "code that fails": '@torchcc.region\ndef f(x: Float32[Tensor, "n 3"]): return x @ x',
    "module with state": (
        'bn = torchcc.region(torch.nn.BatchNorm1d(3), name="bn", ranges={"n": (2, 9)}, '
        'inputs={"input": Float32[Tensor, "n 3"]})'
    ),
    "module that one size does not suit": (
        'bn = torchcc.region(torch.nn.BatchNorm1d(3), name="bn", inputs={"input": Float32[Tensor, "n 3"]})'
    ),
    "gradients of what it writes into": (
        '@torchcc.region(grad=True)\ndef f(x: Float32[Tensor, "n"]):\n    x.add_(1)\n    return x * 2'
    ),
    "gradients of whole numbers": '@torchcc.region(grad=True)\ndef f(x: Int64[Tensor, "n"]): return x + 1',
    "gradients that are cut": '@torchcc.region(grad=True)\ndef f(x: Float32[Tensor, "n"]): return x.detach() + 1',
    "two of one name": (
        '@torchcc.region\ndef f(x: Float32[Tensor, "n"]): return x\n'
        'g = torchcc.region(torch.nn.ReLU(), name="f", inputs={"input": Float32[Tensor, "n"]})'
    ),
    "name that is a keyword": '@torchcc.region(name="class")\ndef f(x: Float32[Tensor, "n"]): return x',
    "not a function": "f = torchcc.region(3)",
    "no region": "x = 1",
    "file that fails": "1 / 0",
    "file that is no Python": "def f(:",
}

GOOD = HEAD + '@torchcc.region\ndef f(x: Float32[Tensor, "n"], k: int): return x + k\n'

# The file is good, the mistake is in how it is built.
IN_THE_CALL: dict[str, Mapping[str, Any]] = {
    "namespace that is none": {"namespace": "a.b"},
    "package name that is none": {"name": "my-kernels"},
    "unknown parameter": {"params": {"q": 1}},
    "missing file": {"sources": ["missing.py"]},
}

# What torch.export says about these differs between versions of PyTorch; its first line is enough.
FROM_TORCH = {
    "branch on a value",
    "branch on a number",
    "fixed size",
    "sizes that must be equal",
    "code that fails",
} | {"module that one size does not suit"}


def golden() -> dict[str, str]:
    if not GOLDEN.exists():
        return {}
    parts = re.split(r"^== (.*) ==\n", GOLDEN.read_text(), flags=re.MULTILINE)
    return {name: text.rstrip("\n") for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def write_golden(name: str, text: str) -> None:
    known = {**golden(), name: text}
    order = [*IN_THE_FILE, *IN_THE_CALL, *OTHERS]
    GOLDEN.write_text("\n\n".join(f"== {one} ==\n{known[one]}" for one in order if one in known) + "\n")


def check(name: str, error: torchcc.Error, folder: Path) -> None:
    """Compares a whole message, and its class, with the golden one."""
    text = f"{type(error).__name__}: {error}".replace(str(folder), "FOLDER")
    if name in FROM_TORCH:
        text = re.sub(r"(got:\s+\w+:).*?(?=\n  fix:)", r"\1 ...", text, flags=re.DOTALL)
    if os.environ.get("TORCHCC_UPDATE"):
        write_golden(name, text)
    assert text == golden().get(name)
    if not isinstance(error, torchcc.CompileError):
        assert "\n  fix:" in text, "the message does not say what to do"


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    yield


def build(source: str, **options: Any) -> None:
    Path("kernels.py").write_text(source)
    builder.build(**{"sources": ["kernels.py"], "out": "out", **options})


@pytest.mark.parametrize("name", IN_THE_FILE)
def test_in_the_file(name: str, tmp_path: Path) -> None:
    body = IN_THE_FILE[name]
    source = body if body.startswith("from __future__") else HEAD + body + "\n"
    if body.startswith("from __future__"):
        first, _, rest = body.partition("\n")
        source = first + HEAD + rest + "\n"
    with pytest.raises(torchcc.Error) as raised:
        build(source)
    check(name, raised.value, tmp_path)
    assert not Path("out").exists()


@pytest.mark.parametrize("name", IN_THE_CALL)
def test_in_the_call(name: str, tmp_path: Path) -> None:
    with pytest.raises(torchcc.Error) as raised:
        build(GOOD, **IN_THE_CALL[name])
    check(name, raised.value, tmp_path)


def missing_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    toolchain.require_compiler()


def static_libstdcxx(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = folder / "wrapper"
    wrapper.write_text('#!/bin/sh\nexec g++ -static-libstdc++ "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", str(wrapper))
    toolchain.require_compiler()


def malformed_parameter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options.parse_params(["k"])


def not_callable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchcc.region("text")  # type: ignore[call-overload]


OTHERS = {
    "missing compiler": missing_compiler,
    "compiler that links libstdc++ statically": static_libstdcxx,
    "malformed parameter": malformed_parameter,
    "decorated text": not_callable,
}


@pytest.mark.parametrize("name", OTHERS)
def test_others(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(torchcc.Error) as raised:
        OTHERS[name](tmp_path, monkeypatch)
    check(name, raised.value, tmp_path)


def test_no_old_entries() -> None:
    assert list(golden()) == [*IN_THE_FILE, *IN_THE_CALL, *OTHERS]


def test_the_command_prints_the_message_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    Path("kernels.py").write_text(HEAD + IN_THE_FILE["no annotation"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["torchcc", "build", "kernels.py", "-o", "out"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.rstrip("\n") == golden()["no annotation"]
