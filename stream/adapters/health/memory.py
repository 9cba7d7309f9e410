"""What a process holds in memory, by who holds it: when resident memory grows, this says whether more is in use or less is
given back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


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


class Memory(Collector):
    """What is held now, asked whenever somebody scrapes. `shared`: bytes of parts of what is in use or mapped, by name."""

    def __init__(self, shared: Mapping[str, Callable[[], int]]) -> None:
        self._shared = shared

    def collect(self) -> Iterator[Metric]:
        memory = GaugeMetricFamily("clickwake_memory_bytes", "what the C allocator holds: used, free but not given back, "
                                   "mapped; and of it RocksDB's block cache and write buffers", labels=["kind"])  # fmt: skip
        for kind, size in (allocated() | {name: size() for name, size in self._shared.items()}).items():
            memory.add_metric([kind], size)
        yield memory
        blocks = GaugeMetricFamily("clickwake_memory_blocks", "how many small blocks Python's objects are in",
                                   labels=["kind"])  # fmt: skip
        blocks.add_metric(["python"], sys.getallocatedblocks())
        yield blocks


def expose(shared: Mapping[str, Callable[[], int]], registry: CollectorRegistry = REGISTRY) -> None:
    """As metrics."""
    registry.register(Memory(shared))
