"""What can go wrong around a compiled C++ function: results stay right, and the reason is said.

All tests run the program cpp/capture/app.cpp in processes of its own. The cache of the first is shared, so that there
are few compilations.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sanitizers import SETTINGS, fix_addresses

from torchcc import cache, package


@dataclass(frozen=True)
class Ran:
    """What a run of the program printed, by name; `text` is all of it."""

    facts: dict[str, str]
    text: str

    def number(self, name: str) -> int:
        return int(self.facts[name])


@dataclass(frozen=True)
class App:
    """The program, with a cache folder of its own."""

    program: Path
    folder: Path
    options: tuple[str, ...] = ("--no-freeze",)

    def environment(self, **variables: str) -> dict[str, str]:
        keep = {
            name: os.environ[name] for name in ("PATH", "HOME", "CXX", "TORCHINDUCTOR_CACHE_DIR") if name in os.environ
        }
        return {**keep, "TORCHCC_CACHE": str(self.folder), "TORCHCC_PYTHON": sys.executable, **variables}

    def start(
        self, *options: str, preexec: Callable[[], None] | None = None, **variables: str
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.program), *self.options, *options],
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=preexec,
        )

    def finish(self, process: subprocess.Popen[str], before: str = "") -> Ran:
        text = before + process.communicate(timeout=300)[0]
        assert process.returncode == 0, text
        facts = dict(line.split(" ", 1) for line in text.splitlines() if " " in line and not line.startswith(" "))
        assert facts["wrong"] == "0", text
        assert facts["python_files"] == "0", text
        return Ran(facts, text)

    def run(self, *options: str, preexec: Callable[[], None] | None = None, **variables: str) -> Ran:
        return self.finish(self.start(*options, preexec=preexec, **variables))

    def entries(self) -> list[Path]:
        return sorted((self.folder / "compiled").glob("*.pt2"))

    def wait_for(self, process: subprocess.Popen[str], line: str) -> str:
        """Reads until a line comes; gives all that was read."""
        assert process.stdout is not None
        text = ""
        for got in process.stdout:
            text += got
            if got.strip() == line:
                return text
        raise AssertionError(f"'{line}' did not come:\n{text}")


@pytest.fixture(scope="module")
def program(cpp_build: Callable[[str], Path]) -> Path:
    return cpp_build("release") / "capture_app"


@pytest.fixture
def app(program: Path, tmp_path: Path) -> App:
    """The program with an empty cache."""
    return App(program, tmp_path / "cache")


@pytest.fixture(scope="module")
def first(program: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[App, Ran]:
    """A run that compiled."""
    app = App(program, tmp_path_factory.mktemp("first"), ("--width", "2048"))
    return app, app.run()


@pytest.fixture
def warm(first: tuple[App, Ran], tmp_path: Path) -> App:
    """The program with a copy of the cache of a run that compiled."""
    app = App(first[0].program, tmp_path / "cache", first[0].options)
    shutil.copytree(first[0].folder, app.folder)
    return app


def test_training_without_python(app: App) -> None:
    """Forward, backward and optimiser run compiled; with a filled cache, in a process that could not start Python."""
    first = app.run("--train", "--calls", "8")
    assert first.number("compiled_ops") > 0, first.text
    second = app.run(
        "--train", "--calls", "8", TORCHCC_COMPILER="off", TORCHCC_PYTHON="/nowhere/python", PATH="/nowhere"
    )
    assert second.facts["from_cache"] == "1", second.text
    assert second.number("compiled_ops") == first.number("compiled_ops"), second.text


def entry_key(entry: Path) -> str:
    """What the code was made from, as the entry states it."""
    with zipfile.ZipFile(entry) as archive:
        (record,) = [name for name in archive.namelist() if name.endswith(package.KEY)]
        return archive.read(record).decode()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def group_of(leader: int) -> list[int]:
    """All processes that live in the group of a process."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == leader and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def test_compiles_and_replays(first: tuple[App, Ran]) -> None:
    app, ran = first
    assert ran.number("replayed") == 4
    assert ran.facts["from_cache"] == "0"
    assert ran.facts["frozen"] == "1"
    assert "progress compiling" in ran.text
    assert app.entries()
    assert (app.folder / "compiled").stat().st_mode & 0o777 == 0o700
    assert all(entry.stat().st_mode & 0o777 == 0o600 for entry in app.entries())
    left = [file for file in (app.folder / "compiled").rglob("*") if file.suffix not in (".pt2", ".slower")]
    assert left == [app.folder / "compiled" / "logs"], "something was left behind"


def test_warm_start_needs_no_python(warm: App) -> None:
    ran = warm.run(TORCHCC_PYTHON="/nonexistent/python")
    assert ran.number("replayed") == 4
    assert ran.facts["from_cache"] == "1"
    assert "progress" not in ran.text


def test_compiler_off(app: App) -> None:
    ran = app.run(TORCHCC_COMPILER="off")
    assert ran.number("replayed") == 0
    assert "TORCHCC_COMPILER is off" in ran.facts["reason"]


def test_no_python(app: App) -> None:
    ran = app.run(TORCHCC_PYTHON="/nonexistent/python")
    assert ran.number("replayed") == 0
    assert "no Python with torchcc was found" in ran.facts["reason"]
    assert "TORCHCC_PYTHON" in ran.facts["reason"]


def test_python_without_torchcc(app: App, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')  # without site-packages
    python.chmod(0o755)
    ran = app.run(TORCHCC_PYTHON=str(python))
    assert ran.number("replayed") == 0
    assert "No module named" in ran.facts["reason"]


def test_killed_compiler(app: App) -> None:
    process = app.start()
    text = app.wait_for(process, "progress compiling")
    (compiler,) = children_of(process.pid)
    os.kill(compiler, signal.SIGKILL)
    ran = app.finish(process, text)
    assert ran.number("replayed") == 0
    assert "killed by signal 9" in ran.facts["reason"]
    assert not app.entries()


def test_compiler_killed_between_two_compilations_is_started_again(first: tuple[App, Ran], tmp_path: Path) -> None:
    app = App(first[0].program, tmp_path / "cache", ())  # packed too: two compilations
    process = app.start()
    text = app.wait_for(process, "progress writing")
    time.sleep(0.5)
    for child in children_of(process.pid):
        os.kill(child, signal.SIGKILL)
    ran = app.finish(process, text)
    assert ran.number("replayed") == 4


def test_compiler_ends_with_its_parent(app: App) -> None:
    with app.start() as process:
        app.wait_for(process, "progress compiling")
        time.sleep(2)  # so that it has started a C++ compiler
        (compiler,) = children_of(process.pid)
        assert group_of(compiler)
        process.kill()
    deadline = time.monotonic() + 10
    while group_of(compiler) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not group_of(compiler)


def test_timeout(app: App) -> None:
    ran = app.run("--timeout", "0.5")
    assert ran.number("replayed") == 0
    assert "took longer than 0.5 s" in ran.facts["reason"]


def test_unknown_option_of_inductor(app: App) -> None:
    ran = app.run("--inductor", "no_such_option")
    assert ran.number("replayed") == 0
    assert "no_such_option" in ran.facts["reason"]


def test_full_disk(app: App) -> None:
    """Every file may have 20 kB: too few for what is recorded, and for what is compiled."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    ran = app.run(preexec=limit)
    assert ran.number("replayed") == 0
    assert "cannot be written" in ran.facts["reason"]
    assert not list((app.folder / "compiled").rglob("*.p*t*"))


def test_disk_that_is_full_for_the_compiler(app: App) -> None:
    """Enough for the recording, not for the package."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))

    ran = app.run(preexec=limit)
    assert ran.number("replayed") == 0
    assert ran.facts["reason"]
    assert not app.entries()


def test_cache_that_others_can_write_to(app: App) -> None:
    (app.folder / "compiled").mkdir(parents=True)
    (app.folder / "compiled").chmod(0o777)
    ran = app.run()
    assert ran.number("replayed") == 0
    assert "cache folder" in ran.facts["reason"]


def test_file_cut_short(warm: App) -> None:
    for entry in warm.entries():
        entry.write_bytes(entry.read_bytes()[:-1000])
    ran = warm.run(TORCHCC_COMPILER="off")
    assert ran.number("replayed") == 0
    assert "the cache has no code" in ran.facts["reason"]
    assert len(warm.entries()) == 1, "a damaged file is removed; the packed form was not looked for"


def test_file_of_another_trace(warm: App) -> None:
    """A file with the right name, and code for something else (a collision of hashes, or a renamed file)."""
    entries = warm.entries()
    other = ("--no-freeze", "--inductor", "epilogue_fusion")
    ran = warm.run(*other)
    assert ran.number("replayed") == 4
    (new,) = [entry for entry in warm.entries() if entry not in entries]
    shutil.copyfile(entries[0], new)
    ran = warm.run(*other, TORCHCC_COMPILER="off")
    assert ran.number("replayed") == 0
    assert "another one with the same hash" in ran.facts["reason"]


def test_code_that_was_measured_to_be_slower(warm: App) -> None:
    """It is not used, except with packed weights, which were compared with the same."""
    for entry in warm.entries():
        entry.with_suffix(".slower").write_text("eager is faster: so it was measured\n")
    ran = warm.run("--no-freeze", "--faster-only", TORCHCC_COMPILER="off")
    assert ran.number("replayed") == 0
    assert ran.facts["reason"] == "eager is faster: so it was measured"
    (packed,) = [entry for entry in warm.entries() if "\nweights " in entry_key(entry)]
    packed.with_suffix(".slower").unlink()
    ran = warm.run("--faster-only", TORCHCC_COMPILER="off")
    assert ran.number("replayed") == 4
    assert ran.facts["frozen"] == "1"
    assert warm.run("--no-freeze", TORCHCC_COMPILER="off").number("replayed") == 4  # allow_slower


def test_two_processes_at_once(app: App) -> None:
    processes = [app.start() for _ in range(2)]
    results: list[Ran] = []
    threads = [
        threading.Thread(target=lambda process=process: results.append(app.finish(process))) for process in processes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ran.number("replayed") for ran in results] == [4, 4]
    assert app.run(TORCHCC_COMPILER="off").number("replayed") == 4


def test_background_never_blocks(app: App) -> None:
    process = app.start("--background", "--calls", "50")
    text = app.wait_for(process, "waiting")
    assert "progress writing" not in text, "the calls waited for the compiler"
    ran = app.finish(process, text)
    assert ran.number("replayed") == 50


def test_threads(warm: App) -> None:
    ran = warm.run("--threads", "8", "--calls", "200")
    assert ran.number("calls") == 1600
    assert ran.number("replayed") >= 1000


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["asan-ubsan", "tsan"])
def test_sanitized(cpp_build: Callable[..., Path], warm: App, preset: str) -> None:
    """Warm and cold, with threads, weights that change, and in the background."""
    app = App(cpp_build(preset, "capture_app") / "capture_app", warm.folder, (*warm.options, "--calls", "100"))
    for options in (("--threads", "8"), ("--weights-change", "40"), ("--seed", "2", "--background", "--threads", "4")):
        ran = app.run(*options, preexec=fix_addresses if preset == "tsan" else None, **SETTINGS[preset])
        assert ran.number("replayed") >= 90


def test_changed_weights_are_packed_again(warm: App) -> None:
    """Some calls after the change run the ordinary form; a few more, and the new weights are packed."""
    ran = warm.run("--weights-change", "4", "--calls", "10")
    assert ran.number("replayed") == 8
    assert ran.facts["frozen"] == "0"
    assert len(warm.entries()) == 2
    ran = warm.run("--weights-change", "4", "--calls", "200")
    assert ran.number("replayed") == 198
    assert ran.facts["frozen"] == "1"
    assert len(warm.entries()) == 3


def test_exported_cache_works_elsewhere(
    first: tuple[App, Ran], app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "cache.tar"
    monkeypatch.setenv("TORCHCC_CACHE", str(first[0].folder))
    cache.export_to(archive)
    monkeypatch.setenv("TORCHCC_CACHE", str(app.folder))
    cache.import_from(archive)
    ran = App(app.program, app.folder, first[0].options).run(TORCHCC_PYTHON="/nonexistent/python")
    assert ran.number("replayed") == 4


@pytest.fixture(autouse=True)
def _no_compiler_is_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while (left := children_of(os.getpid())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in left if is_alive(pid) and "torchcc.compiler" in Path(f"/proc/{pid}/cmdline").read_text()]
