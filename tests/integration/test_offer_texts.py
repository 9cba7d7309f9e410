"""Texts as features, by the real text encoder: alike texts share more of them, and those near to what a user dealt with say
so; without an encoder each is itself alone."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from schemas.catalog import Item, ItemVector
from stream.adapters.models import model_store
from stream.api import texts as texts_module
from stream.api.texts import TextFeatures
from stream.core.offers.offer_policy import text_about
from stream.core.user.state import Kind, Touch
from stream.serving import ServingState
from stream.settings import Settings
from tests.support.fakes import T0_MS

TEXTS = ["Save 20% on garden furniture", "20% off all garden chairs", "Your invoice for last month"]


async def test_alike_texts_share_more_features(registry: Path, tmp_path: Path) -> None:
    texts = TextFeatures(Settings(home=registry.parent), ServingState())
    one, like, other = (set(about) for about in await texts.about(TEXTS, "t", ()))
    sides = [{name for name in about if name.startswith("text/")} for about in (one, like, other)]
    assert all(2 < len(some) < 16 for some in sides)
    assert len(sides[0] ^ sides[1]) < len(sides[0] ^ sides[2]), "planes that part them"
    assert [set(about) for about in await texts.about(TEXTS[::-1], "t", ())] == [other, like, one], "each text by itself"
    alone = await TextFeatures(Settings(home=tmp_path), ServingState()).about(TEXTS, "t", ())
    assert [about[0] for about in alone] == ["*"] * 3 and len({about[1] for about in alone}) == 3
    assert all(len(about) == 2 for about in alone)


ITEMS = {"bench": "Folding garden bench", "pan": "Cast iron frying pan", "far": "Cast iron frying pan"}


def dealt_with(*items: str) -> list[Touch]:
    return [Touch(T0_MS + at, f"e{at}", item, Kind.VIEW, 0.0) for at, item in enumerate(items)]


async def test_nearness_is_by_the_items_vectors_in_the_texts_own_space(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts_module, "LOOK_S", -1.0)  # it looks for a text encoder each time
    found = model_store.load_text_encoder(str(registry))
    assert found is not None
    space, encoder = found
    serving = ServingState()
    for (item, title), vector in zip(ITEMS.items(), encoder.encode(list(ITEMS.values())), strict=True):
        where, values = ("other", vector) if item == "far" else (space, vector)
        one = ItemVector(space=where, content_hash=item, vector=values.astype("<f4").tobytes(),
                         item=Item(item_id=item, tenant="t", title=title))  # fmt: skip
        serving.on_vector(f"{where}/t/{item}".encode(), msgspec.msgpack.encode(one))
    short = ItemVector(space=space, content_hash="s", vector=b"\0" * 8, item=Item(item_id="short", tenant="t"))
    serving.vectors["t", "short"] = {space: short}
    texts = TextFeatures(Settings(home=registry.parent), serving)

    async def near(*items: str, tenant: str = "t") -> list[int]:
        """How many steps each of TEXTS is near to who dealt with these."""
        abouts = await texts.about(TEXTS, tenant, dealt_with(*items))
        return [sum(name.startswith("near=") for name in about) for about in abouts]

    serving.current.space = "nowhere"
    assert await near("bench") == [0, 0, 0]
    assert await texts.about(TEXTS, "t", ()) == [text_about(one, None, "") for one in TEXTS]
    for released in ("", space, "nowhere"):  # what cannot be had of a later release leaves what there is
        serving.current.space = released
        garden, chairs, invoice = await near("bench", "far", "short", "unknown")
        assert min(garden, chairs) > invoice
        assert await near("far", "short", "unknown") == await near() == await near("bench", tenant="two") == [0, 0, 0]
