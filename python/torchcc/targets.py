"""What an export can compile for: machines, and files beside the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torchcc import _torch, mobile
from torchcc.errors import ArgumentError, message, no_such

#: What ``targets`` may hold.
TARGETS = (
    *("portable", "native", "avx2", "avx512"),
    *("standalone", "standalone-avx2", "standalone-avx512", "standalone-scalar", mobile.TARGET),
)

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


def writes_package(targets: Sequence[str]) -> bool:
    """Whether there is a package: unless all targets are files beside it."""
    return not targets or bool(set(targets) - STANDALONE_TARGETS.keys() - {mobile.TARGET})


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
