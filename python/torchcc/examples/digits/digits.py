"""A classifier of handwritten digits: trained here, compiled by ``torchcc build``, called from main.cpp.

The weights are kept in ``weights.pt`` beside this file; remove that file to train again.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional

import torchcc

DATA = Path(torchcc.__file__).parent / "data" / "digits.bin"
WEIGHTS = Path(__file__).resolve().with_name("weights.pt")
HELD_OUT = 4  # every 4th image is for testing, here and in main.cpp


class Classifier(nn.Module):
    """Scores 8x8 images of digits, with pixels from 0 to 16: one logit for each of 0 to 9.

    One gated layer, as in language models, on 64 numbers an image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(64, 64)
        self.norm_weight = nn.Parameter(torch.ones(64))
        self.gate = nn.Linear(64, 64)
        self.up = nn.Linear(64, 64)
        self.down = nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, images: UInt8[Tensor, "n 8 8"]) -> Float32[Tensor, "n 10"]:
        """What C++ calls, with images as they are stored."""
        return self.logits(images.float())

    def logits(self, images: Float32[Tensor, "n 8 8"]) -> Float32[Tensor, "n 10"]:
        """The same for pixels that are not whole numbers."""
        x = self.embed(images.flatten(1) / 16)
        y = functional.rms_norm(x, (64,), self.norm_weight, 1e-6)
        logits: Tensor = self.head(x + self.down(functional.silu(self.gate(y)) * self.up(y)))
        return logits


def train(seed: int = 0, epochs: int = 30) -> Classifier:
    """Trains on the images that are not held out; noise on the pixels stands for more data. Takes about a second."""
    records = torch.from_numpy(np.fromfile(DATA, np.uint8).reshape(-1, 65))
    records = records[torch.arange(len(records)) % HELD_OUT != 0]
    images, labels = records[:, :64].reshape(-1, 8, 8).float(), records[:, 64].long()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster for so small a model, and sums in the same order on every machine
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            classifier = Classifier()
            optimizer = torch.optim.AdamW(classifier.parameters(), lr=8e-3)
            steps = epochs * -(-len(images) // 64)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=8e-3, total_steps=steps)
            for _ in range(epochs):
                order = torch.randperm(len(images))
                for start in range(0, len(images), 64):
                    batch = order[start : start + 64]
                    noisy = images[batch] + 2 * torch.randn(len(batch), 8, 8)
                    loss = functional.cross_entropy(classifier.logits(noisy), labels[batch])
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
                    schedule.step()
    finally:
        torch.set_num_threads(threads)
    return classifier


def load() -> Classifier:
    """The trained classifier; trains it when there are no weights yet."""
    if not WEIGHTS.is_file():
        # Under another name first: another process may be doing the same.
        temporary = WEIGHTS.with_name(f".{WEIGHTS.name}.{os.getpid()}")
        torch.save(dict(train().state_dict()), temporary)
        temporary.replace(WEIGHTS)
    classifier = Classifier()
    classifier.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return classifier.eval()


classify = torchcc.region(load(), name="classify", ranges={"n": (1, 1797)})
