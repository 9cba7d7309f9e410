"""What a process holds is seen by who holds it, and what it does not need goes back."""

from __future__ import annotations

import ctypes
import sys

import psutil
import pytest

from stream.adapters.memory import allocated, give_back

BYTES = 64 << 20  # far above what the allocator takes from its arenas


@pytest.mark.skipif(not allocated(), reason="no mallinfo2 in this C library")
def test_a_large_block_is_seen_while_it_is_held() -> None:
    before = allocated()
    block = bytearray(BYTES)
    during = allocated()
    del block
    assert sum(during.values()) - sum(before.values()) > BYTES // 2 > sum(allocated().values()) - sum(before.values())
    assert sys.getallocatedblocks() > 0


@pytest.mark.skipif(not allocated(), reason="no mallinfo2 in this C library")
def test_what_is_free_between_blocks_in_use_goes_back() -> None:
    """Of blocks too small for mappings of their own every fourth stays, so that no end of the heap is free."""
    c = ctypes.CDLL(None)
    c.malloc.restype, c.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    size = 64 << 10
    resident = psutil.Process().memory_info
    blocks = [c.malloc(size) for _ in range(BYTES // size)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for at, block in enumerate(blocks):
        if at % 4:
            c.free(block)
    before = resident().rss
    assert give_back()
    assert before - resident().rss > BYTES // 2
    for block in blocks[::4]:
        c.free(block)
