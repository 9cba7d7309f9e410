"""The read API in this process, without Kafka: real routes, core and log of decisions; states and offers as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import uvicorn
from pydantic import SecretStr
from starlette.applications import Starlette

from schemas.catalog import Item
from schemas.events import Event
from schemas.offers import OfferTotals, PlacementTotals
from schemas.outputs import Decision
from stream.api.app import Api, create_app
from stream.core.ranking.counts import ItemCount
from stream.core.user.fold import fold
from stream.core.user.state import UserState
from stream.serving import Serving
from stream.settings import Api as ApiSettings
from stream.settings import Privacy, Settings
from tests.support.fakes import T0_MS, FakeClock, FakeModels, event

KEY, KEY_OF_TWO = ("a-read-key", ""), ("a-key-of-two", "")  # of the tenants `t`, whose shop it is, and `two`
STALE_MS = 7
NO_PRIVACY, DEFAULTS = Privacy(), ApiSettings()
ITEMS = [
    Item(item_id=f"i{n}", tenant="t", title=f"thing {n}", category=f"c{n % 4}", price=float(n), in_stock=n != 10,
         blocked=n == 11)
    for n in range(12)
]  # fmt: skip
HISTORIES = {
    "u1": [event(user="u1", item="i1", id="m1", ts_ms=T0_MS),
           event(user="u1", item="i2", id="m2", ts_ms=T0_MS + 1_000, name="Product Added")],
    "u2": [event(user="u2", item="i2", id="m3", ts_ms=T0_MS),
           event(user="u2", item="i3", id="m4", ts_ms=T0_MS + 1_000, name="Order Completed")],
}  # fmt: skip
OFFERS = """
placements: [{name: home, control: plain}]
offers: [{id: plain, placements: [home]}, {id: summer, placements: [home]}]
"""


class FakeReplica:
    """Users' states as the workers would have written them."""

    def __init__(self, states: dict[str, UserState]) -> None:
        self.states = states

    def read(self, user_key: bytes) -> UserState | None:
        return self.states.get(user_key.decode())

    def holds(self, user_key: bytes) -> bool:
        return user_key.decode() in self.states

    def clock_ms(self, user_key: bytes) -> int:
        return T0_MS + 60_000

    def behind_ms(self) -> int:
        return STALE_MS


class NothingLearned:
    """Of offers: nothing, and it is newer than the states."""

    def totals(self, tenant: str, placement: str) -> PlacementTotals:
        return PlacementTotals()

    def spent(self, tenant: str) -> dict[str, OfferTotals]:
        return {}

    def seen(self, user_key: bytes) -> dict[str, list[int]]:
        return {}

    def behind_ms(self) -> int:
        return STALE_MS - 1


@contextlib.asynccontextmanager
async def served(app: Starlette) -> AsyncIterator[int]:
    """The port of an app behind a socket, by the server that runs it in earnest, without its lifespan."""
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


def folded(events: Sequence[dict[str, Any]]) -> UserState:
    state = UserState()
    for one in events:
        fold(state, msgspec.convert(one, Event), T0_MS, 86_400_000)
    return state


class Shop:
    """A ready API over `items`; the first half is bought often, `i1` after `i2`."""

    def __init__(
        self, home: Path, experiments: str = "", items: Sequence[Item] = ITEMS, privacy: Privacy = NO_PRIVACY,
        limits: ApiSettings = DEFAULTS,
    ) -> None:  # fmt: skip
        home.mkdir(parents=True, exist_ok=True)
        (home / "offers.yml").write_text(OFFERS)
        (home / "experiments.yml").write_text(experiments or "experiments: []")
        keys = {"t": SecretStr(KEY[0]), "two": SecretStr(KEY_OF_TWO[0])}
        self.app = create_app(Settings(home=home, api=limits.model_copy(update={"read_keys": keys}), privacy=privacy))
        self.api: Api = self.app.state.api
        replica: Any = FakeReplica({f"t/{user}": folded(events) for user, events in HISTORIES.items()})
        nothing: Any = NothingLearned()
        self.api.replica = self.api.service.replica = replica
        self.api.learned = self.api.offers.learned = nothing
        self.api._reason, self.api.service.clock = None, FakeClock()
        self.api.offers.clock = self.api.service.clock
        serving = self.api.ranking.serving.current = Serving(FakeModels(hazard_per_day=0.1))
        vectors = np.random.default_rng(0).normal(size=(len(items), 4)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        serving.put_items(list(zip(items, vectors, strict=True)))
        self.index = serving.index("t")
        for n in range(6):
            after = {"i1": 3.0, "i5": 1.0} if n == 2 else {}
            self.index.set_counts(f"i{n}", 0, ItemCount(popularity=20.0 - n, ts_ms=T0_MS, successors=after, recent=20.0 + n,
                                                        lasting=20.0))  # fmt: skip

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api", auth=KEY) as client:
            return await client.request(method, path, **more)

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.ask("GET", path, **more)

    async def post(self, path: str, body: Any) -> httpx.Response:
        return await self.ask("POST", path, json=body)

    def also_known_as(self, ident: str) -> None:
        """`u1` and `i1` have another id, too."""
        self.api.service.replica.states[f"t/{ident}"] = self.api.service.replica.states["t/u1"]  # type: ignore[attr-defined]
        again = msgspec.structs.replace(self.index.items[1], item_id=ident)
        self.api.ranking.serving.current.put_items([(again, self.index.matrix[1])])

    def logged(self) -> list[Decision]:
        """What waits to be logged."""
        queue, found = self.api.decisions._queue, []
        while not queue.empty():
            _, _, (_, value, _) = queue.get_nowait()
            found.append(msgspec.json.decode(value or b"", type=Decision))
        return found
