"""Archives with programs and compiled code, and what is loaded of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from torchcc._torch.programs import quiet, weights

#: Archive folders, as in ``torch.export.pt2_archive.constants``.
EXTRA_FOLDER = "extra/"


LIBRARY_FOLDER = "data/aotinductor/"


def write_archive(
    file: Path,
    programs: Mapping[str, ExportedProgram],
    libraries: Mapping[str, Sequence[str]],
    extra_files: Mapping[str, str],
) -> None:
    """Writes a ``.pt2`` archive. Weights that several programs have under the same names are stored once.

    Leans on ``torch.export.pt2_archive._package.package_pt2``, and on the order in which it writes: the weights of a
    program, then the record that says which file is which.
    """
    from torch.export.pt2_archive import _package

    class Writer(_package.PT2ArchiveWriter):
        def __init__(self, target: Any) -> None:
            super().__init__(target)
            self._waiting: dict[str, bytes] = {}
            self._known: dict[tuple[str, ...], str] = {}
            self._count = 0

        def count_prefix(self, prefix: str) -> int:
            return self._count if _is_weight(prefix) else super().count_prefix(prefix)

        def write_bytes(self, name: str, data: bytes) -> None:
            if _is_weight(name):
                self._waiting[name] = data
            else:
                super().write_bytes(name, data)

        def write_string(self, name: str, data: str) -> None:
            if name.endswith("_config.json"):
                data = self._write_weights(name.rpartition("/")[0], json.loads(data))
            super().write_string(name, data)

        def _write_weights(self, folder: str, content: dict[str, Any]) -> str:
            owners: dict[str, list[str]] = {}
            for weight, entry in content["config"].items():
                owners.setdefault(entry["path_name"], []).append(weight)
            names = {}
            for path, owned in owners.items():
                data = self._waiting.pop(f"{folder}/{path}")
                key = (folder, *sorted(owned), hashlib.sha256(data).hexdigest())
                if key not in self._known:
                    self._known[key] = path
                    super().write_bytes(f"{folder}/{path}", data)
                names[path] = self._known[key]
                self._count += 1
            for entry in content["config"].values():
                entry["path_name"] = names[entry["path_name"]]
            return json.dumps(content)

    original = _package.PT2ArchiveWriter
    _package.PT2ArchiveWriter = Writer  # type: ignore[misc, assignment]
    try:
        with quiet():
            _package.package_pt2(
                str(file),
                exported_programs=dict(programs),
                aoti_files={name: list(files) for name, files in libraries.items()},
                extra_files=dict(extra_files),
            )
    finally:
        _package.PT2ArchiveWriter = original  # type: ignore[misc]


def _is_weight(record: str) -> bool:
    return record.startswith(("data/weights/", "data/constants/")) and not record.endswith(".json")


def load_library(library: str) -> Callable[[Iterable[torch.Tensor]], list[torch.Tensor]]:
    """A compiled shared library as a function, on this machine's CPU or current GPU. Leans on ``torch._C._aoti``."""
    # Code for GPUs needs libtorch_cuda.so, which its dynamic section names.
    on_gpu = re.search(rb"\0libtorch_cuda\.so", Path(library).read_bytes()) is not None
    runner: Any = (
        torch._C._aoti.AOTIModelContainerRunnerCuda(library, 1)
        if on_gpu
        else torch._C._aoti.AOTIModelContainerRunnerCpu(library, 1)
    )

    def run(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(runner.run(list(tensors)))

    return run


def run_library(library: str, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Runs a compiled shared library once."""
    return load_library(library)(tensors)


def tree_version() -> str:
    """Major and minor version of torch, as the manifest states it."""
    return ".".join(torch.__version__.split(".")[:2])


def load_programs(file: Path) -> dict[str, ExportedProgram]:
    """All exported programs of an archive, by name; its compiled code is left alone.

    Leans on ``torch.export.pt2_archive._package._load_exported_programs``: ``load_pt2`` would load the code too.
    """
    from torch.export.pt2_archive import _package

    with quiet(), _no_warnings_of("torch._export.serde.serialize"), _package.PT2ArchiveReader(str(file)) as reader:
        programs: dict[str, ExportedProgram] = _package._load_exported_programs(reader, reader.get_file_names(), None)
    return programs


@contextlib.contextmanager
def _no_warnings_of(logger: str) -> Iterator[None]:
    """Without a warning about example inputs that are no plain tensors, which would fail to be printed."""
    found = logging.getLogger(logger)
    level = found.level
    found.setLevel(logging.ERROR)
    try:
        yield
    finally:
        found.setLevel(level)


def share_weights(programs: Sequence[ExportedProgram]) -> None:
    """Lets programs hold the same tensors where their weights have the same names and contents."""
    known: dict[str, list[torch.Tensor]] = {}
    for program in programs:
        for held in (program.state_dict, program.constants):
            for name, tensor in held.items():
                if not isinstance(tensor, torch.Tensor):
                    continue
                same = [one for one in known.setdefault(name, []) if _same_content(one, tensor)]
                if same:
                    held[name] = same[0]
                else:
                    known[name].append(tensor)


def same_program(one: ExportedProgram, other: ExportedProgram) -> bool:
    """Whether two programs have the same graphs and weights."""
    code, other_code = (
        [module.code for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
        for program in (one, other)
    )
    held, other_held = weights(one), weights(other)
    return (
        code == other_code
        and held.keys() == other_held.keys()
        and all(_same_content(tensor, other_held[name]) for name, tensor in held.items())
    )


def _same_content(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
