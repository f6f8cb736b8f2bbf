"""Networks of linear layers: over rows, graphs and categories."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from models.family import Family, batches, family, trained
from torchcc import Method


class MLP(nn.Module):
    """Linear layers with an activation between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        return self.layers[-1](x)


@family
def mlp() -> Family:
    def call(batch: int) -> Method:
        return Method((torch.randn(batch, 12),), dynamic={"x": {0: "batch"}})

    return Family(trained(MLP(12, 32, 32, 5)), {"forward": call}, batches(4, 1, 9))


@family
def graph_network() -> Family:
    class GraphNetwork(nn.Module):
        """Messages along edges, added up and reduced per node, for graphs of any size."""

        def __init__(self) -> None:
            super().__init__()
            self.message = MLP(8 + 3, 16, 8)
            self.update = MLP(24, 16, 4)

        def forward(self, nodes: Tensor, edges: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
            source, target = edges.unbind(0)
            messages = self.message(torch.cat([nodes[source], features], dim=1))
            total = torch.zeros_like(nodes).index_add(0, target, messages)
            largest = torch.full_like(nodes, -1.0).scatter_reduce(
                0, target[:, None].expand_as(messages), messages, "amax", include_self=True
            )
            degree = torch.zeros(nodes.shape[0], dtype=torch.int64).index_add_(0, target, torch.ones_like(target))
            mean = total / degree.clamp(min=1)[:, None]
            return self.update(torch.cat([total, largest, mean], dim=1)), degree

    def call(nodes: int, edges: int) -> Method:
        return Method(
            (torch.randn(nodes, 8), torch.randint(0, nodes, (2, edges)), torch.randn(edges, 3)),
            dynamic={"nodes": {0: "nodes"}, "edges": {1: "edges"}, "features": {0: "edges"}},
        )

    sizes = [{"nodes": 6, "edges": 15}, {"nodes": 20, "edges": 7}, {"nodes": 2, "edges": 40}]
    return Family(trained(GraphNetwork()), {"forward": call}, sizes)


@family
def recommendation() -> Family:
    class Recommendation(nn.Module):
        """Bags of categories and dense features, and the products of each two, as in DLRM."""

        def __init__(self) -> None:
            super().__init__()
            modes = ("sum", "mean", "max")
            self.bags = nn.ModuleList(nn.EmbeddingBag(30 + i, 6, mode=mode) for i, mode in enumerate(modes))
            self.bottom = MLP(5, 16, 6)
            self.top = MLP(6 + 6, 16, 1)

        def forward(self, dense: Tensor, indices: list[Tensor], offsets: list[Tensor]) -> Tensor:
            x = self.bottom(dense)
            found = [bag(i, o) for bag, i, o in zip(self.bags, indices, offsets, strict=True)]
            stacked = torch.stack([x, *found], dim=1)
            products = torch.bmm(stacked, stacked.transpose(1, 2))
            row, column = torch.triu_indices(4, 4, 1)
            return torch.sigmoid(self.top(torch.cat([x, products[:, row, column]], dim=1))).squeeze(1)

    def call(batch: int) -> Method:
        indices = [torch.randint(0, 30, (3 * batch,)) for _ in range(3)]
        offsets = [torch.arange(0, 3 * batch, 3) for _ in range(3)]
        return Method((torch.randn(batch, 5), indices, offsets))

    return Family(trained(Recommendation()), {"forward": call}, batches(4, 4, 4))


@family
def variational_autoencoder() -> Family:
    class Autoencoder(nn.Module):
        """Encodes, samples in training only, and decodes."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = MLP(14, 20, 8)
            self.decoder = MLP(4, 20, 14)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mean, log_variance = self.encoder(x).chunk(2, dim=-1)
            latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
            divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1)
            return torch.sigmoid(self.decoder(latent)), latent, divergence

    def call(batch: int) -> Method:
        return Method((torch.randn(batch, 14),), dynamic={"x": {0: "batch"}})

    return Family(trained(Autoencoder()), {"forward": call}, batches(5, 1, 2))
