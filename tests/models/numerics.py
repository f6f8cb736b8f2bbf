"""Operators of numerical code: precision, complex numbers, statistics, norms, contractions and solvers."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from models.family import Family, batches, family, trained
from torchcc import Method


@family
def mixed_precision() -> Family:
    class Mixed(nn.Module):
        """Matrix products in bfloat16, and an average without gradients."""

        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(10, 16)
            self.two = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = self.two(F.relu(self.one(x)))
                with torch.autocast("cpu", enabled=False):
                    exact = self.one(x)
            with torch.no_grad():
                mean = exact.mean(0)
            return y, exact - mean

    def call(batch: int) -> Method:
        return Method((torch.randn(batch, 10),), dynamic={"x": {0: "batch"}})

    return Family(trained(Mixed()), {"forward": call}, batches(6, 2, 3))


@family
def complex_numbers() -> Family:
    class Spectral(nn.Module):
        """Fourier layers as in neural operators, with complex weights."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3, 6, dtype=torch.complex64))

        def forward(self, signal: Tensor, carrier: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            spectrum = torch.fft.rfft(signal, norm="ortho")[..., :6]
            mixed = torch.einsum("bim,iom->bom", spectrum, self.weight)
            shifted = signal * carrier.conj()
            return (
                torch.fft.irfft(mixed, n=16),
                torch.fft.fft2(shifted),
                torch.view_as_real(mixed).abs() + mixed.abs()[..., None],
            )

    def call(batch: int) -> Method:
        return Method(
            (torch.randn(batch, 3, 16), torch.randn(16, dtype=torch.complex64)), dynamic={"signal": {0: "batch"}}
        )

    return Family(trained(Spectral()), {"forward": call}, batches(2, 1, 3))


@family
def order_statistics() -> Family:
    class Robust(nn.Module):
        """Sorting, ranks and quantiles."""

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            ordered, order = x.sort(dim=-1, descending=True, stable=True)
            best, where = x.topk(3, dim=-1)
            low, high = torch.quantile(x, torch.tensor([0.1, 0.9]), dim=-1, keepdim=True)
            middle = x.median(dim=-1)
            return {
                "clipped": x.clamp(low, high),
                "ordered": ordered.cumsum(-1),
                "ranks": order.argsort(-1),
                "best": best,
                "where": where,
                "middle": middle.values,
                "bins": torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])),
                "above": (x > middle.values[:, None]).sum(-1, dtype=torch.int32),
            }

    def call(rows: int) -> Method:
        return Method((torch.randn(rows, 11),), dynamic={"x": {0: "rows"}})

    return Family(Robust().eval(), {"forward": call}, [{"rows": 4}, {"rows": 1}, {"rows": 9}])


@family
def norms_and_activations() -> Family:
    class Norms(nn.Module):
        """The normalisations and activations that others leave out."""

        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(
                [
                    nn.GroupNorm(2, 6),
                    nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
                    nn.LayerNorm([5, 7], bias=False),
                    nn.LocalResponseNorm(2),
                    nn.BatchNorm2d(6, affine=False),
                ]
            )
            self.activations = nn.ModuleList(
                [nn.ELU(), nn.SELU(), nn.PReLU(6), nn.Mish(), nn.Softplus(), nn.GELU("tanh"), nn.GLU(1), nn.Hardtanh()]
            )
            self.last = nn.Softmax2d()

        def forward(self, x: Tensor) -> Tensor:
            for norm in self.norms:
                x = norm(x)
            for activation in self.activations:
                x = activation(x)
            return self.last(x)

    def call(batch: int) -> Method:
        return Method((torch.randn(batch, 6, 5, 7),), dynamic={"x": {0: "batch"}})

    return Family(trained(Norms()), {"forward": call}, batches(2, 1, 4))


@family
def contractions() -> Family:
    class Contractions(nn.Module):
        """Einstein sums, a tensor train and a bilinear form."""

        def __init__(self) -> None:
            super().__init__()
            self.cores = nn.ParameterList([torch.randn(1, 3, 2), torch.randn(2, 4, 3), torch.randn(3, 5, 1)])
            self.bilinear = nn.Bilinear(3, 4, 6)

        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            train = torch.einsum("aib,bjc,ckd->ijk", *self.cores)
            joined = torch.tensordot(torch.einsum("ni,nj,ijk->nk", a, b, train), c, dims=([1], [0]))
            return joined, self.bilinear(a, b), torch.kron(a[0], b[0]) + torch.linalg.norm(train)

    def call(rows: int) -> Method:
        return Method(
            (torch.randn(rows, 3), torch.randn(rows, 4), torch.randn(5, 2)),
            dynamic={"a": {0: "rows"}, "b": {0: "rows"}},
        )

    sizes = [{"rows": 3}, {"rows": 2}, {"rows": 8}]
    return Family(trained(Contractions()), {"forward": call}, sizes, ranges={"rows": (2, None)})


@family
def linear_algebra() -> Family:
    class GaussianProcess(nn.Module):
        """A posterior in float64: kernels, Cholesky factors and solves, for any number of points."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(3, dtype=torch.float64) + 0.5)

        def forward(self, known: Tensor, values: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            def kernel(a: Tensor, b: Tensor) -> Tensor:
                return torch.exp(-((a[:, None] - b[None]) * self.scale).square().sum(-1))

            gram = kernel(known, known) + 0.1 * torch.eye(known.shape[0], dtype=known.dtype)
            factor = torch.linalg.cholesky(gram)
            mean = kernel(wanted, known) @ torch.cholesky_solve(values[:, None], factor).squeeze(1)
            half = torch.linalg.solve_triangular(factor, kernel(known, wanted), upper=False)
            return mean, 1 - half.square().sum(0), 2 * factor.diagonal().log().sum()

    def call(known: int, wanted: int) -> Method:
        wide = torch.float64
        return Method(
            (torch.randn(known, 3, dtype=wide), torch.randn(known, dtype=wide), torch.randn(wanted, 3, dtype=wide)),
            dynamic={"known": {0: "known"}, "values": {0: "known"}, "wanted": {0: "wanted"}},
        )

    sizes = [{"known": 6, "wanted": 4}, {"known": 3, "wanted": 9}, {"known": 12, "wanted": 2}]
    return Family(trained(GaussianProcess()), {"forward": call}, sizes)
