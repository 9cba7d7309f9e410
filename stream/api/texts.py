"""Texts that a caller gives, as features of the policy: by the text encoder that the catalog is encoded with."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import structlog

from stream.adapters import model_store, signing
from stream.adapters.onnx import TextEncoder
from stream.core.offer_policy import text_about
from stream.settings import Settings

log = structlog.get_logger()
KNOWN_MAX = 10_000  # texts whose features are kept
LOOK_S = 60.0  # for a text encoder, while there is none


class TextFeatures:
    """The registry's newest text encoder, loaded when it is first asked for and kept as long as the process lives. Without
    one a text is known by itself alone."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="texts")
        self._known: OrderedDict[tuple[str, str], tuple[str, ...]] = OrderedDict()  # space, text
        self._encoder: TextEncoder | None = None
        self._space, self._looked_at = "", -LOOK_S

    async def about(self, texts: list[str]) -> list[tuple[str, ...]]:
        """Each text's features; some ms a text that was not asked about before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._about, texts)

    def _about(self, texts: list[str]) -> list[tuple[str, ...]]:
        if self._encoder is None and time.monotonic() - self._looked_at > LOOK_S:
            self._looked_at = time.monotonic()
            self._load()
        new = [text for text in dict.fromkeys(texts) if (self._space, text) not in self._known]
        vectors = self._encoder.encode(new) if self._encoder is not None and new else [None] * len(new)
        found = {text: text_about(text, vector, self._space) for text, vector in zip(new, vectors, strict=True)}
        found |= {text: self._known[self._space, text] for text in texts if text not in found}
        for text, about in found.items():
            self._known[self._space, text] = about
            self._known.move_to_end((self._space, text))
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        return [found[text] for text in texts]

    def _load(self) -> None:
        settings = self._settings
        try:
            found = model_store.load_text_encoder(settings.registry, keys=signing.trusted(settings.models))
        except model_store.BundleRefused as error:
            log.error("text encoder cannot be used", why=str(error), next="texts are known by themselves alone")
            return
        if found is None:
            log.warning("no text encoder yet", registry=settings.registry, next="texts are known by themselves alone")
            return
        self._space, self._encoder = found
