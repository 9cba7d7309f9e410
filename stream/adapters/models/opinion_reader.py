"""Texts to what they say: language, satisfaction by the newest model of that language, and aspects.

A language without a model in the registry is said once, and goes on without: stars that were given count all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import structlog
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from schemas.opinions import Aspect
from stream.adapters.models import satisfaction as models
from stream.adapters.models import signing
from stream.adapters.models.model_store import BundleRefused, RegistryAway
from stream.adapters.models.satisfaction import Satisfaction
from stream.core.opinions import aspects, opinions
from stream.core.opinions.opinions import Said
from stream.settings import Settings

log = structlog.get_logger()
UNKNOWN = "und"  # ISO 639-2: undetermined
SURE_FROM = 0.3  # of the probabilities over LANGUAGES
# what shops are written to in: among all 97, short English texts are taken for pidgin, Latin or Luxembourgish
LANGUAGES = (
    "ar", "bg", "cs", "da", "de", "el", "en", "es", "et", "fi", "fr", "he", "hi", "hr", "hu", "id", "it", "ja", "ko", "lt",
    "lv", "ms", "nl", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv", "th", "tr", "uk", "vi", "wuu", "yue", "zh",
)  # fmt: skip
CHINESE = frozenset({"wuu", "yue"})  # one script, one model
LETTERS_MIN = 2


class Read(NamedTuple):
    """What one text says. See `schemas.opinions.Opinion`."""

    language: str
    satisfaction: float | None
    stars_read: float | None
    p_satisfied: float | None
    aspects: tuple[Aspect, ...]
    telling: str
    model_version: str


class _Judged(NamedTuple):
    p: list[float]
    stars: list[float] | None


class Languages:
    """Which language a text is in: naive Bayes over byte n-grams (Lui & Baldwin, "langid.py", 2012)."""

    def __init__(self) -> None:
        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        self._identifier.set_languages(list(LANGUAGES))

    def of(self, text: str) -> str:
        """ISO 639-1; `und` for what is too short or unsure."""
        if sum(one.isalpha() for one in text[:40]) < LETTERS_MIN:
            return UNKNOWN
        language, sure = self._identifier.classify(text)
        if sure < SURE_FROM:
            return UNKNOWN
        return "zh" if language in CHINESE else str(language)


class OpinionReader:
    """Models of one registry. Not for two threads at once."""

    def __init__(self, settings: Settings) -> None:
        self._registry, self._threads = settings.registry, settings.insights.onnx_threads
        self._keys = signing.trusted(settings.models)
        self._languages = Languages()
        self._models: dict[str, Satisfaction] = {}
        self._refused: set[str] = set()
        self._none_said = False

    @property
    def versions(self) -> list[str]:
        """Ids of the models in use."""
        return [one.manifest.id for one in self._models.values()]

    def refresh(self) -> None:
        """Take the newest model of each language; one that is refused is said once, and what was there stays. So it does
        while the registry is away, which is said every time."""
        try:
            self._take(models.newest_of_each(self._registry))
        except RegistryAway as error:  # it says nothing about any model
            log.warning("satisfaction models cannot be looked for", registry=self._registry, why=str(error),
                        keeps=self.versions)  # fmt: skip

    def _take(self, newest: dict[str, str]) -> None:
        for language, ident in newest.items():
            known = self._models.get(language)
            if ident in self._refused or (known is not None and known.manifest.id == ident):
                continue
            try:
                self._models[language] = models.load(self._registry, ident, self._threads, self._keys)
            except RegistryAway:
                raise
            except BundleRefused as error:
                self._refused.add(ident)
                log.error("satisfaction model refused", model=ident, why=str(error), next="the one before stays")
            else:
                log.info("satisfaction model taken", model=ident, language=language)
        if not newest and not self._none_said:
            self._none_said = True
            log.warning("no satisfaction model in the registry: stars alone count", registry=self._registry,
                        next="clickwake evaluate satisfaction … --publish, see docs/satisfaction.md")  # fmt: skip

    def read(self, said: Sequence[Said]) -> list[Read]:
        """What each says; what one says does not depend on the others."""
        languages = [self._languages.of(one.text) for one in said]
        found: list[Read | None] = [None] * len(said)
        for language in dict.fromkeys(languages):
            some = [at for at, one in enumerate(languages) if one == language]
            for at, read in zip(some, self._read([said[at] for at in some], language), strict=True):
                found[at] = read
        return [one for one in found if one is not None]

    def _read(self, said: list[Said], language: str) -> list[Read]:
        """Texts of one language: each whole, and its sentences, in two calls of the model."""
        model = self._models.get(language)
        pieces = [aspects.sentences(one.text) for one in said]
        whole = _judge(model, [one.text for one in said])
        parts = _judge(model, [piece for some in pieces for piece in some])
        found, start = [], 0
        for at, (one, own) in enumerate(zip(said, pieces, strict=True)):
            text = bool(one.text)
            p = whole.p[at] if whole is not None and text else None
            stars = whole.stars[at] if whole is not None and whole.stars is not None and text else None
            of_pieces = parts.p[start : start + len(own)] if parts is not None else None
            start += len(own)
            counts = opinions.satisfaction(one.stars, stars, p)
            about = tuple(
                Aspect(aspect=mention.aspect, words=mention.words, sentence=own[mention.sentence],
                       p_satisfied=None if of_pieces is None else round(of_pieces[mention.sentence], 4))
                for mention in aspects.mentions(own)
            )  # fmt: skip
            found.append(Read(language, _rounded(counts), _rounded(stars), _rounded(p), about,
                              aspects.telling(own, of_pieces, counts), model.manifest.id if model else ""))  # fmt: skip
        return found


def _judge(model: Satisfaction | None, texts: list[str]) -> _Judged | None:
    if model is None or not texts:
        return None
    said = model.read(texts)
    stars = said.expected_stars()
    return _Judged(said.p_recommended.tolist(), None if stars is None else stars.tolist())


def _rounded(value: float | None) -> float | None:
    """Four digits: kernels differ in the last bits, and an opinion read again is to be the same."""
    return None if value is None else round(value, 4)
