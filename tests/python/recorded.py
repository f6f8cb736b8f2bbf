"""Traces made in Python: runs operators, and writes them down as the C++ recorder does."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from torchcc import operators, replay, trace, trace_arguments


class Recorder:
    """Runs operators by name on real tensors and keeps a trace of them."""

    def __init__(self, name: str = "step") -> None:
        self.name = name
        self.values: list[dict[str, Any]] = []
        self.inputs: list[dict[str, Any]] = []
        self.ops: list[dict[str, Any]] = []
        self.autocast: torch.dtype | None = None
        self.random_state: torch.Tensor | None = None
        self._ids: dict[Any, int] = {}
        self._tensors: list[torch.Tensor] = []  # keeps memory from being used again
        self._given: list[torch.Tensor] = []
        self._before: list[torch.Tensor] = []

    def input(self, tensor: torch.Tensor, kind: str = "argument", name: str = "") -> torch.Tensor:
        self.inputs.append({"value": self.id(tensor), "kind": kind, "name": name or f"arg{len(self.inputs)}"})
        self._given.append(tensor)
        self._before.append(replay.copy_of(tensor))
        return tensor

    def id(self, tensor: torch.Tensor) -> int:
        form = trace.metadata(tensor)
        key = (tensor.untyped_storage().data_ptr() or id(tensor), form, tensor.is_conj(), tensor.is_neg())
        if key not in self._ids:
            self._ids[key] = len(self.values)
            self._tensors.append(tensor)
            self.values.append(
                {
                    "dtype": trace.dtype_name(form.dtype),
                    "sizes": list(form.sizes),
                    "strides": list(form.strides),
                    "offset": form.offset,
                    "conj": tensor.is_conj(),
                    "neg": tensor.is_neg(),
                }
            )
        return self._ids[key]

    def __call__(self, name: str, *given: Any, **keywords: Any) -> Any:
        """Runs an operator of ``aten`` with the arguments given and the defaults of all others."""
        operator = operators.find(f"aten::{name}")
        known = operators.arguments(f"aten::{name}")
        assert known is not None
        args = [*given, *(keywords.pop(one.name, one.default) for one in known[len(given) :])]
        assert not keywords
        written = [self._argument(one) for one in args]
        if torch.Tag.nondeterministic_seeded in operator.tags and self.random_state is None:
            self.random_state = torch.get_rng_state()
        enabled = self.autocast is not None
        with torch.no_grad(), torch.autocast("cpu", dtype=self.autocast or torch.bfloat16, enabled=enabled):
            returned = operators.call(operator, args)
        op: dict[str, Any] = {"op": f"aten::{name}", "args": written, "outputs": self._outputs(operator, returned)}
        if self.autocast:
            op["autocast"] = trace.dtype_name(self.autocast)
        self.ops.append(op)
        return returned

    def _argument(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {"tensor": self.id(value)}
        if isinstance(value, (list, tuple)):
            return {"list": [self._argument(one) for one in value]}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}
        return trace_arguments.encode(value)

    def _outputs(self, operator: Any, returned: Any) -> list[Any]:
        count = len(operator._schema.returns)
        results = () if count == 0 else (returned,) if count == 1 else returned
        return [self._output(one) for one in results]

    def _output(self, result: Any) -> Any:
        if isinstance(result, (list, tuple)):
            return [self.id(one) for one in result]
        if isinstance(result, torch.Tensor):
            return self.id(result)
        return None if result is None else {"constant": self._argument(result)}

    def trace(self, outputs: Sequence[torch.Tensor]) -> dict[str, Any]:
        return {
            "format": "torchcc-trace",
            "version": 1,
            "name": self.name,
            "environment": {
                "default_dtype": trace.dtype_name(torch.get_default_dtype()),
                "deterministic": False,
                "inference_mode": False,
            },
            "values": self.values,
            "inputs": self.inputs,
            "ops": self.ops,
            "outputs": [self.id(one) for one in outputs],
            "mutated": self._mutated(),
            "random": self.random_state is not None,
        }

    def _mutated(self) -> list[int]:
        pairs = enumerate(zip(self._given, self._before, strict=True))
        return [position for position, (after, before) in pairs if not torch.equal(after, before)]

    def write(self, folder: Path, outputs: Sequence[torch.Tensor]) -> Path:
        """Writes ``trace.json`` and ``tensors.pt``; returns the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trace.json").write_text(json.dumps(self.trace(outputs)))
        tensors = {
            "inputs": self._before,
            "outputs": [replay.copy_of(one) for one in outputs],
            "mutated": [replay.copy_of(self._given[position]) for position in self._mutated()],
            "random_state": [] if self.random_state is None else [self.random_state],
        }
        torch.save(tensors, folder / "tensors.pt")
        return folder
