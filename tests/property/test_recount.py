"""Whatever the log holds, personalize comes to what the recount by hand says: the end of each record, how much each user
did, and of which event the last recommendation is. On fakes; `tests/chaos` holds processes to it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.partition import unpack
from stream.settings import Personalize
from tests.support.fakes import DAY_MS, T0_MS, FakeModels, FakeRecord, event
from tests.support.recount import recount
from tests.unit.test_personalize import Bench

USERS, ITEMS = 3, 6
APPENDED_MS = T0_MS + 400 * DAY_MS  # what the bench says of every record
REFUSED = {"consent": {"personalization": False}}


class Logged(FakeRecord):
    """A record of the one partition there is."""

    partition = 0


def stream(draw: random.Random) -> Iterator[dict[str, Any] | bytes]:
    """In disorder, live and imported, some twice, some no events, some of users who withdraw their consent."""
    at_ms, made = T0_MS, [event(user="u0", id="first", lane="live")]
    while True:
        at_ms += draw.choice([10, 1_000, 60_000])
        off_ms = draw.choice([0, 0, 0, 0, -30_000, -DAY_MS, -3 * DAY_MS, 500 * DAY_MS])
        kind = draw.random()
        if kind < 0.02:
            yield b"{"
        elif kind < 0.15:
            yield draw.choice(made[-50:])
        else:
            made.append(event(user=f"u{draw.randrange(USERS)}", item=f"i{draw.randrange(ITEMS)}", id=f"m{len(made)}",
                              ts_ms=at_ms + off_ms, lane=draw.choice(["live", "live", "live", "import"]),
                              name=draw.choice(["Product Viewed", "Product Added", "Order Completed"]),
                              context=REFUSED if kind < 0.17 else None))  # fmt: skip
            yield made[-1]


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(1, 100), min_size=8, max_size=16))
async def test_personalize_comes_to_what_the_recount_says(seed: int, sizes: list[int]) -> None:
    draw = random.Random(seed)
    bench, coming = Bench(FakeModels(), recommend_interval_ms=5_000), stream(draw)
    bench.items(ITEMS)
    batches = [[next(coming) for _ in range(size)] for size in sizes]
    batches.append([event(user="later", id="later", lane="live", ts_ms=APPENDED_MS)])  # every interval is over
    for batch in batches:
        await bench.feed(*batch)
        if draw.random() < 0.5:
            await bench.close()
    await bench.close()
    values = [one if isinstance(one, bytes) else msgspec.json.encode(one) for batch in batches for one in batch]
    true = recount([Logged(b"t/u", value, offset, APPENDED_MS) for offset, value in enumerate(values)], Personalize())
    assert bench.part.meta.accounts.ends == true.ends[0]
    states = {key.decode(): unpack(value) for key, value in bench.store.values.items() if not key.startswith(b"#")}
    assert {key: (one.events, one.orders, one.first_ts_ms, one.last_ts_ms, one.last_event_id,
                  {item: stat.touches for item, stat in one.items.items()}) for key, one in states.items()} == {
            key: (one.events, one.orders, one.first_ms, one.last_ms, one.newest, one.touches)
            for key, one in true.users.items()}  # fmt: skip
    said = {f"t/{one['user_id']}": one["as_of_event_id"] for one in bench.outputs.values("recommendations")}
    assert all(said.get(key) in one.answers for key, one in true.users.items() if one.answers)
