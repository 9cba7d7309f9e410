"""What a process holds is seen by who holds it."""

from __future__ import annotations

import sys

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from stream.adapters.health.memory import allocated, expose

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


def test_what_is_held_is_a_metric_by_who_holds_it() -> None:
    registry = CollectorRegistry()
    expose({"block cache": lambda: 17}, registry)
    said = generate_latest(registry).decode().splitlines()
    assert 'clickwake_memory_bytes{kind="block cache"} 17.0' in said
    for kind in allocated():
        assert any(line.startswith(f'clickwake_memory_bytes{{kind="{kind}"}}') for line in said)
    assert any(line.startswith('clickwake_memory_blocks{kind="python"}') for line in said)
