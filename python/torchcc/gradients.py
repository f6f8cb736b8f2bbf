"""Functions of packages that train: their backward as compiled code, compared with eager PyTorch's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.export import ExportedProgram

from torchcc import _torch, agreement, compare, operators, package, toolchain, workers
from torchcc.errors import CaptureError, CompileError, message
from torchcc.signature import Signature

#: A function of tensors and weights, which it may write into, with autograd's graph.
Function: TypeAlias = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]

#: Compiled code of one direction.
Run: TypeAlias = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


@dataclass(frozen=True)
class Compiled:
    """Forward and backward code, and what C++ has to know of them (see :class:`torchcc.package.Training`)."""

    forward: _torch.Compiled
    backward: _torch.Compiled
    description: Mapping[str, Any]


#: Which gradients code gives, the code with less work first: training on data needs none of the arguments.
KINDS = ("weights", "all")


def compile(
    program: ExportedProgram, weights: Sequence[str], options: Mapping[str, Any], isa: str = "", kind: str = "all"
) -> Compiled:
    """Differentiates a program and compiles both directions.

    Random numbers are PyTorch's own unless the options say otherwise: with Inductor's, nothing could tell whether the
    backward of other numbers is right.

    Args:
        program: With example inputs.
        weights: All weights that the graph uses; the code takes them as inputs.
        options: Inductor's options.
        isa: As :func:`torchcc._torch.cpu_target` takes it.
        kind: One of :data:`KINDS`.

    Raises:
        Exception: Whatever PyTorch raises for operators without a derivative.
        CompileError: The code gives other results than the graph.
    """
    settings = {**({"fallback_random": True} if _torch.draws_random_numbers(program) else {}), **options}
    made = _torch.differentiate(program, weights, operators.for_complex, settings, kind == "all")
    halves = made.halves
    description = describe(made)
    count = len(made.covered)
    copied: dict[int, Sequence[int]] = {}
    while True:
        forward = _torch.compile_graph(
            copy.deepcopy(halves.forward), settings, count + halves.extras, None, copied, isa
        )
        backward = _torch.compile_graph(
            copy.deepcopy(halves.backward), settings, len(halves.gradients), None, halves.copied, isa
        )
        compiled = Compiled(forward, backward, description)
        held = _torch.weights(program)
        example = [one for one in _torch.examples(program) if isinstance(one, torch.Tensor)]
        inputs = [*example, *(held[name] for name in weights)]
        code = Code(_loaded(forward.files), _loaded(backward.files), description)
        misplaced = code.shared_extras(inputs)
        if misplaced and copied:
            raise CompileError("what is kept for backward shares memory with tensors of the program")
        if misplaced:
            extras = [
                strides for (kind, _), strides in zip(halves.saved, halves.strides, strict=True) if kind == "extra"
            ]
            copied.update({count + one: extras[one] for one in misplaced})
            continue
        problem = difference(code, _torch.tensor_function(program, weights), inputs, 0)
        if not problem:
            return compiled
        if "max_fusion_size" in settings:
            raise CompileError(problem)
        # Fused, several scatter_adds of one backward may give wrong sums (torch 2.13).
        settings["max_fusion_size"] = 1


def describe(made: _torch.Differentiated) -> dict[str, Any]:
    """What C++ has to know, as the manifest states it."""
    halves = made.halves
    uncapturable = _torch.uncapturable(halves.forward, halves.backward)
    return {
        **({"uncapturable": uncapturable} if uncapturable else {}),
        "saved": [list(one) for one in halves.saved],
        "tangents": [{"output": output, "strides": None} for output, _ in halves.tangents],
        "gradients": list(halves.gradients),
        "covered": [list(one) for one in made.covered],
        "reached": [list(one) for one in made.reached],
        "random": made.is_random,
    }


def _loaded(files: Sequence[str]) -> Run:
    return _torch.load_library(package.library(files))


def require(subject: str, program: ExportedProgram, signature: Signature) -> None:
    """Raises CaptureError where the backward of a function cannot be compiled."""
    fakes = [one for one in _torch.input_leaves(program) if isinstance(one, torch.Tensor)]
    names = _torch.weight_names(program)
    held = _torch.weights(program)
    problem: tuple[str, str] | None = None
    if any(value.mutated for value in signature.inputs):
        named = ", ".join(value.name for value in signature.inputs if value.mutated)
        problem = f"it writes into {named}", "return the new values in place of writing"
    elif len(fakes) != len(signature.inputs):
        problem = "numbers that Python code takes as such", "take them as tensors of rank 0"
    elif not any(_torch.differentiable(program, names, [*fakes, *(held[name] for name in names)])):
        problem = "no argument and no parameter is a floating point number", "leave training out"
    elif not kinds(program):
        problem = "no result depends on an argument or parameter in a way that autograd knows", "leave training out"
    if problem:
        got, fix = problem
        raise CaptureError(
            message(
                f"{subject}: its backward cannot be compiled",
                expected="a function of tensors that writes into none of them, and results with gradients",
                got=got,
                fix=fix,
            )
        )


def kinds(program: ExportedProgram) -> list[str]:
    """For which of :data:`KINDS` some result of the example has a gradient; one where it is as good as both."""
    names = _torch.weight_names(program)
    held = _torch.weights(program)
    given = [one for one in _torch.examples(program) if isinstance(one, torch.Tensor)]
    inputs = [*given, *(held[name] for name in names)]
    needed = _torch.differentiable(program, names, inputs)
    run = _torch.tensor_function(program, names)
    found = []
    for kind in KINDS:
        grads = [grad and (kind == "all" or position >= len(given)) for position, grad in enumerate(needed)]
        own = [one.detach().clone().requires_grad_(grad) for one, grad in zip(inputs, grads, strict=True)]
        with torch.enable_grad():
            if any(one.requires_grad for one in run(own)):
                found.append(kind)
    return found if any(needed[: len(given)]) else found[-1:]


def training(job: workers.Job, result: workers.Result) -> package.Training:
    """What a job with ``train`` made, for a package."""
    for files in (result.files, result.files_backward):
        toolchain.require_shared_libstdcxx(package.library(files))
    return package.Training(
        files=result.files,
        files_backward=result.files_backward,
        description=result.description,
        exclusive=result.exclusive,
        weights=job.weights,
    )


def receivers(function: package.Function) -> list[str]:
    """What gets gradients from compiled code, for people: names of arguments, and "a weight"; nothing without it."""
    if not function.training:
        return []
    one = max(function.training, key=lambda form: len(form.description["gradients"]))
    arguments = [value.name for value in function.signature.inputs]
    got = one.description["gradients"]
    named = [name for position, name in enumerate(arguments) if position in got]
    return [*named, *(["a weight"] if any(position >= len(arguments) for position in got) else [])]


def code(one: package.Training) -> Code:
    """The code of a package, ready to run."""
    return Code(_loaded(one.files), _loaded(one.files_backward), one.description)


class Code:
    """Compiled code of both directions, ready to run.

    Attributes:
        forward, backward: The code.
        description: What :func:`describe` gives.
    """

    def __init__(self, forward: Run, backward: Run, description: Mapping[str, Any]) -> None:
        """As the attributes say."""
        self.forward = forward
        self.backward = backward
        self.description = description
        self._extras = sum(kind == "extra" for kind, _ in description["saved"])

    def run_forward(self, inputs: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Outputs, and what else backward needs."""
        results = self.forward(inputs)
        count = len(results) - self._extras
        return results[:count], results[count:]

    def run(
        self, inputs: Sequence[torch.Tensor], tangents: Mapping[int, torch.Tensor]
    ) -> tuple[list[torch.Tensor], dict[int, torch.Tensor]]:
        """Outputs, and gradients by input, for gradients by output."""
        outputs, extras = self.run_forward(inputs)
        of = {"input": inputs, "output": outputs, "extra": extras}
        saved = [of[kind][position] for kind, position in self.description["saved"]]
        wanted = [tangents[one["output"]].contiguous() for one in self.description["tangents"]]
        gradients = self.backward([*saved, *wanted])
        return outputs, dict(zip(self.description["gradients"], gradients, strict=True))

    def shared_extras(self, inputs: Sequence[torch.Tensor]) -> set[int]:
        """Extra results of the forward code that share memory with tensors of the program, or with one another.

        The program may write into its tensors before backward runs.
        """
        own = [one.clone() for one in inputs]
        outputs, extras = self.run_forward(own)
        return {
            position
            for position, extra in enumerate(extras)
            if any(compare.overlap(extra, one) for one in (*own, *outputs, *extras[:position]))
        }


def difference(code: Code, function: Function, inputs: Sequence[torch.Tensor], seed: int) -> str:
    """Runs compiled code and a function on the same inputs; says in what they differ, or nothing.

    Args:
        code: The compiled code.
        function: What it was made of, which may write into its inputs.
        inputs: Tensors, then weights; they stay as they are.
        seed: Of random numbers, those that the function draws among them.
    """
    gradients = code.description["gradients"]
    own = [one.detach().clone().requires_grad_(position in gradients) for position, one in enumerate(inputs)]
    torch.manual_seed(seed)
    with torch.enable_grad():
        expected = list(function(own))
    generator = torch.Generator().manual_seed(seed)
    tangents = {
        one["output"]: torch.randn(
            expected[one["output"]].shape, generator=generator, dtype=expected[one["output"]].dtype
        ).to(expected[one["output"]].device)
        for one in code.description["tangents"]
    }
    wanted = torch.autograd.grad(
        [expected[output] for output in tangents],
        [own[position] for position in gradients],
        list(tangents.values()),
        allow_unused=True,
        materialize_grads=True,
    )
    given = [one.detach().clone() for one in inputs]
    torch.manual_seed(seed)
    outputs, got = code.run(given, tangents)
    pairs: list[tuple[str, torch.Tensor, torch.Tensor]] = [
        *((f"result {position}", *both) for position, both in enumerate(zip(outputs, expected, strict=True))),
        *((f"gradient {position}", got[position], one) for position, one in zip(gradients, wanted, strict=True)),
        *((f"input {position}", *both) for position, both in enumerate(zip(given, own, strict=True))),
    ]
    for what, one, other in pairs:
        if not agreement.close(one, other.detach()):
            return f"{what}: {compare.difference(one, other.detach())}"
    return ""


def check(subject: str, code: Code, function: Function, cases: Iterable[tuple[str, Sequence[torch.Tensor]]]) -> str:
    """Compares gradients of compiled code with those of a function, for several sizes.

    Args:
        subject: Who is compared, for messages: ``"region scale"``.
        code: The compiled code.
        function: What it was made of.
        cases: What the sizes are, and the inputs, weights among them.

    Returns:
        What was compared, for people.

    Raises:
        CompileError: They differ, or nothing could be compared.
    """
    compared = 0
    refused: list[str] = []
    for seed, (sizes, inputs) in enumerate(cases):
        try:
            with torch.no_grad():
                function([one.clone() for one in inputs])
        except Exception as error:
            # It cannot do this size itself.
            refused.append(f"{sizes}: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        if problem := difference(code, function, inputs, 2000 + seed):
            raise CompileError(
                message(
                    f"{subject}: the compiled backward differs from eager PyTorch",
                    expected=f"equal within rounding, with {sizes}",
                    got=problem,
                    fix="leave the training form out; compute in float64 to see whether it is rounding",
                )
            )
        compared += 1
    if not compared:
        raise CompileError(
            message(
                f"{subject}: its gradients could not be checked",
                expected="code that runs on random inputs",
                got="\n".join(refused),
                fix="give example values that it accepts",
            )
        )
    return f"gradients at {compared} sets of sizes"


def check_function(function: package.Function, code: Code, weights: Sequence[str]) -> str:
    """The same for a function of a package, which is compared with its graph."""
    assert function.program is not None
    held = _torch.weights(function.program)
    run = _torch.tensor_function(function.program, weights)

    def cases() -> Iterable[tuple[str, Sequence[torch.Tensor]]]:
        for seed, values in enumerate(agreement.size_sets(function)):
            leaves = agreement.inputs(function, values, torch.Generator().manual_seed(3000 + seed))
            given = agreement.tensors(function, leaves)
            yield agreement.sizes_text(values), [*given, *(held[name].detach() for name in weights)]

    return check(f"function {function.signature.name}", code, run, cases())
