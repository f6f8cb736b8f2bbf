"""Traces that need gradients: forward and backward as two pieces of compiled code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from torchcc import _torch, compare, operators, replay, trace
from torchcc.recording import Recording, Run
from torchcc.replay import Replay
from torchcc.signature import Signature, Value


def differentiate(recording: Recording, options: Mapping[str, Any]) -> _torch.Halves:
    """The two graphs of a trace. Raises whatever PyTorch does for operators without a derivative.

    Args:
        recording: With the trace.
        options: Inductor's options.
    """
    recorded = recording.trace
    shares = _outputs_that_share(recording)

    def function(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        own = [one.clone() if position in recorded.mutated else one for position, one in enumerate(inputs)]
        outputs = [one.clone() if position in shares else one for position, one in enumerate(Replay(recorded)(*own))]
        return (*outputs, *(own[position].detach() for position in recorded.mutated))

    inputs = [
        replay.copy_of(one).requires_grad_(form.requires_grad)
        for one, form in zip(recording.inputs, recorded.inputs, strict=True)
    ]
    held = [one.held for one in recorded.inputs], recorded.held_outputs
    return _torch.halves(
        function, inputs, recorded.output_grads, recorded.mutated, held, operators.for_complex, options
    )


def _outputs_that_share(recording: Recording) -> set[int]:
    """Outputs that are views, or in the storage of an input or of another output: joint graphs cannot return such."""
    found: set[int] = set()

    def run(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        outputs = Replay(recording.trace)(
            *(one.requires_grad_(form.requires_grad) for one, form in zip(inputs, recording.trace.inputs, strict=True))
        )
        storages = [one.untyped_storage().data_ptr() for one in (*inputs, *outputs)]
        found.update(
            position
            for position, output in enumerate(outputs)
            if output._is_view() or storages.count(output.untyped_storage().data_ptr()) > 1
        )
        return ()

    recording.run(run, range(len(recording.inputs)))
    return found


@dataclass(frozen=True)
class Code:
    """Compiled code of both graphs, and gradients of outputs to run it with."""

    halves: _torch.Halves
    forward: Run
    backward: Run
    tangents: Sequence[torch.Tensor]

    def run(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Outputs, then gradients."""
        outputs, extras = self.run_forward(inputs)
        tangents = [
            torch.empty_strided(one.shape, strides, dtype=one.dtype, device=one.device).copy_(one)
            for one, (_, strides) in zip(self.tangents, self.halves.tangents, strict=True)
        ]
        return [*outputs, *self.backward([*self.saved(inputs, outputs, extras), *tangents])]

    def run_forward(self, inputs: Sequence[torch.Tensor]) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        """Outputs, and what else backward needs."""
        results = self.forward(inputs)
        count = len(results) - self.halves.extras
        return results[:count], results[count:]

    def saved(
        self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], extras: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """What backward takes, before gradients."""
        of = {"input": inputs, "output": outputs, "extra": extras}
        return [of[kind][position] for kind, position in self.halves.saved]

    def strides(self, recording: Recording, number: int) -> Sequence[int]:
        """Strides that a result of the forward code has to have."""
        count = len(recording.trace.outputs)
        if number < count:
            return recording.form(number).strides
        return self.halves.strides[self.halves.saved.index(("extra", number - count))]


def misplaced_extras(recording: Recording, code: Code) -> Mapping[int, str]:
    """Extra results of the forward code that share memory with tensors of the program, or have wrong strides."""
    found: dict[int, str] = {}
    count = len(recording.trace.outputs)

    def run(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        outputs, extras = code.run_forward(inputs)
        for position, extra in enumerate(extras):
            form = trace.metadata(extra)
            if not form.fits(replace(form, strides=tuple(code.strides(recording, count + position)))):
                found[count + position] = f"has strides {list(extra.stride())}"
            if any(compare.overlap(extra, one) for one in (*inputs, *outputs)):
                found[count + position] = "shares memory with a tensor of the program"
        return outputs

    recording.run(run, range(len(recording.inputs)))
    return found


def description(halves: _torch.Halves) -> str:
    """What C++ has to know; see ``parse_backward`` in ``cpp/src/runtime/backward.h``."""
    return json.dumps(
        {
            "saved": halves.saved,
            "tangents": [{"output": output, "strides": strides} for output, strides in halves.tangents],
            "gradients": halves.gradients,
        }
    )


def signatures(recording: Recording, halves: _torch.Halves) -> tuple[Signature, Signature]:
    """Signatures of both functions, for the manifest."""
    recorded = recording.trace

    def value(name: str, tensor: torch.Tensor, mutated: bool = False) -> Value:
        return Value(
            name, trace.dtype_name(tensor.dtype), tuple(tensor.shape), mutated=mutated, device=tensor.device.type
        )

    def results(module: torch.fx.GraphModule) -> list[torch.Tensor]:
        return [node.meta["val"] for node in _torch.flatten(module.graph.output_node().args)]

    def inputs(module: torch.fx.GraphModule) -> list[torch.Tensor]:
        return [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]

    forward = Signature(
        name=recorded.name,
        inputs=tuple(
            value(one.name, tensor, position in recorded.mutated)
            for position, (one, tensor) in enumerate(zip(recorded.inputs, inputs(halves.forward), strict=True))
        ),
        outputs=tuple(value(f"out{position}", one) for position, one in enumerate(results(halves.forward))),
    )
    names = [
        *(f"saved{position}" for position in range(len(halves.saved))),
        *(f"grad_out{output}" for output, _ in halves.tangents),
    ]
    backward = Signature(
        name=f"{recorded.name}_backward",
        inputs=tuple(map(value, names, inputs(halves.backward))),
        outputs=tuple(
            value(f"grad_in{position}", one)
            for position, one in zip(halves.gradients, results(halves.backward), strict=True)
        ),
    )
    return forward, backward
