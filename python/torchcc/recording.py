"""Recorded calls, and whether other runs of their operators give the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch

from torchcc import compare, replay, trace, trace_json
from torchcc.errors import CompileError, Error
from torchcc.replay import Replay
from torchcc.trace import Metadata, Trace

Run: TypeAlias = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]

# Eager runs on slightly changed inputs, to see how much rounding matters; see compare.as_exact.
_TRIES = 4


class RefusedError(CompileError):
    """A trace that is not compiled; ``kind`` is what answers of the compiler process state."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Recording:
    """A trace with the tensors of the recorded call.

    Attributes:
        trace: The operators.
        inputs: As they were before the call.
        expected: Outputs, then gradients, then the contents of mutated inputs after the call.
        random_state: State of the random generator before the call, or ``None``.
        gpu_random_state: The same of the GPU's.
        tangents: In traces that need gradients, gradients of the outputs that require grad.
        gradients: Inputs to which gradients flow from there.
    """

    trace: Trace
    inputs: Sequence[torch.Tensor]
    expected: Sequence[torch.Tensor]
    random_state: torch.Tensor | None
    tangents: Sequence[torch.Tensor] = ()
    gradients: Sequence[int] = ()
    gpu_random_state: torch.Tensor | None = None

    def form(self, position: int) -> Metadata:
        """Form of one of the expected results; the tensors that were saved may have been copied to another."""
        outputs = self.trace.outputs
        if position < len(outputs):
            return self.trace.values[outputs[position]]
        return self.trace.values[self.trace.inputs[self._input(position)].value]

    def label(self, position: int) -> str:
        """What people call one of the expected results."""
        if position < len(self.trace.outputs):
            return f"output {position}"
        one = self.trace.inputs[self._input(position)]
        if self.is_gradient(position):
            return f"gradient of {one.kind} '{one.name}'"
        return f"{one.kind} '{one.name}' after the call"

    def is_gradient(self, position: int) -> bool:
        """Whether one of the expected results is a gradient, whose strides do not matter."""
        return 0 <= position - len(self.trace.outputs) < len(self.gradients)

    def is_unwritten(self, position: int) -> bool:
        """Whether the content of one of the expected results means nothing."""
        return position < len(self.trace.outputs) and self.trace.outputs[position] in self.trace.unwritten

    def _input(self, position: int) -> int:
        return (*self.gradients, *self.trace.mutated)[position - len(self.trace.outputs)]

    def eager(self, exact: bool = False) -> Run:
        """The trace's operators, run one after the other, and autograd's gradients; ``exact``: in float64."""
        recorded = self.trace.widened() if exact else self.trace
        if not recorded.trains:
            return eager(recorded)
        tangents = [trace.widened(one) for one in self.tangents] if exact else self.tangents
        return lambda inputs: [one for one in differentiated(recorded, inputs, tangents) if one is not None]

    def run(self, function: Run, given: Sequence[int], inputs: Sequence[torch.Tensor] | None = None) -> Results:
        """Calls ``function`` on copies of the inputs ``given`` (positions), in the recorded state of the generator."""
        tensors = {position: replay.copy_of((inputs or self.inputs)[position]) for position in given}
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if self.trace.on_gpu else []):
            if self.random_state is not None:
                torch.set_rng_state(self.random_state)
            if self.gpu_random_state is not None:
                torch.cuda.set_rng_state(self.gpu_random_state)
            outputs = list(function([tensors[position] for position in given]))
        shared = {
            (position, f"{self.trace.inputs[other].kind} '{self.trace.inputs[other].name}'")
            for position, output in enumerate(outputs[: len(self.trace.outputs)])
            for other, tensor in tensors.items()
            if compare.overlap(output, tensor)
        } | {
            (position, f"output {other}")
            for position, output in enumerate(outputs[: len(self.trace.outputs)])
            for other in range(position)
            if compare.overlap(output, outputs[other])
        }
        return Results([*outputs, *(tensors[position] for position in self.trace.mutated)], shared)


@dataclass(frozen=True)
class Results:
    """What a call gave: outputs, then contents of mutated inputs; and which outputs share memory with what."""

    tensors: Sequence[torch.Tensor]
    shared: Set[tuple[int, str]]


def load(trace_file: Path, tensors_file: Path) -> Recording:
    """Reads what C++ recorded.

    Raises:
        CaptureError: The trace cannot be read.
    """
    recorded = trace_json.read(trace_file)
    # A tuple of tuples: what C++ writes of lists and dicts is not among what weights_only reads.
    tensors = torch.load(tensors_file, weights_only=True)
    if isinstance(tensors, tuple):
        names = ("inputs", "outputs", "mutated", "random_state", "tangents", "gradients")
        tensors = dict(zip(names, tensors, strict=True))
    state = tensors["random_state"]
    recording = Recording(
        trace=recorded,
        inputs=[tensor.detach().resolve_conj().resolve_neg() for tensor in tensors["inputs"]],
        expected=[tensor.detach() for tensor in (*tensors["outputs"], *tensors["mutated"])],
        random_state=state[0] if state else None,
        gpu_random_state=state[1] if len(state) > 1 else None,
        tangents=tensors.get("tangents", ()),
    )
    return _with_gradients(recording, tensors["gradients"]) if recorded.trains else recording


def _with_gradients(recording: Recording, recorded: Sequence[torch.Tensor | None]) -> Recording:
    """Adds what gradients have to be: ``recorded``, per input that requires grad; else what eager PyTorch gives."""
    outputs = recording.trace.outputs
    tangents = recording.tangents
    if not recorded:
        generator = torch.Generator().manual_seed(len(recording.trace.ops))
        forms = [recording.form(position) for position, needed in enumerate(recording.trace.output_grads) if needed]
        tangents = [torch.randn(form.sizes, dtype=form.dtype, generator=generator).to(form.device) for form in forms]

        def run(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
            nonlocal recorded
            recorded = differentiated(recording.trace, inputs, tangents)[len(outputs) :]
            return ()

        replace(recording, tangents=tangents).run(run, range(len(recording.inputs)))
    leaves = [position for position, one in enumerate(recording.trace.inputs) if one.requires_grad]
    given = [(leaf, one) for leaf, one in zip(leaves, recorded, strict=True) if one is not None]
    expected = recording.expected
    return replace(
        recording,
        expected=[*expected[: len(outputs)], *(one for _, one in given), *expected[len(outputs) :]],
        tangents=tangents,
        gradients=[leaf for leaf, _ in given],
    )


def eager(recorded: Trace) -> Run:
    """A trace's operators, run one after the other."""
    module = Replay(recorded)

    def run(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        with torch.inference_mode(recorded.environment.inference_mode):
            return module(*inputs)  # type: ignore[no-any-return]

    return run


def differentiated(
    recorded: Trace, inputs: Sequence[torch.Tensor], tangents: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    """Runs a trace's operators and autograd; gives outputs, then gradients per input that requires grad.

    A gradient is ``None`` where nothing arrives.
    """
    leaves = [
        one.requires_grad_() if position.requires_grad else one
        for one, position in zip(inputs, recorded.inputs, strict=True)
    ]
    with torch.enable_grad():
        outputs = Replay(recorded)(*leaves)
        gradients = torch.autograd.grad(
            [one for one, needed in zip(outputs, recorded.output_grads, strict=True) if needed],
            [one for one in leaves if one.requires_grad],
            tangents,
            allow_unused=True,
        )
    return [*(one.detach() for one in outputs), *gradients]


def check_replay(recording: Recording) -> Set[tuple[int, str]]:
    """Raises RefusedError unless the trace, run again, does what was recorded; returns what shares memory."""
    try:
        got = recording.run(recording.eager(), range(len(recording.inputs)))
    except Error as error:
        raise RefusedError("mismatch", one_line(error)) from error
    _compare(recording, got.tensors, "the operators, run again, give", trusted=got.tensors)
    return got.shared


def _compare(
    recording: Recording, got: Sequence[torch.Tensor], who: str, trusted: Sequence[torch.Tensor], values: bool = True
) -> None:
    """Raises RefusedError unless results are what was recorded.

    Args:
        recording: What was recorded.
        got: The results.
        who: Who gave them, for messages.
        trusted: Results of eager PyTorch, which tell how much rounding matters: ``got`` or what was recorded.
        values: Compare values too, not only forms.
    """
    if len(got) != len(recording.expected):
        raise RefusedError("mismatch", f"{who} {len(got)} results in place of {len(recording.expected)}")
    references: list[_Reference] = []
    for position, (one, expected) in enumerate(zip(got, recording.expected, strict=True)):
        label = recording.label(position)
        form = trace.metadata(one)
        wanted = recording.form(position)
        fits = (form.dtype, form.sizes) == (wanted.dtype, wanted.sizes) if recording.is_gradient(position) else None
        if not (form.fits(wanted) if fits is None else fits):
            raise RefusedError(
                "mismatch", f"{who} another form of {label}: {form} in place of {recording.form(position)}"
            )
        if not values or compare.close(one, expected) or recording.is_unwritten(position):
            continue
        difference = f"{who} another {label}: largest difference {compare.largest_difference(one, expected):.3g}"
        if not recording.form(position).floating():
            raise RefusedError("mismatch", difference)
        if not references:
            references.append(_reference(recording))
        judged = expected if trusted is got else one
        if not references[0].accepts(position, judged, trusted[position]):
            raise RefusedError("mismatch", difference + references[0].remark)


@dataclass(frozen=True)
class _Reference:
    """Exact results, and eager ones for inputs changed by one rounding; ``remark`` says why there are none."""

    exact: Sequence[torch.Tensor]
    others: Sequence[Sequence[torch.Tensor]]
    precision: float
    remark: str = ""

    def accepts(self, position: int, judged: torch.Tensor, eager: torch.Tensor) -> bool:
        if not self.exact or self.exact[position].shape != eager.shape:
            return False
        others = [other[position] for other in self.others]
        return compare.as_exact(judged, eager, self.exact[position], others, self.precision)


def _reference(recording: Recording) -> _Reference:
    everything = range(len(recording.inputs))
    generator = torch.Generator().manual_seed(0)
    precision = max((torch.finfo(one.dtype).eps for one in recording.trace.values if one.floating()), default=0.0)
    run = recording.eager()
    try:
        widened = [trace.widened(one) for one in recording.inputs]
        exact = recording.run(recording.eager(exact=True), everything, widened).tensors
        others = [
            recording.run(run, everything, [compare.next_to(one, generator) for one in recording.inputs]).tensors
            for _ in range(_TRIES)
        ]
    except Exception as error:
        return _Reference([], [], precision, f" (and float64 does not work: {one_line(error)})")
    return _Reference(exact, others, precision)


def check_artifact(
    recording: Recording, given: Sequence[int], run: Run, shared: Set[tuple[int, str]], values: bool
) -> Mapping[int, str]:
    """Raises RefusedError unless compiled code does what was recorded, but for where it puts its outputs.

    Returns:
        Outputs that lie in memory otherwise than recorded, and how: they share memory with something that they should
        not share it with, or have other strides.
    """
    try:
        got = recording.run(run, given)
    except Exception as error:
        raise RefusedError("mismatch", f"the compiled code failed: {one_line(error)}") from error
    misplaced = {output: f"shares memory with {other}" for output, other in sorted(got.shared - shared)}
    tensors = list(got.tensors)
    for position in range(len(recording.trace.outputs)):
        form, wanted = trace.metadata(tensors[position]), recording.form(position)
        if not form.fits(wanted) and (form.dtype, form.sizes) == (wanted.dtype, wanted.sizes):
            misplaced[position] = f"has strides {list(form.strides)} in place of {list(wanted.strides)}"
            tensors[position] = torch.empty_strided(
                form.sizes, wanted.strides, dtype=form.dtype, device=form.device
            ).copy_(tensors[position])
    _compare(recording, tensors, "the compiled code gives", trusted=recording.expected, values=values)
    for output, other in sorted(shared - got.shared):
        raise RefusedError("mismatch", f"output {output} of the compiled code does not share memory with {other}")
    return misplaced


def one_line(error: BaseException) -> str:
    """What an exception says, without line breaks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, Error):
        return "; ".join(lines[:2])[:400]
    # Of all that the C++ compiler prints, what it says is wrong.
    said = next((line for line in lines if re.search(r"\berror: ", line, re.IGNORECASE)), None)
    return f"{type(error).__name__}: {said or ' '.join(lines[:2])}"[:400]
