"""Reads what graphs say about their weights from a package's text."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchcc.package import records_of
from torchcc.package_reader import opened


@dataclass(frozen=True)
class Graph:
    """What a graph of a package says about its weights.

    Attributes:
        used: Names of the parameters, buffers and constants that it uses.
        records: The records that hold these.
    """

    used: frozenset[str]
    records: frozenset[str]


def read_graphs(file: Path, models: Sequence[str]) -> dict[str, Graph]:
    """What some graphs of a package say about their weights, by the name of the model; nothing is loaded.

    Raises:
        PackageError: The file is missing or damaged.
    """
    graphs = {}
    with opened(file, KeyError, ValueError) as archive:
        records = records_of(archive)
        for model in models:
            used = _used_weights(json.loads(archive.read(records[f"models/{model}.json"])))
            places = _weight_records(archive, records, model)
            graphs[model] = Graph(used, frozenset(places[name] for name in used if name in places))
    return graphs


def _used_weights(program: Mapping[str, Any]) -> frozenset[str]:
    held = {}
    for spec in program["graph_module"]["signature"]["input_specs"]:
        ((kind, content),) = spec.items()
        names = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
        if kind in names:
            held[content["arg"]["name"]] = content[names[kind]]
    used = set(_names_in([node["inputs"] for node in program["graph_module"]["graph"]["nodes"]]))
    return frozenset(weight for name, weight in held.items() if name in used)


def _names_in(tree: Any) -> Iterator[str]:
    """Names of the values that arguments of a graph refer to."""
    if isinstance(tree, Mapping):
        if isinstance(tree.get("as_tensor"), Mapping):
            yield tree["as_tensor"]["name"]
        for one in tree.values():
            yield from _names_in(one)
    elif isinstance(tree, list):
        for one in tree:
            if isinstance(one, Mapping) and isinstance(one.get("name"), str):
                yield one["name"]
            yield from _names_in(one)


def _weight_records(archive: zipfile.ZipFile, records: Mapping[str, zipfile.ZipInfo], model: str) -> dict[str, str]:
    """The record of each weight of a graph."""
    places = {}
    for folder in ("weights", "constants"):
        config = records.get(f"data/{folder}/{model}_{folder}_config.json")
        if config is not None:
            for name, entry in json.loads(archive.read(config))["config"].items():
                places[name] = f"data/{folder}/{entry['path_name']}"
    return places
