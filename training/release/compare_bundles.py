"""Two bundles of the registry on the same newest held-out days of a history: the same users, the same items, in pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from stream.adapters.models import model_store, signing
from stream.adapters.models.model_store import BundleRefused
from stream.adapters.models.onnx import Bundle
from stream.settings import Settings
from training import train
from training.evaluation.comparison import Comparison
from training.history.snapshot import History
from training.recommend import held_out
from training.recommend.judging import Values
from training.release import gate, release
from training.text import texts
from training.text.texts import Texts


def load(settings: Settings, version: str) -> Bundle:
    """A bundle of the registry by its version, verified as a worker would. Raises `BundleRefused`."""
    uri = model_store.bundle_uri(settings.registry, version)
    raw = release.manifest_bytes(settings.registry, version)
    return model_store.admit(settings.registry, uri, raw, settings.training.threads, signing.trusted(settings.models))


def texts_for(
    settings: Settings, history: History, bundles: Mapping[str, Bundle], say: Callable[[str], None], *, running: bool = False
) -> Texts:
    """The catalog's texts in the one space of the bundles, see `texts.encode`. Raises `BundleRefused` when they were made
    for different text encoders, or for another one than this installation has."""
    spaces = {one.manifest.text_space for one in bundles.values()}
    if len(spaces) > 1:
        raise BundleRefused(f"{' and '.join(bundles)} were made for different text encoders ({', '.join(sorted(spaces))}): "
                            "their vectors cannot be compared on one catalog")  # fmt: skip
    known = texts.encode(settings, history.items, say, running=running)
    if spaces != {known.space}:
        raise BundleRefused(f"{next(iter(bundles))} was made for text encoder {spaces.pop()}, this installation has "
                            f"{known.space}; set CLICKWAKE_TRAINING__TEXT_MODEL to the one it was trained with")  # fmt: skip
    return known


def compare(
    settings: Settings, history: History, version: str, other: str, say: Callable[[str], None] = lambda message: None
) -> Comparison:
    """`version` as the served model beside `other`. Raises `BundleRefused` when a bundle cannot be loaded or the two were
    made for different text encoders, and `EmptyHistory` when the history is too short to be split.

    The days are the newest of the history. A bundle that was trained on some of them has an advantage there, its links
    apart: `settings` of the result says up to when each has learned.
    """
    bundles = {one: load(settings, one) for one in (version, other)}
    known = texts_for(settings, history, bundles, say)
    _, from_ms, end_ms = train.windows(history)
    found: dict[str, Values] = {}
    for name, bundle in bundles.items():
        say(f"asking {name}")
        found[name] = gate.values(history, bundle, known, gate.Days(from_ms, end_ms, unseen=True))
    compared = held_out.comparison(history.name, from_ms, found, version)
    learned: dict[str, float | str] = {
        f"{name} learned until": f"{one.manifest.data_to:%Y-%m-%dT%H:%M:%SZ}" for name, one in bundles.items()
    }
    return Comparison(task="recommend", dataset=compared.dataset, split=compared.split, n=compared.n, models=compared.models,
                      served=version, ahead=compared.ahead, settings=learned)  # fmt: skip
