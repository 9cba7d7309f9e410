"""What a process holds is seen by who holds it."""

from __future__ import annotations

import sys

import pytest

from stream.adapters.memory import allocated

BYTES = 64 << 20


def held() -> int:
    """In use, in the arenas or in a mapping of its own: where a block comes from depends on what is free already."""
    found = allocated()
    return found["used"] + found["mapped"]


@pytest.mark.skipif(not allocated(), reason="no mallinfo2 in this C library")
def test_a_large_block_is_seen_while_it_is_held() -> None:
    before = held()
    block = bytearray(BYTES)
    during = held()
    del block
    assert during - before > BYTES // 2 > held() - before
    assert sys.getallocatedblocks() > 0
