"""Texts as features, by the real text encoder: alike texts share more of them; without an encoder each is itself alone."""

from __future__ import annotations

from pathlib import Path

from stream.api.texts import TextFeatures
from stream.settings import Settings

TEXTS = ["Save 20% on garden furniture", "20% off all garden chairs", "Your invoice for last month"]


async def test_alike_texts_share_more_features(registry: Path, tmp_path: Path) -> None:
    texts = TextFeatures(Settings(home=registry.parent))
    one, like, other = (set(about) for about in await texts.about(TEXTS))
    sides = [{name for name in about if name.startswith("text/")} for about in (one, like, other)]
    assert all(2 < len(some) < 16 for some in sides)
    assert len(sides[0] ^ sides[1]) < len(sides[0] ^ sides[2]), "planes that part them"
    assert [set(about) for about in await texts.about(TEXTS[::-1])] == [other, like, one], "each text by itself"
    alone = await TextFeatures(Settings(home=tmp_path)).about(TEXTS)
    assert [about[0] for about in alone] == ["*"] * 3 and len({about[1] for about in alone}) == 3
    assert all(len(about) == 2 for about in alone)
