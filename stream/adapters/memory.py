"""What a process holds in memory, by who holds it: when resident memory grows, this says whether more is in use or less is
given back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import partial

from prometheus_client import REGISTRY, CollectorRegistry, Gauge


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33 and later, over all arenas: mallinfo(3)."""

    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]


KINDS = {"used": "uordblks", "free": "fordblks", "mapped": "hblkhd"}


def allocated() -> dict[str, int]:
    """Bytes of the C allocator: in use, free but not given back, and in mappings of their own. Empty without glibc's.

    >>> all(size >= 0 for size in allocated().values())
    True
    """
    asked = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if asked is None:
        return {}
    asked.restype = _Mallinfo
    found = asked()
    return {kind: getattr(found, field) for kind, field in KINDS.items()}


def _of_kind(kind: str) -> float:
    return float(allocated()[kind])


def expose(block_cache: Callable[[], int], registry: CollectorRegistry = REGISTRY) -> None:
    """As metrics, asked whenever somebody scrapes. `block_cache`: bytes in RocksDB's, which are part of what is in use."""
    memory = Gauge("clickwake_memory_bytes", "what the C allocator holds: used, free but not given back, mapped; and of it "
                   "RocksDB's block cache", ["kind"], registry=registry)  # fmt: skip
    for kind in allocated():
        memory.labels(kind).set_function(partial(_of_kind, kind))
    memory.labels("block cache").set_function(lambda: float(block_cache()))
    blocks = Gauge("clickwake_memory_blocks", "how many small blocks Python's objects are in", ["kind"], registry=registry)
    blocks.labels("python").set_function(lambda: float(sys.getallocatedblocks()))
