"""What functions take and give: containers, keywords, numbers, nothing, and sizes that only data decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from models.family import Family, batches, family, trained
from torchcc import Method


@family
def dicts() -> Family:
    class Detector(nn.Module):
        """Named features to named results, dicts and lists in one another."""

        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleDict({"boxes": nn.Linear(6, 4), "scores": nn.Linear(6, 2)})

        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            x = features["image"] + sum(features["extras"])
            results = {name: head(x) for name, head in self.heads.items()}
            return {"heads": results, "aux": [x.norm(dim=1), {"best": results["scores"].argmax(1)}]}

    def call(batch: int) -> Method:
        features = {"image": torch.randn(batch, 6), "extras": [torch.randn(batch, 6), torch.randn(6)]}
        return Method((features,), dynamic={"features": {"image": {0: "batch"}, "extras": [{0: "batch"}, None]}})

    return Family(trained(Detector()), {"forward": call}, batches(3, 1, 5))


@dataclass
class State:
    """Inputs and outputs by field."""

    position: Tensor
    velocity: Tensor


class Forces(NamedTuple):
    """Outputs by name."""

    force: Tensor
    energy: Tensor


torch.export.register_dataclass(State, serialized_type_name="torchcc_tests.State")
torch.utils._pytree._register_namedtuple(Forces, serialized_type_name="torchcc_tests.Forces")
# The example arguments are in the file too, and torch.export.load complains about classes that it does not know.
torch.serialization.add_safe_globals([State, Forces])


@family
def dataclasses() -> Family:
    class Integrator(nn.Module):
        """A step of leapfrog integration in a learned potential."""

        def __init__(self) -> None:
            super().__init__()
            self.stiffness = nn.Parameter(torch.rand(3))

        def forward(self, state: State, dt: float) -> tuple[State, Forces]:
            force = -self.stiffness * state.position
            velocity = state.velocity + dt * force
            position = state.position + dt * velocity
            energy = 0.5 * (velocity.square() + self.stiffness * position.square()).sum(-1)
            return State(position, velocity), Forces(force, energy)

    def call(count: int) -> Method:
        state = State(torch.randn(count, 3), torch.randn(count, 3))
        return Method((state, 0.01), dynamic={"state": [{0: "count"}, {0: "count"}]})

    return Family(trained(Integrator()), {"forward": call}, [{"count": 4}, {"count": 1}, {"count": 9}])


@family
def keywords() -> Family:
    class Resampler(nn.Module):
        """Keyword arguments, some of them numbers, strings and nothing, which are burnt in."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 1))

        def forward(
            self,
            x: Tensor,
            *,
            factor: float,
            mode: str,
            times: int = 1,
            flip: bool = False,
            bias: Tensor | None = None,
            gain: Tensor | None = None,
        ) -> Tensor:
            for _ in range(times):
                x = F.interpolate(x, scale_factor=factor, mode=mode) * self.scale
            if flip:
                x = x.flip(-1)
            x = x if bias is None else x + bias
            return x if gain is None else x * gain

    def call(batch: int) -> Method:
        numbers = {"factor": 1.5, "mode": "linear", "times": 2, "flip": True}
        return Method(
            (torch.randn(batch, 3, 8),),
            {"gain": torch.randn(1), "bias": torch.randn(3, 1), **numbers},
            dynamic={"x": {0: "batch"}},
        )

    return Family(trained(Resampler()), {"forward": call}, batches(2, 1, 4))


@family
def static_containers() -> Family:
    class Energy(nn.Module):
        """A dataclass, a named tuple and a list whose sizes are all fixed, beside a tensor with a free one."""

        def forward(self, x: Tensor, state: State, given: Forces, others: list[tuple[Tensor, Tensor]]) -> Tensor:
            (a, b), (c, d) = others
            return x * (state.position - state.velocity) + given.force * given.energy + a - 2 * b + 3 * c - 4 * d

    def call(count: int) -> Method:
        state, given = State(torch.randn(3), torch.randn(3)), Forces(torch.randn(3), torch.randn(()))
        others = [(torch.randn(3), torch.randn(3)) for _ in range(2)]
        return Method((torch.randn(count, 3), state, given, others), dynamic={"x": {0: "count"}})

    return Family(Energy().eval(), {"forward": call}, [{"count": 4}, {"count": 1}, {"count": 9}])


@family
def absent_arguments() -> Family:
    class Optional(nn.Module):
        """``None`` between tensors."""

        def forward(self, x: Tensor, mask: Tensor | None, weight: Tensor) -> Tensor:
            x = x * weight
            return x if mask is None else x.masked_fill(mask, 0)

    return Family(Optional().eval(), {"forward": lambda: Method((torch.randn(3, 4), None, torch.randn(4)))})


@family
def sizes_from_data() -> Family:
    class Picker(nn.Module):
        """Results whose sizes only the data decides, a limit of them, and an argument twice as long as another."""

        def forward(self, pairs: Tensor, other: Tensor) -> dict[str, Tensor]:
            index = torch.nonzero(pairs > 0).flatten()
            torch._check(index.shape[0] <= 100)
            left, right = pairs.view(-1, 2).unbind(1)
            return {
                "index": index,
                "picked": pairs[index] * 2,
                "small": torch.masked_select(other, other.abs() < 1),
                "sum": left + right * other,
                "rows": pairs.view(-1, 2)[other > 0].cumsum(0),
            }

    def call(n: int) -> Method:
        return Method((torch.randn(2 * n), torch.randn(n)), dynamic={"pairs": {0: "2*n"}, "other": {0: "n"}})

    return Family(Picker().eval(), {"forward": call}, [{"n": 4}, {"n": 1}, {"n": 9}])


@family
def sizes_and_nothing() -> Family:
    class Sizes(nn.Module):
        """Results that are numbers and nothing, beside tensors."""

        def forward(self, x: Tensor) -> tuple[Any, ...]:
            rows, columns = x.shape
            return x.t() * columns, rows, None, rows * columns + 1, rows // 2, 7, 0.5, True

    def call(rows: int, columns: int) -> Method:
        return Method((torch.randn(rows, columns),), dynamic={"x": {0: "rows", 1: "columns"}})

    sizes = [{"rows": 3, "columns": 5}, {"rows": 9, "columns": 2}, {"rows": 4, "columns": 4}]
    return Family(Sizes().eval(), {"forward": call}, sizes, ranges={"rows": (2, None), "columns": (2, None)})
