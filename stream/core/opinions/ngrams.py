"""Character n-grams of a text, hashed: all that a linear model needs of a language it has no encoder for.

No words are cut out, so Chinese needs no segmenter and a typing error costs a few n-grams. Each n-gram falls into one of a
fixed number of buckets (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", 2009); training and
serving call the same function, so no vocabulary travels. A bucket's number depends on the text alone.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

CHARACTERS_MAX = 4_000  # of a text; the longest clothing review has 510, 99.9% of the Chinese ones fewer than 800
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
_SHIFT = np.uint64(33)
_SPACES = re.compile(r"\s+")

Ints = npt.NDArray[np.int64]


class NgramPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Which n-grams, and into how many buckets. Training and serving must agree: it travels in the manifest."""

    low: int = 1
    high: int = 3
    buckets: int = 1 << 22

    def __post_init__(self) -> None:
        if not (1 <= self.low <= self.high <= 16 and self.buckets >= 2):
            raise ValueError(f"n-grams of {self.low} to {self.high} characters in {self.buckets} buckets cannot be counted")


def normalised(text: str) -> str:
    """One way to write the same: compatibility forms (full-width letters), case and white space.

    >>> normalised("ＧＲＥＡＴ　 Fit\\n！")
    'great fit !'
    """
    plain = unicodedata.normalize("NFKC", text[:CHARACTERS_MAX]).casefold()
    return _SPACES.sub(" ", plain).strip()


def counted(text: str, policy: NgramPolicy) -> tuple[Ints, Ints]:
    """(buckets (K,) ascending, counts (K,)) of a text's n-grams.

    >>> ids, counts = counted("aaba", NgramPolicy(low=1, high=1))
    >>> len(ids), sorted(counts.tolist())
    (2, [1, 3])
    """
    codes = np.frombuffer(normalised(text).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)  # (C,)
    hashes = []
    rolling = np.zeros(len(codes), dtype=np.uint64)
    for n in range(1, min(policy.high, len(codes)) + 1):
        end = len(codes) - n + 1
        rolling = rolling[:end] * _BASE + codes[n - 1 :] + np.uint64(n)  # wraps around, as it should
        if n >= policy.low:
            hashes.append(_mixed(rolling) % np.uint64(policy.buckets))
    if not hashes:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    ids, counts = np.unique(np.concatenate(hashes).astype(np.int64), return_counts=True)
    return ids, counts.astype(np.int64)


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """MurmurHash3's finaliser: every bit of the input moves every bit of the output."""
    values = (values ^ (values >> _SHIFT)) * _MIX[0]
    values = (values ^ (values >> _SHIFT)) * _MIX[1]
    return values ^ (values >> _SHIFT)


def batch(texts: list[str], policy: NgramPolicy) -> dict[str, npt.NDArray[Any]]:
    """What the exported model takes: ids (B, K) int64 and counts (B, K) float32, padded with counts of 0."""
    rows = [counted(text, policy) for text in texts]
    width = max(1, max((len(ids) for ids, _ in rows), default=0))
    ids = np.zeros((len(rows), width), dtype=np.int64)
    counts = np.zeros((len(rows), width), dtype=np.float32)
    for at, (some, often) in enumerate(rows):
        ids[at, : len(some)], counts[at, : len(some)] = some, often
    return {"ids": ids, "counts": counts}
