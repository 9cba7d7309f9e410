"""What a process holds is seen by who holds it."""

from __future__ import annotations

import sys

import pytest

from stream.adapters.memory import allocated

BYTES = 64 << 20  # far above what the allocator takes from its arenas


@pytest.mark.skipif(not allocated(), reason="no mallinfo2 in this C library")
def test_a_large_block_is_seen_while_it_is_held() -> None:
    before = allocated()
    block = bytearray(BYTES)
    during = allocated()
    del block
    assert sum(during.values()) - sum(before.values()) > BYTES // 2 > sum(allocated().values()) - sum(before.values())
    assert sys.getallocatedblocks() > 0
