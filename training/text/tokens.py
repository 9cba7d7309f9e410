"""Texts as token ids, in batches of like length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """Texts as token ids, each of its own length."""

    ids: list[Ints]
    lengths: Ints

    @staticmethod
    def of(texts: list[str], folder: Path, tokens_max: int) -> Tokens:
        """By the tokenizer of a Hugging Face folder; what is longer is cut."""
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(tokens_max)
        tokenizer.no_padding()
        ids = [np.array(one.ids, dtype=np.int64) for one in tokenizer.encode_batch(texts)]
        return Tokens(ids, np.array([len(one) for one in ids]))

    def padded(self, at: Ints) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids, attention_mask, token_type_ids, each (B, L)."""
        length = int(self.lengths[at].max())
        ids = np.zeros((len(at), length), dtype=np.int64)
        for row, one in enumerate(at):
            ids[row, : self.lengths[one]] = self.ids[one]
        mask = torch.from_numpy((np.arange(length) < self.lengths[at][:, None]).astype(np.int64))
        return torch.from_numpy(ids), mask, torch.zeros_like(mask)

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[Ints]:
        """Every text once, in random batches of like length, so that little is padded."""
        order = rng.permutation(len(self.ids))
        groups = []
        for start in range(0, len(order), size * 32):
            part = order[start : start + size * 32]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            groups += [part[at : at + size] for at in range(0, len(part), size)]
        for group in rng.permutation(len(groups)):
            yield groups[int(group)]


def fast_type() -> torch.dtype | None:
    """bfloat16 where this processor multiplies it in hardware (2.7 times as many texts a second), else None."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else None
