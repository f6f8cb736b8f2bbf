"""Traces as C++ writes them: JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchcc.errors import CaptureError, message
from torchcc.trace import Condition, Environment, Free, Input, Metadata, Op, Trace, dtype_named

FORMAT = "torchcc-trace"
#: Of what lazy mode recorded: several traces, and what became of them.
SEGMENTS = "torchcc-segments"
VERSION = 1


def read(file: Path) -> Trace:
    """Reads a trace.

    Raises:
        CaptureError: The file is missing, is no trace, or has another version.
    """
    return parse(load(file), str(file))


def load(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CaptureError: The file is missing, or no JSON.
    """
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(str(file), f"{type(error).__name__}: {error}") from error


def parse(content: Mapping[str, Any], origin: str) -> Trace:
    """A trace from its JSON. ``origin`` is for messages.

    Raises:
        CaptureError: It is no trace, or of another version.
    """
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise _unreadable(origin, f'JSON that does not state "format": "{FORMAT}"')
    if content.get("version") != VERSION:
        raise _unreadable(origin, f"version {content.get('version')}")
    try:
        return Trace(
            name=str(content["name"]),
            environment=_environment(content["environment"]),
            values=tuple(map(_metadata, content["values"])),
            inputs=tuple(
                Input(one["value"], one["kind"], one["name"], bool(one.get("requires_grad")), bool(one.get("held")))
                for one in content["inputs"]
            ),
            ops=tuple(map(_op, content["ops"])),
            outputs=tuple(content["outputs"]),
            mutated=tuple(content["mutated"]),
            random=bool(content["random"]),
            output_grads=tuple(map(bool, content.get("output_grads", ()))),
            held_outputs=tuple(map(bool, content.get("held_outputs", ()))),
            free=tuple(Free(*one) for one in content.get("free", ())),
            symbols=tuple(content.get("symbols", ())),
            conditions=tuple(
                Condition(one["step"], one["relation"], one["left"], one["right"])
                for one in content.get("conditions", ())
            ),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _unreadable(origin, f"{type(error).__name__}: {error}") from error


def _unreadable(origin: str, got: str) -> CaptureError:
    return CaptureError(
        message(
            f"{origin}: it cannot be read as a trace",
            expected=f"a trace of version {VERSION}",
            got=got,
            fix="record it with the version of torchcc that compiles it",
        )
    )


def _environment(content: Mapping[str, Any]) -> Environment:
    return Environment(
        dtype_named(content["default_dtype"]),
        bool(content["deterministic"]),
        bool(content["inference_mode"]),
        content.get("matmul_precision", "highest"),
    )


def _metadata(content: Mapping[str, Any]) -> Metadata:
    return Metadata(
        dtype_named(content["dtype"]),
        tuple(content["sizes"]),
        tuple(content["strides"]),
        content.get("offset", 0),
        bool(content.get("requires_grad")),
        content.get("device", "cpu"),
    )


def _op(content: Mapping[str, Any]) -> Op:
    autocast, autocast_cuda = content.get("autocast"), content.get("autocast_cuda")
    return Op(
        content["op"],
        tuple(content["args"]),
        tuple(content["outputs"]),
        dtype_named(autocast) if autocast else None,
        content.get("cache", True),
        bool(content.get("grad", True)),
        dtype_named(autocast_cuda) if autocast_cuda else None,
    )
