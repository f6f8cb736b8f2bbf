"""What several tests need: packages of regions, networks and models, and the C++ tests, built once.

All are kept in torchcc's cache folder, so that a second run starts at once.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

import torchcc
from torchcc import native, paths, toolchain

TESTS = Path(__file__).resolve().parent

_TARGETS = {
    "release": ("runtime_tests", "mistakes", "programs", "capture_app", "exports", "custom_operators"),
    "asan-ubsan": ("runtime_tests",),
    "tsan": ("runtime_tests",),
}

# Files with tests that take minutes; two lists that take about as long. Tests of one file share what they build.
_LONG = (("test_demo.py", "test_consumers.py"), ("test_cpp.py", "test_standalone.py"))

_KEPT = 7 * 24 * 3600  # seconds that packages of other sources stay in the cache


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets the two processes begin with long tests, and end with short ones, which they can share.

    Each gets half of the list at first, in this order. Tests that wait until no other one uses the GPU are the last.
    """
    programs = [item for item in items if item.path.name == "test_programs.py"]
    one, other = (
        [*programs[start::2], *(item for item in items if item.path.name in files)] for start, files in enumerate(_LONG)
    )
    short = [item for item in items if item not in one and item not in other]
    half = max(0, (len(items) + 1) // 2 - len(one))
    items[:] = [*one, *short[:half], *other, *short[half:]]
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)


def _cache() -> Path:
    return paths.cache_dir() / "tests"


def _key(*files: Path) -> str:
    """A short hash of what files contain, where these tests are, and which torch and compiler there are."""
    parts = [str(TESTS), torch.__file__, torch.__version__, toolchain.check_compiler(toolchain.cxx()).detail]
    return hashlib.sha256("\n".join([*parts, *(file.read_text() for file in files)]).encode()).hexdigest()[:16]


def _compiler_sources() -> list[Path]:
    """What packages are made by."""
    return sorted(file for file in Path(torchcc.__file__).parent.rglob("*") if file.suffix in (".py", ".jinja"))


def _forget_old(folder: Path) -> None:
    for old in folder.glob("*"):
        if time.time() - old.stat().st_mtime > _KEPT:
            shutil.rmtree(old)


def _made_once(name: str, sources: Sequence[Path], make: Callable[[Path], None]) -> Path:
    """A folder in the cache that one process fills, once for the same sources; the others wait."""
    folder = _cache() / name / _key(*sources, *_compiler_sources())
    with paths.locked(_cache() / f"{name}.lock"):
        _forget_old(folder.parent)
        if not (folder / "finished").exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was ended
            folder.mkdir(parents=True)
            make(folder)
            (folder / "finished").touch()
    return folder


@pytest.fixture(scope="session")
def built() -> Path:
    """The folder with ``regions.pt2``, ``regions.h``, ``regions.cpp``, ``twin.pt2`` and what cpp/network.py writes."""
    sources = {TESTS / "regions.py": "regions", TESTS / "cpp" / "twin.py": "twin"}
    models = TESTS / "cpp" / "network.py"

    def make(folder: Path) -> None:
        for source, namespace in sources.items():
            _run(sys.executable, "-m", "torchcc", "build", source, "--out", folder, "--namespace", namespace)
        _run(sys.executable, models, folder)

    return _made_once("packages", [*sources, models], make)


@pytest.fixture(scope="session")
def packages(libraries: Path) -> Path:
    """The folder with packages of package_models.py: ``net.pt2``, ``counter.pt2`` and ``noise.pt2`` are portable.

    ``layer.pt2`` is compiled for this machine, and ``both.pt2`` once more, with the weights as inputs.
    """
    from commands import MODELS, run

    def make(folder: Path) -> None:
        for name in ("net", "counter", "noise"):
            run("export", f"{MODELS}:{name}", "-o", folder / f"{name}.pt2", "--target", "portable")
        checked = run("export", f"{MODELS}:layer", "-o", folder / "layer.pt2")
        assert "forward, cpu-" in checked and "equal to the graph on 5 sets of sizes" in checked
        options = ("--updatable", "--option", "max_autotune=false")
        run("compile", folder / "layer.pt2", "-o", folder / "both.pt2", *options)

    return _made_once("models", [MODELS], make)


@pytest.fixture(scope="session")
def standalone() -> Path:
    """The folder with packages and sources of the models of standalone_models.py, and ``checks.json``."""
    models = TESTS / "standalone_models.py"
    sources = [models, *sorted((TESTS / "models").glob("*.py"))]
    return _made_once("standalone", sources, lambda folder: _run(sys.executable, models, folder))


@pytest.fixture(scope="session")
def standalone_build(standalone: Path) -> Callable[..., Path]:
    """Builds programs of standalone/CMakeLists.txt; gives their folder.

    Called with the name of a build, the names of its targets, and CMake's definitions as keywords.
    """

    def build(name: str, targets: Sequence[str], models: Path = standalone, **definitions: str | Path) -> Path:
        folder = _cache() / "cpp" / f"standalone-{name}-{_key()}"
        # A toolchain file brings its own.
        own = {} if "CMAKE_TOOLCHAIN_FILE" in definitions else {"CMAKE_CXX_COMPILER": shutil.which(toolchain.cxx())}
        with paths.locked(_cache() / "standalone.lock"):
            _run(
                *(native.cmake(), "-S", TESTS / "standalone", "-B", folder, "-G", "Ninja"),
                *(f"-DCMAKE_MAKE_PROGRAM={native.ninja()}", f"-DCMAKE_PREFIX_PATH={paths.cmake_dir()}"),
                *(f"-DTORCHCC_PYTHON={sys.executable}", f"-DTORCHCC_TEST_MODELS={models}"),
                *("-DTORCHCC_WARNINGS_AS_ERRORS=ON", "-DCMAKE_BUILD_TYPE=Release"),
                *(f"-D{key}={value}" for key, value in {**own, **definitions}.items()),
            )
            _run(native.cmake(), "--build", folder, "--target", *targets)
        return folder

    return build


@pytest.fixture(scope="session")
def files(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that the C++ programs get: the packages, and in ``rewritten`` many that are wrong in one way each."""
    from cpp.rewrite import rewrite

    folder = tmp_path_factory.mktemp("files")
    for file in built.glob("*.pt2"):
        shutil.copyfile(file, folder / file.name)
    rewrite(built / "twin.pt2", folder / "rewritten")
    for name in ("network", "plain"):
        with zipfile.ZipFile(built / f"{name}.pt2") as archive:
            archive.extractall(folder / "unpacked" / name)
    yield folder
    shutil.rmtree(folder)  # more than 100 MB


@pytest.fixture(scope="session")
def cpp_build(built: Path) -> Callable[..., Path]:
    """Builds the C++ tests for a preset of cpp/CMakePresets.json; gives the folder of the programs.

    Called with the preset, and with the names of targets where these are not the preset's usual ones.
    """
    return functools.cache(functools.partial(_build, built))


@pytest.fixture(scope="session")
def libraries(cpp_build: Callable[..., Path]) -> Path:
    """torchcc's libraries of the release build, where `native.library_dir` looks: nothing builds them again."""
    build = cpp_build("release", "torchcc_runtime", "torchcc_capture") / "torchcc"
    place = native.library_place()
    with paths.locked(place / "lock"):
        for name in native.LIBRARIES:
            if not (place / name).exists():
                native.put(build / name, place / name)
    return place


def _run(*command: str | Path) -> None:
    """Runs a command in the folder of the C++ tests; fails the test with all that it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=TESTS / "cpp",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"{command}\n{done.stdout[-8000:]}", pytrace=False)


def _boost() -> Path:
    """The folder of the Boost headers that pip installed."""
    (header,) = [
        file for file in importlib.metadata.files("cmeel-boost") or () if file.match("boost/test/unit_test.hpp")
    ]
    return Path(str(header.locate())).parents[2]


def _build(built: Path, preset: str, *targets: str) -> Path:
    toolchain.require_compiler()
    folder = _cache() / "cpp" / f"{preset}-{_key()}"
    with paths.locked(_cache() / "lock"):
        _configure_and_build(built, preset, folder, targets or _TARGETS[preset])
    return folder


def _configure_and_build(built: Path, preset: str, folder: Path, targets: Sequence[str]) -> None:
    _run(
        *(native.cmake(), "--preset", preset, "-S", TESTS / "cpp", "-B", folder),
        f"-DCMAKE_MAKE_PROGRAM={native.ninja()}",
        f"-DCMAKE_CXX_COMPILER={shutil.which(toolchain.cxx())}",
        f"-DCMAKE_PREFIX_PATH={paths.cmake_dir()}",
        f"-DTORCHCC_PYTHON={sys.executable}",
        f"-DTORCHCC_TEST_REGIONS={built}",
        f"-DTORCHCC_TEST_BOOST={_boost()}",
    )
    _run(native.cmake(), "--build", folder, "--target", *targets)
