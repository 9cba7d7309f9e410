"""Announced bundles taken over between two batches, or refused with the reason while the old one goes on."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Any

import msgspec
import structlog

from schemas.release import ModelRelease
from schemas.unreadable import UNREADABLE
from stream.adapters.health.metrics import ReleaseMetrics
from stream.adapters.models import model_store, signing
from stream.adapters.models.announcements import Announcements, NotBelieved
from stream.adapters.models.onnx import Bundle
from stream.files import write_whole
from stream.serving import ServingState
from stream.settings import Settings

log = structlog.get_logger()
RETRY_S = 5.0  # a registry that is away, or a new vector space that is still being encoded

_release = msgspec.json.Decoder(ModelRelease)


class Releases:
    """Follows the models topic. The newest announcement that counts wins; the swap is one assignment on the event loop."""

    def __init__(self, settings: Settings, state: ServingState, executor: Executor, metrics: ReleaseMetrics) -> None:
        self.settings = settings
        self.state = state
        self.executor = executor
        self.metrics = metrics
        self.keys = signing.trusted(settings.models)
        self.announcements = Announcements(self.keys)
        self._waiting: tuple[ModelRelease, Bundle] | None = None  # a release that is loaded and not taken yet
        self._memo = settings.state_dir / settings.kafka.topic_prefix / "release.json"
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()

    def on_records(self, records: list[Any]) -> None:
        """Records of the models topic. One that does not count is refused like a bad bundle, unless one after it does:
        what was said before keys were set is read at every start."""
        refused: list[NotBelieved] = []
        for record in records:
            try:
                if not self.announcements.note(record):
                    continue
            except NotBelieved as error:
                refused.append(error)
                continue
            for past in refused:
                log.warning("announcement left out", model_version=past.version, why=str(past))
            refused.clear()
            self._settled.clear()
            self._changed.set()
        for one in refused:
            self._refuse(one.version, str(one))
        if refused and self.announcements.newest is None:  # then what ran last runs on
            self._settled.clear()
            self._changed.set()

    async def settled(self) -> None:
        """Returns once every announcement read so far was taken, refused, or found to have to wait."""
        await self._settled.wait()

    async def run(self) -> None:
        """Take over every announcement, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            release = self.announcements.newest
            if release is not None and release.model_version != self.state.current.version:
                await self._take(release)
            if self.state.current.models is None and (last := self._last_taken()) not in (None, release):
                log.warning("falling back to the release taken last", model_version=last.model_version)
                await self._take(last)
            if not self._changed.is_set():
                self._settled.set()

    def _last_taken(self) -> ModelRelease | None:
        """What this installation ran with before it was started again; None when it ran with nothing."""
        try:
            return _release.decode(self._memo.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, *UNREADABLE) as error:
            log.warning("the release taken last is not known", file=str(self._memo), why=str(error))
            return None

    async def _take(self, release: ModelRelease) -> None:
        loop = asyncio.get_running_loop()
        try:
            bundle = await self._loaded(release)
            if self._waits_for_space(bundle.manifest.text_space):  # asked first: to make ready takes a whole index
                log.info("release waits for its vector space", model_version=release.model_version,
                         space=bundle.manifest.text_space, missing=self._missing(bundle.manifest.text_space))  # fmt: skip
                loop.call_later(RETRY_S, self._changed.set)
                return
            serving = self.state.prepare(bundle)
        except model_store.RegistryAway as error:  # it says nothing about the bundle
            log.warning("release waits for its registry", model_version=release.model_version, why=str(error),
                        keeps=self.state.current.version, again_in_s=RETRY_S)  # fmt: skip
            loop.call_later(RETRY_S, self._changed.set)
            return
        except (model_store.BundleRefused, ValueError) as error:
            self._waiting = None
            self._refuse(release.model_version, str(error))
            return
        self._waiting = None
        self.state.current = serving
        write_whole(self._memo, msgspec.json.encode(release))
        self.metrics.release("taken", serving.version)
        log.info("release taken", model_version=serving.version, items=sum(len(one) for one in serving.indexes.values()))

    async def _loaded(self, release: ModelRelease) -> Bundle:
        """The bundle of a release; one that waits for its vector space is fetched once, not every RETRY_S."""
        if self._waiting is None or self._waiting[0] != release:
            threads = self.settings.personalize.onnx_threads
            bundle = await asyncio.get_running_loop().run_in_executor(
                self.executor,
                lambda: model_store.load(self.settings.registry, release, threads=threads, keys=self.keys),
            )
            self._waiting = (release, bundle)
        return self._waiting[1]

    def _waits_for_space(self, space: str) -> bool:
        """A release in a new space flips only once every item known in the old space is encoded in the new one."""
        old = self.state.current.space
        return bool(old) and old != space and self._missing(space) > 0

    def _missing(self, space: str) -> int:
        """Items of the current space that have no vector in another."""
        old = self.state.current.space
        return sum(old in spaces and space not in spaces for spaces in self.state.vectors.values())

    def _refuse(self, version: str, why: str) -> None:
        self.metrics.release("refused", version)
        log.error("release refused", model_version=version, why=why, keeps=self.state.current.version)
