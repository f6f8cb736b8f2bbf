"""Makes packages that are wrong in one way each: whole zip files with right checksums, as a faulty tool writes them.

``cpp/damage.cpp`` loads them all: names that start with ``good-`` have to load, names that start with ``bad-`` not, and
those that start with ``portable-`` have to run their graph.
"""

from __future__ import annotations

import copy
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_MANIFEST = "extra/torchcc.json"
_CHECKSUM = "extra/torchcc.json.crc32"

Change = Callable[[Any], None]


def rewrite(package: Path, folder: Path) -> None:
    """Writes the packages into a new folder. ``package`` has one function with two fixed-size inputs and an output."""
    folder.mkdir()
    with zipfile.ZipFile(package) as opened:
        records = {name.partition("/")[2]: opened.read(name) for name in opened.namelist()}
    manifest = json.loads(records[_MANIFEST])
    for name, changed in {**_good(records), **_bad_records(records)}.items():
        _write(folder / f"{name}.pt2", changed)
    _write(folder / "good-deflated.pt2", records, zipfile.ZIP_DEFLATED)
    for name, change in _manifest_changes(manifest).items():
        copied = copy.deepcopy(manifest)
        change(copied)
        _write(folder / f"bad-{name}.pt2", _with_manifest(records, json.dumps(copied)))
    for name, change in _portable_changes().items():
        copied = copy.deepcopy(manifest)
        change(copied)
        _write(folder / f"portable-{name}.pt2", _with_manifest(records, json.dumps(copied)))
    trains = _with_training(manifest)
    _write(folder / "good-training.pt2", _with_manifest(records, json.dumps(trains)))
    for name, change in _training_changes(trains).items():
        copied = copy.deepcopy(trains)
        change(copied)
        _write(folder / f"bad-training-{name}.pt2", _with_manifest(records, json.dumps(copied)))
    for name, text in _texts(json.dumps(manifest)).items():
        _write(folder / f"bad-{name}.pt2", _with_manifest(records, text))


def _write(file: Path, records: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file, "w", compression) as opened:
        for name, content in records.items():
            opened.writestr(f"package/{name}", content)


def _with_manifest(records: Mapping[str, bytes], text: str | bytes) -> dict[str, bytes]:
    content = text.encode() if isinstance(text, str) else text
    return {**records, _MANIFEST: content, _CHECKSUM: str(zlib.crc32(content)).encode()}


def _libraries(records: Mapping[str, bytes]) -> list[str]:
    return [name for name in records if name.endswith(".so")]


def _good(records: Mapping[str, bytes]) -> dict[str, Mapping[str, bytes]]:
    return {
        "good-unchanged": records,
        "good-other-order": dict(reversed(records.items())),
        "good-more-records": {**records, "extra/note.txt": b"hello", "data/unlisted": b"?"},
        "good-unknown-keys": _with_manifest(
            records, json.dumps({**json.loads(records[_MANIFEST]), "later": {"x": [1, 2]}})
        ),
    }


def _bad_records(records: Mapping[str, bytes]) -> dict[str, Mapping[str, bytes]]:
    first, second = _libraries(records)
    without = {f"bad-without-{i}": _without(records, name) for i, name in enumerate(_listed(records))}
    return {
        **without,
        "bad-only-text": {"readme.txt": b"a zip file, but no package"},
        "bad-no-records": {},
        "bad-no-manifest": _without(records, _MANIFEST),
        "bad-no-checksum": _without(records, _CHECKSUM),
        "bad-swapped-libraries": {**records, first: records[second], second: records[first]},
        "bad-empty-library": {**records, first: b""},
        "bad-shorter-library": {**records, first: records[first][:-1]},
        "bad-longer-library": {**records, first: records[first] + b"\0"},
        "bad-other-byte": {**records, first: records[first][:-1] + b"\x01"},
        "bad-checksum-text": {**records, _CHECKSUM: b"twelve"},
        "bad-checksum-empty": {**records, _CHECKSUM: b""},
        "bad-checksum-long": {**records, _CHECKSUM: b"1" * 1000},
        "bad-checksum-other": {**records, _CHECKSUM: b"12345"},
        "bad-manifest-byte": {**records, _MANIFEST: records[_MANIFEST].replace(b"float32", b"float64")},
    }


def _listed(records: Mapping[str, bytes]) -> list[str]:
    return list(json.loads(records[_MANIFEST])["records"])


def _without(records: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    return {key: content for key, content in records.items() if key != name}


def _texts(text: str) -> dict[str, str | bytes]:
    return {
        "empty-manifest": "",
        "manifest-is-text": "hello",
        "manifest-is-null": "null",
        "manifest-is-number": "1",
        "manifest-is-list": "[]",
        "manifest-is-object": "{}",
        "manifest-cut": text[: len(text) // 2],
        "manifest-with-tail": text + "}",
        "manifest-deep": "[" * 1_000_000 + "]" * 1_000_000,
        "manifest-deep-open": '{"a":' * 1_000_000,
        "manifest-deep-size": _with_size(text, "[" * 50_000 + "]" * 50_000),
        "manifest-deep-expression": _with_size(text, '["+",1,' * 90 + "1" + "]" * 90),
        "manifest-not-unicode": text.replace("float32", "\udcff").encode(errors="surrogateescape"),
        "manifest-nul": text.replace("float32", "float32\\u0000"),
    }


def _with_size(text: str, size: str) -> str:
    manifest = json.loads(text)
    manifest["functions"][0]["signature"]["inputs"][0]["sizes"][0]["value"] = "HERE"
    return json.dumps(manifest).replace('"HERE"', size)


def _put(*path: Any, value: Any) -> Change:
    """A change that sets the entry at a path of keys and positions."""

    def change(manifest: Any) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return change


def _drop(*path: Any) -> Change:
    def change(manifest: Any) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        del manifest[path[-1]]

    return change


def _paths(node: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all entries of objects, below the first element of each list."""
    if isinstance(node, dict):
        return [path for key, value in node.items() for path in [(*prefix, key), *_paths(value, (*prefix, key))]]
    return _paths(node[0], (*prefix, 0)) if isinstance(node, list) and node else []


# Keys that only people and Python read, and entries whose absence is a package of its own.
_UNREAD = {"format", "producer"}


def _manifest_changes(manifest: Any) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    for path in _paths({**manifest, "records": dict(list(manifest["records"].items())[:1])}):
        if path[-1] in _UNREAD or path[-1] in manifest["records"]:
            continue
        name = "-".join(str(key) if key not in manifest["records"] else "record" for key in path)
        changes[f"missing-{name}"] = _drop(*path)
        changes[f"wrong-type-{name}"] = _put(*path, value={"not": ["this"]})
    signature = ("functions", 0, "signature")
    size = (*signature, "inputs", 0, "sizes", 0, "value")
    variant = ("functions", 0, "variants", 0)
    record = ("records", next(iter(manifest["records"])))
    symbol = {"name": "n", "min": 0, "max": None}
    return {
        **changes,
        **{
            f"version-{value}": _put("format_version", value=value)
            for value in (0, 1, 3, -1, 2**63, 2.0, True, "2", None)
        },
        **{f"size-{value}": _put(*size, value=value) for value in (-1, 2**63, 2**70, 1.5, True, "n", [], ["+", 1])},
        **{f"crc-{value}": _put(*record, "crc32", value=value) for value in (-1, 2**32, 2**70, 0.5, "1", None)},
        **{f"bytes-{value}": _put(*record, "size", value=value) for value in (-1, 0, 2**40, 2**63, 2**70, "1", None)},
        "functions-none": _put("functions", value=[]),
        "functions-twice": lambda content: content["functions"].append(content["functions"][0]),
        "operator": _put(*size, value=["^", 1, 2]),
        "symbol-unbound": _put(*signature, "symbols", value=[symbol]),
        "symbol-negative": _put(*signature, "symbols", value=[{**symbol, "min": -1}]),
        "dtype": _put(*signature, "inputs", 0, "dtype", value="float33"),
        "dtype-of-number": _put(*signature, "inputs", 0, "number", value=True),
        "device": _put(*signature, "inputs", 0, "device", value="cuda"),
        "size-unknown": _put(*size, value=None),
        "output-unknown": _put(*signature, "outputs", 0, "sizes", 0, "value", value=None),
        "inputs-fewer": _drop(*signature, "inputs", 0),
        "outputs-fewer": _put(*signature, "outputs", value=[]),
        **{
            name: _both(change, _put("functions", 0, "graph", value="")) for name, change in _portable_changes().items()
        },
        "weights-unknown": _put(*variant, "weights", value=["absent"]),
        "graph-absent": _put("functions", 0, "graph", value="models/absent.json"),
        "library-absent": _put(*variant, "library", value="data/absent.so"),
        "library-none": _put(*variant, "library", value=""),
        "library-is-json": _put(*variant, "library", value="models/model.json"),
        "library-of-outputs": lambda content: _swap_libraries(content["functions"][0]["variants"][0]),
        "records-unlisted": _put("records", value={}),
        "records-more": _put("records", "data/absent", value={"size": 1, "crc32": 1}),
    }


def _with_training(manifest: Any) -> Any:
    """The manifest with code for training: libraries of the right form, which nothing calls."""
    copied = copy.deepcopy(manifest)
    (variant,) = copied["functions"][0]["variants"]
    copied["functions"][0]["training"] = [
        {
            **{key: variant[key] for key in ("target", "torch", "cpu_features", "exclusive", "library", "weights")},
            "library_backward": variant["library_out"],
            "extern_ops": "",
            "extern_ops_backward": "",
            "backward": {
                "saved": [["input", 0], ["input", 1]],
                "tangents": [{"output": 0, "strides": None}],
                "gradients": [],
                "covered": [[0]],
                "reached": [[0, 1]],
                "random": False,
            },
        }
    ]
    return copied


def _training_changes(manifest: Any) -> dict[str, Change]:
    at = ("functions", 0, "training", 0)
    changes: dict[str, Change] = {}
    for path in _paths(manifest["functions"][0]["training"][0]):
        name = "-".join(map(str, path))
        changes[f"missing-{name}"] = _drop(*at, *path)
        changes[f"wrong-type-{name}"] = _put(*at, *path, value={"not": ["this"]})
    backward = (*at, "backward")
    return {
        **changes,
        "is-object": _put("functions", 0, "training", value={"not": ["this"]}),
        "weights-unknown": _put(*at, "weights", value=["absent"]),
        "library-absent": _put(*at, "library_backward", value="data/absent.so"),
        "library-none": _put(*at, "library", value=""),
        "saved-elsewhere": _put(*backward, "saved", 0, value=["nowhere", 0]),
        "saved-input": _put(*backward, "saved", 0, 1, value=2),
        "saved-output": _put(*backward, "saved", 0, value=["output", 1]),
        "saved-extra": _put(*backward, "saved", 0, value=["extra", 1]),
        "saved-negative": _put(*backward, "saved", 0, 1, value=-1),
        "saved-fewer": _drop(*backward, "saved", 0),
        "tangent": _put(*backward, "tangents", 0, "output", value=1),
        "gradient": _put(*backward, "gradients", value=[2]),
        "gradients-more": _put(*backward, "gradients", value=[0]),
        "covered": _put(*backward, "covered", value=[[1]]),
        "covered-fewer": _put(*backward, "covered", value=[]),
        "reached": _put(*backward, "reached", value=[[2]]),
        "reached-more": _put(*backward, "reached", value=[[0], [1]]),
    }


def _portable_changes() -> dict[str, Change]:
    """Packages whose compiled code cannot run here, so that the graph has to."""
    variant = ("functions", 0, "variants", 0)
    return {
        "variants-none": _put("functions", 0, "variants", value=[]),
        "torch": _put(*variant, "torch", value="1.0"),
        "cpu": _put(*variant, "cpu_features", value=["avx1024"]),
    }


def _both(first: Change, second: Change) -> Change:
    def change(content: Any) -> None:
        first(content)
        second(content)

    return change


def _swap_libraries(variant: dict[str, Any]) -> None:
    variant["library"], variant["library_out"] = variant["library_out"], variant["library"]
