"""Texts that a caller gives, and items that offers name, as features of the policy: by the text encoder that the catalog is
encoded with.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import structlog

from stream.adapters.models import model_store, signing
from stream.adapters.models.onnx import TextEncoder
from stream.core.offers.nearness import nearness, steps, steps_of_items, taste
from stream.core.offers.offer_policy import text_about
from stream.core.user.featurize import Float32
from stream.core.user.state import Touch
from stream.serving import ServingState
from stream.settings import Settings

log = structlog.get_logger()
KNOWN_MAX = 10_000  # texts whose features are kept: 20 MB with their vectors
LOOK_S = 60.0  # for a text encoder, while there is none, or another than the released one


class Encoded(NamedTuple):
    """What is known of a text, whoever it is for. `vector`: (T,) of length 1; None without an encoder."""

    about: tuple[str, ...]
    vector: Float32 | None


class TextFeatures:
    """By the text encoder of the released space, before a release by the registry's newest, loaded when it is first asked
    for. Without one a text is known by itself alone."""

    def __init__(self, settings: Settings, serving: ServingState) -> None:
        self._settings, self._serving = settings, serving
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="texts")
        self._known: OrderedDict[tuple[str, str], Encoded] = OrderedDict()  # space, text
        self._encoder: TextEncoder | None = None
        self._space, self._looked_at = "", -LOOK_S

    async def about(self, texts: list[str], tenant: str, touches: Sequence[Touch]) -> list[tuple[str, ...]]:
        """Each text's features for the user with this history, oldest first: of itself, some ms a text that was not asked
        about before; and how near it is to what they dealt with, a product of two vectors. Of who dealt with nothing that
        has a vector in the texts' space, the former alone."""
        space, found = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._encoded, texts, self._serving.current.space
        )
        vectors = [one.vector for one in found if one.vector is not None]
        dim = len(vectors[0]) if vectors else 0
        liked = taste(touches, lambda item: self._serving.text_vector(tenant, item, space, dim)) if vectors else None
        if liked is None:
            return [one.about for one in found]
        near = nearness(np.stack(vectors), liked)  # (K,)
        return [one.about + steps(float(above)) for one, above in zip(found, near, strict=True)]

    def near(self, offers: Sequence[Sequence[str]], tenant: str, touches: Sequence[Touch]) -> list[tuple[str, ...]]:
        """How near the items of each offer are to what the user with this history dealt with, by vectors in the released
        space; nothing of all where that, or the user, has none."""
        current = self._serving.current
        space, dim = current.space, current.text_dim

        def vector_of(item: str) -> Float32 | None:
            return self._serving.text_vector(tenant, item, space, dim)

        liked = taste(touches, vector_of) if dim and any(offers) else None
        return [()] * len(offers) if liked is None else steps_of_items(offers, liked, vector_of)

    def _encoded(self, texts: list[str], released: str) -> tuple[str, list[Encoded]]:
        """The space, and each text in it. `released`: its space, empty for none."""
        wanted = self._encoder is None or released not in ("", self._space)
        if wanted and time.monotonic() - self._looked_at > LOOK_S:
            self._looked_at = time.monotonic()
            self._load(released)
        new = [text for text in dict.fromkeys(texts) if (self._space, text) not in self._known]
        vectors = self._encoder.encode(new) if self._encoder is not None and new else [None] * len(new)
        found = {text: Encoded(text_about(text, vector, self._space), vector)
                 for text, vector in zip(new, vectors, strict=True)}  # fmt: skip
        found |= {text: self._known[self._space, text] for text in texts if text not in found}
        for text, one in found.items():
            self._known[self._space, text] = one
            self._known.move_to_end((self._space, text))
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        return self._space, [found[text] for text in texts]

    def _load(self, released: str) -> None:
        settings = self._settings
        kept = f"texts are judged in space {self._space}" if self._encoder else "texts are known by themselves alone"
        try:
            found = model_store.load_text_encoder(settings.registry, released or None, keys=signing.trusted(settings.models))
        except model_store.BundleRefused as error:
            log.error("text encoder cannot be used", why=str(error), next=kept)
            return
        if found is None:
            log.warning("no text encoder yet", registry=settings.registry, next=kept)
            return
        self._space, self._encoder = found
