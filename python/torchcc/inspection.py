"""Traces and packages as people read them: ``torchcc inspect``."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from torchcc import cache, operators, package, package_graphs, package_reader, trace, trace_arguments, trace_json
from torchcc.cache import Entry
from torchcc.calling import Ran
from torchcc.errors import ArgumentError, Error, message
from torchcc.signature import Signature, Value
from torchcc.trace import Metadata, Op, Trace
from torchcc.trace_arguments import Argument, Output


def describe(file: Path) -> dict[str, Any]:
    """What a file holds, as JSON.

    Args:
        file: A trace, or segments of lazy mode (``.json``), or a package (``.pt2``).

    Raises:
        ArgumentError: It is neither.
        CaptureError: The trace cannot be read.
        PackageError: The package cannot be read.
    """
    if file.suffix == ".json":
        content = trace_json.load(file)
        if isinstance(content, Mapping) and content.get("format") == trace_json.SEGMENTS:
            return {"file": str(file), "segments": [_segment(one, str(file)) for one in content["segments"]]}
        return {"file": str(file), "trace": describe_trace(trace_json.parse(content, str(file)))}
    if file.suffix == ".pt2":
        return describe_package(file)
    raise ArgumentError(
        message(
            f"{file}: unknown kind of file", expected="a trace (.json) or a package (.pt2)", fix="name one of these"
        )
    )


def text(described: Mapping[str, Any]) -> str:
    """What :func:`describe` gives, as lines for people."""
    lines = []
    if "functions" in described:
        lines.append(f"{described['file']}: {_bytes(described['bytes'])}, written by {described['producer']}")
        for function in described["functions"]:
            lines.extend(_function_lines(function))
    if "trace" in described:
        lines.extend(_trace_lines(described["trace"]))
    for segment in described.get("segments", ()):
        lines.extend(_trace_lines(segment["trace"]))
        lines.extend(_segment_lines(segment))
    return "\n".join(lines).lstrip("\n")


def describe_package(file: Path) -> dict[str, Any]:
    """Functions, variants and the trace of a package."""
    manifest = package_reader.read_manifest(file)
    texts = package_graphs.read_graphs(file, [one["model"] for one in manifest["functions"] if one["graph"]])
    described: dict[str, Any] = {
        "file": str(file),
        "bytes": file.stat().st_size,
        "producer": manifest["producer"],
        "functions": [_function(one, manifest["records"], texts) for one in manifest["functions"]],
    }
    if recorded := package_reader.read_extra(file, package.TRACE):
        described["trace"] = describe_trace(trace_json.parse(json.loads(recorded), str(file)))
    return described


def _function(
    function: Mapping[str, Any], records: Mapping[str, Any], graphs: Mapping[str, package_graphs.Graph]
) -> dict[str, Any]:
    signature = function["signature"]
    graph = graphs.get(function["model"])
    return {
        "name": signature["name"],
        "signature": _signature(signature),
        "inputs": [
            {"name": value["name"], "type": _type(value), "mutated": value["mutated"]} for value in signature["inputs"]
        ],
        "outputs": [{"name": value["name"], "type": _type(value)} for value in signature["outputs"]],
        "mutated": [value["name"] for value in signature["inputs"] if value["mutated"]],
        "graph": function["graph"] in records,
        "group": function["group"],
        "weights": len(graph.used) if graph else 0,
        "weights_bytes": sum(records[record]["size"] for record in graph.records) if graph else 0,
        "variants": [
            {
                "target": variant["target"],
                "torch": variant["torch"],
                "cpu_features": variant["cpu_features"],
                "code_bytes": records[variant["library"]]["size"],
                "into_outputs": bool(variant["library_out"]),
                "weights_as_inputs": len(variant["weights"]),
                "weights_burnt_in": len(graph.used - set(variant["weights"])) if graph else None,
            }
            for variant in function["variants"]
        ],
        "training": [
            {
                "target": training["target"],
                "torch": training["torch"],
                "cpu_features": training["cpu_features"],
                "code_bytes": sum(records[training[key]]["size"] for key in ("library", "library_backward")),
                "gradients": len(training["backward"]["gradients"]),
            }
            for training in function.get("training", ())
        ],
    }


def describe_entry(entry: Entry) -> dict[str, Any]:
    """An entry of the cache: what it is, or why it cannot be read."""
    described: dict[str, Any] = {
        "key": entry.key,
        "bytes": entry.size,
        "used": datetime.fromtimestamp(entry.used).astimezone().isoformat(timespec="seconds"),
    }
    try:
        (function, *_) = describe_package(entry.file)["functions"]
    except Error as error:
        return {**described, "error": str(error)}
    variants = [f"{variant['target']}, torch {variant['torch']}" for variant in function["variants"]]
    return {**described, "signature": function["signature"], "frozen": not function["graph"], "variants": variants}


def cache_text(entries: Sequence[Entry], as_json: bool) -> str:
    """The entries of the cache as JSON, or as lines for people."""
    described = [describe_entry(entry) for entry in entries]
    if as_json:
        return json.dumps({"folder": str(cache.folder()), "limit": cache.limit(), "entries": described}, indent=1)
    rows = [
        (
            one["used"],
            _bytes(one["bytes"]).rjust(10),
            "damaged" if "error" in one else "frozen" if one["frozen"] else "",
            one.get("signature", one["key"]),
        )
        for one in described
    ]
    total = _bytes(sum(entry.size for entry in entries))
    head = f"{cache.folder()}: {len(entries)} entries, {total} of {_bytes(cache.limit())}"
    return "\n".join([head, *_table(rows)])


def _signature(signature: Mapping[str, Any]) -> str:
    return str(Signature.from_json(signature))


def _type(value: Mapping[str, Any]) -> str:
    return Value.from_json(value).type()


def _function_lines(function: Mapping[str, Any]) -> Iterable[str]:
    yield f"\n{function['signature']}"
    if function["mutated"]:
        yield f"  writes into: {', '.join(function['mutated'])}"
    yield "  graph: " + ("torch.export's" if function["graph"] else "none, only compiled code (weights are in it)")
    if function["weights"]:
        size = _bytes(function["weights_bytes"])
        yield f"  weights: {function['weights']}, {size}, shared in the group '{function['group']}'"
    if any("." in value["name"] for value in (*function["inputs"], *function["outputs"])):
        yield f"  inputs: {', '.join(value['name'] for value in function['inputs'])}"
    if len(function["outputs"]) > 1:
        yield f"  outputs: {', '.join(value['name'] for value in function['outputs'])}"
    for variant in function["variants"]:
        out = ", also writes into given outputs" if variant["into_outputs"] else ""
        yield f"  {variant['target']}, torch {variant['torch']}: {_bytes(variant['code_bytes'])} of code{out}"
        if held := _weights_text(variant):
            yield f"    {held}"
        if variant["cpu_features"]:
            yield f"    needs {' '.join(variant['cpu_features'])}"
    for training in function["training"]:
        size = _bytes(training["code_bytes"])
        counted = f"gradients for {training['gradients']} inputs and weights"
        yield f"  {training['target']}, torch {training['torch']}: {size} of code for training, {counted}"


def _weights_text(variant: Mapping[str, Any]) -> str:
    taken, burnt_in = variant["weights_as_inputs"], variant["weights_burnt_in"]
    parts = [f"{taken} weights are inputs"] if taken else []
    parts += [f"{burnt_in} weights are burnt in"] if burnt_in else []
    return ", ".join(parts)


def describe_run(ran: Ran, saved: Sequence[Path]) -> dict[str, Any]:
    """A call in C++, as JSON: what ran, and of each result its form, its first values and its file."""
    return {
        "signature": str(ran.signature),
        **ran.report,
        "outputs": [
            {
                "name": name,
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "sizes": list(tensor.shape),
                "values": [_plain(one) for one in tensor.flatten()[:_FIRST].tolist()],
                "file": str(saved[position]) if saved else None,
            }
            for position, (name, tensor) in enumerate(ran.outputs.items())
        ],
    }


# How many values of a result are shown.
_FIRST = 6


def _plain(value: Any) -> Any:
    """A value that JSON has: complex numbers, infinities and NaN as text."""
    return (
        str(value) if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)) else value
    )


def run_text(described: Mapping[str, Any]) -> str:
    """What :func:`describe_run` gives, as lines for people."""
    backend = " ".join(filter(None, (described["backend"], described["target"])))
    if described["backend"] == "compiled" and described["portable_calls"]:
        backend = f"portable, in place of compiled: {described['portable_reason']}"
    lines = [described["signature"], f"ran: {backend}, loaded in {described['load_seconds'] * 1000:.0f} ms"]
    lines += [f"  passed over {reason}" for reason in described["reasons"]]
    rows = []
    for one in described["outputs"]:
        values = ", ".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in one["values"])
        more = ", ..." if math.prod(one["sizes"]) > _FIRST else ""
        rows.append((one["name"], f"{one['dtype']}{one['sizes']}", f"{values}{more}", one["file"] or ""))
    return "\n".join([*lines, *_table(rows)])


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _segment(content: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """One segment of lazy mode: what became of it, and its operators."""
    return {**content, "trace": describe_trace(trace_json.parse(content["trace"], origin))}


def _segment_lines(segment: Mapping[str, Any]) -> Iterable[str]:
    place = f" at {segment['where']}" if segment["where"] else ""
    more = f"; without that, {segment['next_ops']} more would be part of it" if segment["next_ops"] else ""
    yield f"ended by {segment['end']}{place}{more}"
    runs = f"{segment['replayed']} compiled runs, {segment['recorded']} recorded, {segment['eager']} eager"
    yield f"{segment['state']}: {runs}" + (f"; {segment['reason']}" if segment["reason"] else "")


def describe_trace(recorded: Trace) -> dict[str, Any]:
    """Inputs, operators and outputs of a trace; each operator also as the line that people read."""
    names = _names(recorded)
    return {
        "name": recorded.name,
        "inputs": [
            {
                "name": one.name,
                "kind": one.kind,
                "type": _form(recorded.values[one.value]),
                "module": _module(one.name) if one.kind == "captured" else "",
                "mutated": position in recorded.mutated,
            }
            for position, one in enumerate(recorded.inputs)
        ],
        "operators": [_operator(op, recorded, names) for op in recorded.ops],
        "outputs": [{"name": names[one], "type": _form(recorded.values[one])} for one in recorded.outputs],
        "random": recorded.random,
    }


def _names(recorded: Trace) -> list[str]:
    """Names of values: those of inputs where they are unique, else numbers."""
    names = [f"%{position}" for position in range(len(recorded.values))]
    counts = Counter(one.name for one in recorded.inputs)
    for one in recorded.inputs:
        if counts[one.name] == 1 and one.name:
            names[one.value] = one.name
    return names


def _module(weight: str) -> str:
    """``"encoder.fc1"`` for ``"encoder.fc1.weight"``."""
    return weight.rpartition(".")[0]


def _operator(op: Op, recorded: Trace, names: Sequence[str]) -> dict[str, Any]:
    captured = {one.value: one.name for one in recorded.inputs if one.kind == "captured"}
    used = [
        captured[value] for argument in op.args for value in trace_arguments.tensor_ids(argument) if value in captured
    ]
    return {
        "op": op.name,
        "call": f"{op.name}({', '.join(_arguments(op, names))})",
        "outputs": [_output(output, names) for output in op.outputs],
        "types": [_form(recorded.values[one]) for output in op.outputs for one in _ids(output)],
        "module": next(filter(None, map(_module, used)), ""),
        "autocast": trace.dtype_name(op.autocast) if op.autocast else "",
    }


def _ids(output: Output) -> list[int]:
    if isinstance(output, list):
        return [one for part in output for one in _ids(part)]
    return [output] if isinstance(output, int) else []


def _output(output: Output, names: Sequence[str]) -> str:
    if isinstance(output, list):
        return f"[{', '.join(_output(one, names) for one in output)}]"
    if isinstance(output, Mapping):
        return constant(output["constant"], names)
    return "_" if output is None else names[output]


def _arguments(op: Op, names: Sequence[str]) -> list[str]:
    """Arguments as people write them: without defaults at the end, and keyword-only ones by name."""
    schema = operators.arguments(op.name)
    if schema is None or len(schema) != len(op.args):
        return [constant(argument, names) for argument in op.args]
    positional: list[str] = []
    keywords = []
    last = 0
    for known, argument in zip(schema, op.args, strict=True):
        written = constant(argument, names)
        default = known.has_default and written == constant(trace_arguments.encode(known.default), names)
        if known.keyword_only:
            if not default:
                keywords.append(f"{known.name}={written}")
            continue
        positional.append(written)
        if not default:
            last = len(positional)
    return positional[:last] + keywords


def constant(argument: Argument, names: Sequence[str]) -> str:
    """An argument as people write it: ``1e-05``, ``[1, 2]``, ``'mean'``, ``float32``, ``%3``."""
    if argument is None or isinstance(argument, (bool, int)):
        return str(argument)
    ((kind, content),) = argument.items()
    match kind:
        case "tensor":
            return names[int(content)]
        case "number":
            return f"{names[int(content)]}.item()"
        case "list":
            return f"[{', '.join(constant(one, names) for one in content)}]"
        case "float":
            return repr(trace_arguments.number(content))
        case "size":
            return _size(content, names)
        case "complex":
            return repr(complex(*map(trace_arguments.number, content)))
        case "str":
            return repr(str(content))
    return str(content)


def _size(content: Mapping[str, Any], names: Sequence[str]) -> str:
    """A number that follows from sizes: ``x.size(0)*2 + 1``."""
    if "steps" in content:
        text = _steps(content["steps"], names)
    else:
        terms = []
        for term in content["terms"]:
            product = [f"{names[value]}.size({dim})" for value, dim in term["product"]]
            terms.append("*".join([*([str(term["times"])] if term["times"] != 1 else []), *product]))
        text = " + ".join([*terms, *([str(content["plus"])] if content["plus"] else [])])
        if content["over"] != 1:
            text = f"({text})//{content['over']}"
    forms = {"inverse": "1/({})", "root": "sqrt({})", "inverse_root": "1/sqrt({})", "floating": "float({})"}
    return forms.get(content["form"], "{}").format(text)


def _steps(steps: Sequence[Any], names: Sequence[str]) -> str:
    """What C++ code says itself of a number, in postfix order: see :func:`torchcc.trace_arguments.decode`."""
    stack: list[str] = []
    for step in steps:
        if isinstance(step, str):
            right = stack.pop()
            left = stack.pop()
            stack.append(f"{step}({left}, {right})" if step.isalpha() else f"({left} {step} {right})")
        else:
            stack.append(str(step) if isinstance(step, int) else f"{names[step[0]]}.size({step[1]})")
    return stack.pop()


def _form(metadata: Metadata) -> str:
    """``"float32[8, 128]"``, with strides where they are not those of a contiguous tensor."""
    return metadata.text() if metadata.contiguous() else str(metadata)


def _trace_lines(described: Mapping[str, Any]) -> Iterable[str]:
    inputs = described["inputs"]
    yield f"\n{described['name']}: {len(described['operators'])} operators" + (
        ", draws random numbers" if described["random"] else ""
    )
    yield "inputs"
    rows = [(one["kind"], one["name"], one["type"], "written to" if one["mutated"] else "") for one in inputs]
    yield from _table(rows)
    yield "operators"
    yield from _table([_operator_row(one) for one in described["operators"]])
    yield "outputs"
    yield from _table([(one["name"], one["type"]) for one in described["outputs"]])


def _operator_row(operator: Mapping[str, Any]) -> tuple[str, str, str]:
    outputs = ", ".join(operator["outputs"])
    notes = [f"# {operator['module']}"] if operator["module"] else []
    if operator["autocast"]:
        notes.append(f"autocast {operator['autocast']}")
    return (
        f"{outputs} = {operator['call']}" if outputs else operator["call"],
        ", ".join(operator["types"]),
        " ".join(notes),
    )


def _table(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Rows with aligned columns; a column is not made wider than 80 for a few long cells."""
    widths = [min(80, max(map(len, column))) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
