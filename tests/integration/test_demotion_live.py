"""Bad reviews on a running stack: what the insights worker makes of them lowers an item in what personalize says and in what
the read API answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clickwake import topics as topic_admin
from schemas import topics
from schemas.outputs import Recommendation
from stream.settings import Settings
from tests.integration.test_read_api import api_of
from tests.support import bundles
from tests.support.cluster import Sender, Tail, running, until
from tests.support.fakes import event

LOWERED = {"CLICKWAKE_PERSONALIZE__SATISFACTION_WEIGHT": "1"}
BROKEN, LIKED = "i1", "i2"
VIEWS = {BROKEN: 20, LIKED: 10}
REVIEWS = 30  # of each: as many touches more for both


def happened(user: str, ident: str, name: str = "Product Viewed", **properties: object) -> dict[str, object]:
    return event(user=user, id=ident, name=name, properties=properties, ts_ms=time.time_ns() // 1_000_000)


@pytest.mark.timeout(240)
def test_an_item_that_is_reviewed_badly_falls_in_live_recommendations(settings: Settings, tmp_path: Path) -> None:
    topic_admin.create(settings)
    bundles.put_vectors(settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    with (Sender(settings) as sender, Tail(settings, topics.RECOMMENDATIONS) as recommendations,
          running(settings, "workers.personalize", **LOWERED), running(settings, "workers.insights"),
          api_of(settings, tmp_path / "api", **LOWERED) as (client, _)):  # fmt: skip
        numbers = count()

        def said() -> list[str]:
            """What the worker says to somebody new."""
            user = f"visitor-{next(numbers)}"
            sender.send([happened(user, user, product_id="i9")])
            return until(lambda: of_user(user), 20, f"{user} is answered")

        def of_user(user: str) -> list[str] | None:
            records = (one for one in recommendations.poll() if one.key == f"t/{user}".encode())
            return next(([item.item_id for item in msgspec.json.decode(one.value, type=Recommendation).items]
                         for one in records), None)  # fmt: skip

        def answered() -> list[str]:
            return [one["item_id"] for one in client.get("/v1/recommendations/somebody").json()["items"]]

        def why() -> dict[str, Any]:
            found: dict[str, Any] = client.get(f"/v1/why/somebody/{BROKEN}").json()
            return found

        def first(item: str, ask: Callable[[], list[str]]) -> bool:
            shown = ask()
            return {BROKEN, LIKED} <= {*shown} and shown.index(item) == min(shown.index(one) for one in (BROKEN, LIKED))

        sender.send([happened(f"{item}-{n}", f"view-{item}-{n}", product_id=item) for item, views in VIEWS.items()
                     for n in range(views)])  # fmt: skip
        for ask in (said, answered):
            until(lambda ask=ask: first(BROKEN, ask), 60, "what is viewed more comes first")
        sender.send([happened(f"r-{item}-{n}", f"review-{item}-{n}", "Product Reviewed", product_id=item, rating=rating)
                     for item, rating in ((BROKEN, 1), (LIKED, 5)) for n in range(REVIEWS)])  # fmt: skip
        for ask in (said, answered):
            until(lambda ask=ask: first(LIKED, ask), 60, "what is reviewed badly comes after it")
        until(lambda: why()["disliked"]["opinions"] == REVIEWS, 60, "all reviews are counted")
        told = why()
    assert told["disliked"]["satisfaction"] == 0.0 and told["disliked"]["factor"] < 0.5
    assert told["disliked"]["place_without"] == 1 < told["place"], "but for the reviews it would still come first"
