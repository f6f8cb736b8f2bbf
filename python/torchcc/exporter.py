"""``torchcc.export``: whole models to packages that C++ loads, with compiled code for some machines or with none."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from torchcc import (
    _torch,
    agreement,
    gradients,
    mobile,
    package,
    sizes,
    standalone,
    standalone_check,
    toolchain,
    workers,
)
from torchcc.errors import ArgumentError, CaptureError, message, no_such, reason
from torchcc.signature import Signature, Symbol, Value

#: What ``targets`` may hold.
TARGETS = (
    *("portable", "native", "avx2", "avx512"),
    *("standalone", "standalone-avx2", "standalone-avx512", "standalone-scalar", mobile.TARGET),
)


@dataclass(frozen=True)
class Method:
    """How a method of a module is called: example arguments, and which of their sizes may be others.

    Attributes:
        args: Example positional arguments: tensors, numbers, and tuples, lists, dicts and dataclasses of them.
        kwargs: Example keyword arguments.
        dynamic: As :func:`export` takes it.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic: Any = None


@dataclass(frozen=True)
class Exported:
    """What an export wrote: the file, how the code of each function and target was checked, and the signatures.

    With a standalone target there are ``sources``, with ``mobile`` a file for ExecuTorch; with no other target, there
    is no package.
    """

    package: Path
    checks: Mapping[str, str]
    signatures: tuple[Signature, ...]
    sources: standalone.Emitted | None = None
    mobile: Path | None = None


def export(
    file: Path | str,
    module: torch.nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Any = None,
    ranges: Mapping[str, tuple[int, int | None]] | None = None,
    targets: Sequence[str] = ("native",),
    methods: Mapping[str, Method] | None = None,
    updatable: bool = False,
    train: bool = False,
    options: Mapping[str, Any] | None = None,
    imports: Sequence[Path | str] = (),
    progress: Callable[[str, int, int], None] | None = None,
    weights: str = "embedded",
    libraries: Sequence[str] = (),
    march: str = "",
) -> Exported:
    """Exports a module with ``torch.export`` and writes a package.

    The package always holds the portable graph. Call ``module.eval()`` first: the module is taken as it is. What is no
    tensor among the example arguments (numbers, strings, ``None``) is burnt in; the C++ function takes tensors only.

    Args:
        file: Where to write, e.g. ``model.pt2``.
        module: The model, on the CPU or on one GPU; see docs/cuda.md.
        args: Example positional arguments of ``forward``.
        kwargs: Example keyword arguments of ``forward``.
        dynamic: Which sizes may be others than in the example: what ``torch.export.export`` takes as
            ``dynamic_shapes``, where a dimension may also be a name, ``{"ids": {0: "batch", 1: "length"}}``, or follow
            from one that another dimension is: ``"2*length"``.
        ranges: Allowed values (minimum, maximum) of names, both ends included; a maximum of ``None`` is no limit.
            Default: 1 and up, or 2 and up where the code does something else for 1.
        targets: What to compile for: ``"native"`` (this machine), ``"avx2"``, ``"avx512"``; ``"portable"`` compiles
            nothing. At run time the first that fits is used, else the portable graph. ``"standalone"``, or
            ``"standalone-avx2"``, ``"standalone-avx512"`` and, for any machine, ``"standalone-scalar"``, writes C++
            sources that need no libtorch into the folder ``model.standalone`` beside the package; ``"mobile"`` writes
            ``model.pte`` for ExecuTorch there. The package is left out if there is no other target.
        methods: Methods to export in place of ``forward``, each under its name; they share their weights.
        updatable: Compile code that takes the weights as inputs, so that they can be replaced at run time. By default
            they are folded and packed into it, which is faster, and a weight that is replaced leaves the portable graph
            to run.
        train: Also compile forward and backward for training, and take the weights as inputs everywhere. Where an
            argument or a weight requires grad, C++ then runs that code in place of the graph. Its gradients are those
            of all arguments and parameters. Set the module's mode first: ``module.train()`` trains its dropout and the
            statistics of its batch norm, which are buffers of the function.
        options: Options of Inductor.
        imports: Python files, names of modules, and shared libraries that define custom operators of the model, already
            loaded here; the processes that compile load them too.
        progress: Called with a title, the steps done and the steps in all.
        weights: Where a standalone program has its weights: ``"embedded"``, or in a ``"file"``.
        libraries: What a standalone program may link for operators that Inductor does not generate: ``"onednn"``.
        march: The compiler's ``-march`` for standalone sources; by default the least that they need.

    Raises:
        ArgumentError: A target, a method or a range makes no sense.
        CaptureError: ``torch.export`` cannot capture the module, C++ could not call it, or ``train`` is set and its
            backward cannot be compiled.
        CompileError: The compiler failed, or its code gives other results or gradients than the graph.
        OSError: The file cannot be written.
    """
    check_targets(targets)
    standalone_isa(targets)
    standalone.check_weights(weights)
    standalone.check_libraries(libraries)
    given = dict(methods or {"forward": Method(args, dict(kwargs or {}), dynamic)})
    if methods and (args or kwargs or dynamic):
        raise ArgumentError(
            message(
                "torchcc.export: there are arguments for forward, and methods",
                expected="one of both",
                got="both",
                fix='put them into methods={"forward": torchcc.Method(...)}',
            )
        )
    calls = [_call(module, name, method) for name, method in given.items()]
    known = {size for call in calls for size in call.sizes}
    if unknown := set(ranges or {}) - known:
        raise ArgumentError(
            no_such(
                f"torchcc.export: there is a range for '{min(unknown)}', which is no size",
                min(unknown),
                sorted(known) or ["no ranges, as no size is dynamic"],
                fix="correct the name, or name the size in dynamic=",
            )
        )
    functions = [_function(call, ranges or {}) for call in calls]
    return write(
        Path(file),
        functions,
        targets,
        updatable,
        dict(options or {}),
        imports,
        progress,
        train,
        weights,
        libraries,
        march,
    )


def write(
    file: Path,
    functions: Sequence[package.Function],
    targets: Sequence[str],
    updatable: bool,
    options: Mapping[str, Any],
    imports: Sequence[Path | str] = (),
    progress: Callable[[str, int, int], None] | None = None,
    train: bool = False,
    weights: str = "embedded",
    libraries: Sequence[str] = (),
    march: str = "",
) -> Exported:
    """Writes functions for all targets: a package, and sources. The arguments are those of :func:`export`.

    Raises:
        ArgumentError: A target makes no sense.
        CaptureError: PyTorch cannot store a graph.
        CompileError: As :func:`export`.
        OSError: A file cannot be written.
    """
    wanted, isa = check_targets(targets), standalone_isa(targets)
    exported = Exported(file, {}, tuple(one.signature for one in functions))
    if not targets or set(targets) - STANDALONE_TARGETS.keys() - {mobile.TARGET}:
        exported = compile_functions(file, functions, wanted, updatable, options, imports, progress, train)
    if isa is not None:
        exported = _with_sources(exported, functions, isa, options, imports, weights, libraries, progress, march)
    if mobile.TARGET in targets:
        written = mobile.write(file.with_suffix(".pte"), functions, progress)
        exported = replace(exported, checks={**exported.checks, **written.checks}, mobile=written.file)
    return exported


def _with_sources(
    exported: Exported,
    functions: Sequence[package.Function],
    isa: str,
    options: Mapping[str, Any],
    imports: Sequence[Path | str],
    weights: str,
    libraries: Sequence[str],
    progress: Callable[[str, int, int], None] | None,
    march: str,
) -> Exported:
    """Writes the sources of functions beside their package."""
    files = tuple(str(one if workers.is_module(Path(one)) else Path(one).resolve()) for one in imports)
    own = [
        standalone.Source(
            one, options=options, imports=files if one.program and _torch.uses_custom_operators(one.program) else ()
        )
        for one in functions
    ]
    name = re.sub(r"\W", "_", exported.package.stem)

    def check(emitted: standalone.Emitted) -> Mapping[str, str]:
        with standalone_check.built(emitted, name) as program:
            return {
                f"{one.signature.name}, standalone": agreement.compare(
                    one, program.run(one.signature), standalone.states(one)
                )
                for one in functions
            }

    with tempfile.TemporaryDirectory(prefix="torchcc-log-") as logs:
        emitted = standalone.emit(
            exported.package.with_name(f"{name}.standalone"),
            name,
            name,
            [exported.package.name],
            own,
            weights=weights,
            isa=isa,
            libraries=libraries,
            march=march,
            log_folder=Path(logs),
            progress=progress,
            check=check,
        )
    return replace(exported, checks={**exported.checks, **emitted.checks}, sources=emitted)


#: Targets that are sources, and the instruction set of each; empty for this machine's.
STANDALONE_TARGETS: Mapping[str, str] = {
    "standalone": "",
    "standalone-avx2": "avx2",
    "standalone-avx512": "avx512",
    "standalone-scalar": "scalar",
}


def standalone_isa(targets: Sequence[str]) -> str | None:
    """The instruction set of the one standalone target; ``None`` where there is none.

    Raises:
        ArgumentError: There are several.
    """
    found = [one for one in dict.fromkeys(targets) if one in STANDALONE_TARGETS]
    if len(found) > 1:
        raise ArgumentError(
            message(
                "sources are written for one instruction set",
                expected="one standalone target",
                got=", ".join(found),
                fix="leave all but one out, or export twice, to other places",
            )
        )
    return STANDALONE_TARGETS[found[0]] if found else None


def refuse_sources(targets: Sequence[str]) -> None:
    """Raises ArgumentError for targets that are files beside a package, where a package alone is written."""
    for target in targets:
        if target in STANDALONE_TARGETS or target == mobile.TARGET:
            raise ArgumentError(
                message(
                    f"the target '{target}' cannot be written here",
                    expected="targets of a package",
                    got=target,
                    fix=f"export a package (portable), and make it of that: torchcc compile model.pt2 -o model.pt2 "
                    f"--target {target}",
                )
            )


def check_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """The targets to compile for, the best first.

    Raises:
        ArgumentError: One is unknown, or cannot be compiled for here.
        CompileError: ExecuTorch, which one needs, is missing.
    """
    wanted = []
    for target in dict.fromkeys(targets):
        if target not in TARGETS:
            raise ArgumentError(no_such(f"unknown target '{target}'", target, TARGETS))
        isa = STANDALONE_TARGETS.get(target, "" if target == "native" else target)
        if target == mobile.TARGET:
            mobile.require()
        if target in ("portable", mobile.TARGET):
            continue
        name, _, _ = _torch.cpu_target(isa)
        if isa not in ("", "scalar") and not name.endswith(isa):
            raise ArgumentError(
                message(
                    f"the target '{target}' cannot be compiled on this machine",
                    expected=f"a CPU that has {target}, on which the code can be checked",
                    got=_torch.cpu_target()[0],
                    fix=f"leave it out here, and add it with `torchcc compile --target {target}` on such a machine",
                )
            )
        if target not in STANDALONE_TARGETS:
            wanted.append((name, isa))
    wanted.sort(key=lambda one: "avx512" not in one[0])
    return tuple(isa for _, isa in dict(wanted).items())


@dataclass(frozen=True)
class _Call:
    """A method to export.

    Attributes:
        title: For messages: ``Net.forward``.
        name: Of the method, and of the function.
        module: With the method as ``forward``.
        method: The example.
        arguments: The example by the names of the parameters.
        dynamic: What the user said of each argument, and ``None`` for the others.
        sizes: The names in it.
    """

    title: str
    name: str
    module: torch.nn.Module
    method: Method
    arguments: Mapping[str, Any]
    dynamic: Any
    sizes: frozenset[str]


def _call(module: torch.nn.Module, name: str, method: Method) -> _Call:
    if not callable(getattr(module, name, None)):
        raise ArgumentError(
            message(
                f"torchcc.export: the module has no method '{name}'",
                expected="the name of a method",
                got=f"a {type(module).__name__}",
                fix="correct the name",
            )
        )
    called = _with_forward(module, name)
    arguments = _arguments(called, name, method)
    dynamic = _complete(method.dynamic, arguments)
    return _Call(
        f"{type(module).__name__}.{name}", name, called, method, arguments, dynamic, frozenset(_names_in(dynamic))
    )


def _function(call: _Call, ranges: Mapping[str, tuple[int, int | None]]) -> package.Function:
    """Exports a method. A size without a range begins at 1, or at 2 if the code needs that."""
    free = call.sizes - ranges.keys()
    narrowed: Set[str] = frozenset()
    while True:
        smallest = {size: (2 if size in narrowed else 1, None) for size in free}
        try:
            return _exported(call, {**smallest, **ranges})
        except CaptureError as error:
            if narrowed == free:
                raise
            # Those that torch.export names, if there are new ones; then all.
            named = free & _violated(error.__cause__)
            narrowed = narrowed | named if named - narrowed else free


def _violated(error: BaseException | None) -> set[str]:
    """The sizes that torch.export found to decide what the code does."""
    found = re.search(r"Constraints violated \((.+?)\)", str(error))
    return set(found[1].split(", ")) if found else set()


def _exported(call: _Call, ranges: Mapping[str, tuple[int, int | None]]) -> package.Function:
    dims = {size: Dim(size, min=ranges[size][0], max=ranges[size][1]) for size in call.sizes}
    dynamic = _with_dims(call.dynamic, dims)
    try:
        program = _torch.export(
            call.module,
            _torch.contiguous(tuple(call.method.args)),  # as C++ gives them
            dynamic,
            prefer_general=any(ranges[size][0] < 2 for size in call.sizes),
            kwargs=_torch.contiguous(dict(call.method.kwargs)),
        )
    except Exception as error:
        violated = sorted(_violated(error))
        raise CaptureError(
            message(
                f"{call.title}: torch.export cannot capture it",
                expected="code whose operators do not depend on values, and on sizes only as dynamic= says",
                got=reason(error),
                fix=f'say for which sizes the code does the same: ranges={{"{violated[0]}": (2, 64)}}, for instance'
                if violated
                else "see the message; torch.cond and torch.where replace branches on values",
            )
        ) from error
    names = _names_of(program, _torch.dynamic_leaves(call.arguments, dynamic) if dynamic is not None else {})
    function = package.Function(signature_of(program, call.name, names), program, (), group="model")
    _check_guards(function, call)
    return function


def _check_guards(function: package.Function, call: _Call) -> None:
    """Refuses a graph that is not right for all sizes that its signature allows."""
    assert function.program is not None
    for values in agreement.size_sets(function):
        leaves = agreement.inputs(function, values, torch.Generator().manual_seed(0))
        if guard := _torch.broken_guard(function.program, call.module, leaves):
            at = ", ".join(f"{name} = {value}" for name, value in values.items())
            raise CaptureError(
                message(
                    f"{call.title}: it does something else for some sizes",
                    expected=f"code that does the same with {at}",
                    got=f"a branch; the graph holds where {guard}",
                    fix="leave these sizes out with ranges=, for instance (2, None), or change the code",
                )
            )


def _arguments(module: torch.nn.Module, name: str, method: Method) -> dict[str, Any]:
    try:
        return _torch.named_arguments(module, tuple(method.args), method.kwargs)
    except TypeError as error:
        raise ArgumentError(
            message(
                f"{type(module).__name__}.{name}: it does not take these arguments",
                expected="arguments that a call in Python could have",
                got=str(error),
                fix="correct args= and kwargs=",
            )
        ) from error


def _complete(dynamic: Any, tree: Any) -> Any:
    """``dynamic`` with ``None`` for everything that it leaves out."""
    if isinstance(tree, Mapping) and (dynamic is None or isinstance(dynamic, Mapping)):
        if dynamic is not None and (unknown := set(dynamic) - set(tree)):
            name = min(map(str, unknown))
            raise ArgumentError(
                no_such(f"torchcc.export: dynamic= has '{name}', which is no argument", name, map(str, tree))
            )
        return {key: _complete((dynamic or {}).get(key), one) for key, one in tree.items()}
    if type(tree) in (tuple, list) and (dynamic is None or len(dynamic) == len(tree)):
        # torch.export wants a tuple where the argument is one.
        return type(tree)(_complete(one, leaf) for one, leaf in zip(dynamic or [None] * len(tree), tree, strict=True))
    if isinstance(tree, tuple) and hasattr(tree, "_fields") and (dynamic is None or len(dynamic) == len(tree)):
        return type(tree)(*_complete(list(dynamic) if dynamic else None, list(tree)))
    parts = _torch.parts(tree)
    if parts is not None and (dynamic is None or (type(dynamic) in (tuple, list) and len(dynamic) == len(parts))):
        return [_complete(one, leaf) for one, leaf in zip(dynamic or [None] * len(parts), parts, strict=True)]
    return dynamic


def _names_in(tree: Any) -> Iterator[str]:
    """The names of sizes in ``dynamic``."""
    if isinstance(tree, str):
        yield from sizes.symbols(_size(tree))
    elif isinstance(tree, Mapping | tuple | list):
        for one in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _names_in(one)


def _size(text: str) -> sizes.Size:
    """A size as ``dynamic`` has it: a name, or an expression of one."""
    try:
        return sizes.parse(text)
    except ValueError as error:
        raise ArgumentError(
            message(
                f"torchcc.export: dynamic= has '{text}', which is no size",
                expected='a name, or one of which another size follows, as "2*n" or "n+1"',
                got=str(error),
                fix="correct it",
            )
        ) from error


def _with_dims(tree: Any, dims: Mapping[str, Any]) -> Any:
    """``dynamic`` with :class:`torch.export.Dim` in place of names."""
    if isinstance(tree, str):
        return sizes.substituted(_size(tree), dims)
    if isinstance(tree, Mapping):
        return {key: _with_dims(one, dims) for key, one in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(_with_dims(one, dims) for one in tree)
    if isinstance(tree, tuple):
        return type(tree)(*(_with_dims(one, dims) for one in tree))
    return tree


def _with_forward(module: torch.nn.Module, name: str) -> torch.nn.Module:
    """The module with one of its methods as ``forward``."""
    return module if name == "forward" else _torch.with_forward(module, getattr(type(module), name))


def _names_of(program: ExportedProgram, dynamic: Mapping[str, Any]) -> dict[Any, str]:
    """The names that ``dynamic`` gives to symbols, from what it says about each leaf."""
    names: dict[Any, str] = {}
    input_names, _ = _torch.leaf_names(program)
    for input_name, leaf in zip(input_names, _torch.input_leaves(program), strict=True):
        dimensions = dynamic.get(input_name)
        if not isinstance(leaf, torch.Tensor) or not dimensions:
            continue
        for position, dim in dimensions.items() if isinstance(dimensions, Mapping) else enumerate(dimensions):
            symbol = _torch.plain_symbol(leaf.shape[position])
            name = getattr(dim, "__name__", "")
            if symbol is not None and name.isidentifier():
                names.setdefault(symbol, name)
    return names


def signature_of(program: ExportedProgram, name: str, names: Mapping[Any, str] | None = None) -> Signature:
    """The signature of an exported program.

    Args:
        program: From ``torch.export``, or loaded from a file.
        name: The function's name.
        names: Names of symbols; the others are named after the input in which they are first.

    Raises:
        CaptureError: C++ could not call it.
    """
    input_names, output_names = _torch.leaf_names(program)
    written = _written(program, name)
    known = dict(names or {})
    leaves = _torch.input_leaves(program)
    mutated = {input_names[position] for position in _torch.positions(program, written)}
    for input_name, leaf in zip(input_names, leaves, strict=True):
        for position, size in enumerate(leaf.shape if isinstance(leaf, torch.Tensor) else ()):
            symbol = _torch.plain_symbol(size)
            if symbol is not None:
                known.setdefault(symbol, f"{input_name.replace('.', '_')}_{position}")
    inputs = tuple(
        _value(name, input_name, leaf, known, input_name in mutated)
        for input_name, leaf in zip(input_names, leaves, strict=True)
        if isinstance(leaf, torch.Tensor | torch.SymInt | torch.SymFloat | torch.SymBool)
    )
    results = _torch.outputs(program)
    outputs = tuple(
        _value(name, output_name, result, known)
        if isinstance(result, torch.Tensor)
        else Value(output_name, _torch.number_dtype(result))
        for output_name, result in zip(output_names, results, strict=True)
        if result is not None and not isinstance(result, str)
    )
    plain = {size for value in inputs for size in value.sizes if isinstance(size, str)}
    used = {symbol for value in (*inputs, *outputs) for size in value.sizes for symbol in sizes.symbols(size)}
    for value in inputs:
        for one in value.sizes:
            if one is None or sizes.symbols(one) - plain:
                raise CaptureError(
                    message(
                        f"{name}: the size of the argument '{value.name}' follows from no other",
                        expected="for each free size an argument that has just it",
                        got=value.type(),
                        fix="make the size itself dynamic, not a multiple of it",
                    )
                )
    ranges = {known[symbol]: bounds for symbol, bounds in _torch.size_ranges(program).items() if symbol in known}
    symbols = tuple(Symbol(symbol, *ranges.get(symbol, (0, None))) for symbol in dict.fromkeys(known.values()))
    return Signature(name, inputs, outputs, tuple(symbol for symbol in symbols if symbol.name in used | plain))


def _written(program: ExportedProgram, name: str) -> frozenset[str]:
    """Names of the inputs that the graph writes into."""
    try:
        written, _ = _torch.mutations(program)
    except Exception as error:
        raise CaptureError(
            message(
                f"{name}: PyTorch cannot bring its graph into a form without writes",
                expected="in-place operators only on tensors whose elements each have memory of their own",
                got=reason(error),
                fix="clone what overlaps itself, as unfold() and expand() give it, before writing into it",
            )
        ) from error
    return written


def _value(function: str, name: str, leaf: Any, names: Mapping[Any, str], mutated: bool = False) -> Value:
    if not isinstance(leaf, torch.Tensor):
        minimum, maximum = _torch.number_range(leaf)
        return Value(name, _torch.number_dtype(leaf), number=True, minimum=minimum, maximum=maximum)
    if leaf.device.type not in ("cpu", "cuda") or leaf.layout != torch.strided:
        raise CaptureError(
            message(
                f"{function}: '{name}' is not a dense tensor on the CPU or on a GPU",
                expected="dense tensors on the CPU, or on a GPU by CUDA",
                got=f"{leaf.layout} on {leaf.device}",
                fix="export the model with such tensors",
            )
        )
    dtype = str(leaf.dtype).removeprefix("torch.")
    shape = tuple(_torch.read_size(size, names) for size in leaf.shape)
    return Value(name, dtype, shape, mutated=mutated, device=leaf.device.type)


def compile_functions(
    file: Path,
    functions: Sequence[package.Function],
    targets: Sequence[str],
    updatable: bool,
    options: Mapping[str, Any],
    imports: Sequence[Path | str] = (),
    progress: Callable[[str, int, int], None] | None = None,
    train: bool = False,
) -> Exported:
    """Compiles functions for targets, compares the code with the graphs, and writes a package.

    Variants that the functions have stay; one for the same target and of the same kind goes. ``targets`` is what
    :func:`check_targets` gives.

    Raises:
        CaptureError: PyTorch cannot store a graph.
        CompileError: The compiler failed, or its code gives other results than the graph.
        OSError: The file cannot be written.
    """
    tell = progress or (lambda title, done, total: None)
    if targets:
        toolchain.require_compiler()
    with tempfile.TemporaryDirectory(prefix="torchcc-") as folder:
        work = Path(folder)
        files = tuple(str(one if workers.is_module(Path(one)) else Path(one).resolve()) for one in imports)
        jobs: list[workers.Job] = []
        owners: list[tuple[int, str]] = []
        for position, function in enumerate(functions):
            program = function.program
            assert program is not None
            _check_devices(function.signature.name, program, targets)
            saved = work / f"{position}.pt2"
            if targets:
                if train:
                    gradients.require(f"function {function.signature.name}", program, function.signature)
                with package.storing([function.signature.name]):
                    _torch.save(_torch.without_own_containers(program), saved)
            for isa in targets:
                for kind in ["", *(gradients.kinds(program) if train else [])]:
                    owners.append((position, isa))
                    jobs.append(_job(function, saved, isa, updatable or train, kind, options, files))
        done = [0]

        def finished(job: workers.Job, result: workers.Result) -> None:
            done[0] += 1
            tell(f"compiled {job.title} in {result.seconds:.0f} s", done[0], 2 * len(jobs))

        tell("compiling", 0, 2 * len(jobs))
        results = workers.compile_all(jobs, finished)
        made: list[list[package.Variant]] = [[] for _ in functions]
        trained: list[list[package.Training]] = [[] for _ in functions]
        checks: dict[str, str] = {}
        for number, ((position, isa), job, result) in enumerate(zip(owners, jobs, results, strict=True)):
            tell(f"verifying {job.title}", len(jobs) + number, 2 * len(jobs))
            function = functions[position]
            assert function.program is not None
            target, features = _torch.target(_torch.device_of(function.program), isa, options)
            title = f"{function.signature.name}, {target}"
            if job.train:
                one = gradients.training(job, result)
                compared = gradients.check_function(function, gradients.code(one), one.weights)
                checks[title] = f"{checks[title]}; {compared} ({job.train})"
                trained[position].append(replace(one, target=target, cpu_features=features))
                continue
            library = package.library(result.files)
            toolchain.require_shared_libstdcxx(library)
            checks[title] = agreement.compare(function, library, job.weights)
            made[position].append(
                package.Variant(
                    files=result.files,
                    exclusive=result.exclusive,
                    weights=job.weights,
                    target=target,
                    cpu_features=features,
                    uncapturable=_torch.uncapturable(function.program),
                )
            )
        whole = [
            replace(
                one,
                variants=package.joined(one.variants, variants),
                training=package.joined(one.training, training),
            )
            for one, variants, training in zip(functions, made, trained, strict=True)
        ]
        package.write(file, whole)
    return Exported(file, checks, tuple(one.signature for one in functions))


def _check_devices(name: str, program: ExportedProgram, targets: Sequence[str]) -> None:
    """Refuses what there is no code for: several GPUs in one model, and a choice of CPU code for one on a GPU."""
    gpus = sorted(_torch.gpus(program))
    if len(gpus) > 1:
        raise CaptureError(
            message(
                f"function {name}: its tensors are on several GPUs",
                expected="a model on one GPU",
                got=", ".join(gpus),
                fix="move the module and the example arguments to one device before they are exported",
            )
        )
    if gpus and any(targets):
        raise ArgumentError(
            message(
                f"function {name}: the target '{next(filter(None, targets))}' is for models on the CPU",
                expected="native, or portable, for a model on a GPU",
                got=", ".join(filter(None, targets)),
                fix="leave the target out",
            )
        )


def _job(
    function: package.Function,
    saved: Path,
    isa: str,
    updatable: bool,
    kind: str,
    options: Mapping[str, Any],
    imports: tuple[str, ...],
) -> workers.Job:
    """What to compile for a target: the code for calls without gradients, or the code that gives some ``kind``."""
    program = function.program
    assert program is not None
    _, written = _torch.mutations(program)
    weights = _torch.weight_names(program) if updatable else sorted(written)
    suffix = f", gradients of {kind}" if kind else ""
    target, _ = _torch.target(_torch.device_of(program), isa, options)
    return workers.Job(
        title=f"function {function.signature.name} for {target}{suffix}",
        program=str(saved),
        into_outputs=False,
        # On GPUs, Inductor would keep 16-bit weights as float32 where its kernels compute with that.
        options={**({} if updatable or _torch.device_of(program) == "cuda" else {"freezing": True}), **options},
        imports=imports if _torch.uses_custom_operators(program) else (),
        log=f"{saved.with_suffix('')}-{isa}{kind and f'-{kind}'}.log",
        weights=tuple(weights),
        isa=isa,
        train=kind,
    )
