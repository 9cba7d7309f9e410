"""What a review says of its writer: recommended or not, and how many stars.

    <registry>/satisfaction/<id>/manifest.json, encoder.onnx and tokenizer.json, ngrams.onnx

A model has a fine-tuned encoder, hashed character n-grams, or both: languages without an encoder have n-grams alone. Its
logits are blended and calibrated by the manifest's weights. As with bundles, the manifest is believed once its signature
was checked, where keys are in use, and a file once it was hashed.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.release import FileEntry
from schemas.unreadable import UNREADABLE
from stream.adapters.models import model_store
from stream.adapters.models.model_store import BundleRefused
from stream.adapters.models.onnx import TokenModel, session
from stream.adapters.models.signing import Keys
from stream.core.opinions import ngrams
from stream.core.opinions.ngrams import NgramPolicy
from stream.core.user.featurize import Float32

FORMAT_VERSION = 1
STARS = np.arange(1, 6)
ENCODER, TOKENIZER, NGRAMS = "encoder.onnx", "tokenizer.json", "ngrams.onnx"
NGRAM_BATCH_MAX = 256
GOLDEN_DELTA_MAX = 1e-3  # |Δ| of P(recommended) between machines; kernels differ in the last bits


class SatisfactionManifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json` of a satisfaction model."""

    format_version: int
    id: str
    language: str  # of the reviews it learned from, as ISO 639-1
    tokens_max: int  # of the encoder; longer reviews are cut
    ngrams: NgramPolicy | None  # None: without n-grams
    encoder_weight: float  # logit of P(recommended) = encoder_weight · encoder + ngrams_weight · n-grams + constant
    ngrams_weight: float
    constant: float
    stars_temperature: float | None  # of the encoder's star logits; None: it was taught no stars
    recommended_from: float  # P(recommended) from which a review counts as a recommendation
    golden: dict[str, float]  # text → P(recommended), to be repeated on each machine
    metrics: dict[str, float]  # on validation
    files: dict[str, FileEntry]


class Said(NamedTuple):
    """Of each review: P(recommended) (U,), whether it counts as a recommendation (U,), P of 1–5 stars (U, 5) or None."""

    p_recommended: npt.NDArray[np.float64]
    recommended: npt.NDArray[np.bool_]
    stars: npt.NDArray[np.float64] | None

    def expected_stars(self) -> npt.NDArray[np.float64] | None:
        """(U,): the mean of the distribution."""
        return None if self.stars is None else self.stars @ STARS


class Satisfaction:
    """A satisfaction model over its files.

    Raises ValueError, or what tokenizers and onnxruntime raise, for files that are not a model's.
    """

    def __init__(self, manifest: SatisfactionManifest, files: Mapping[str, bytes], threads: int) -> None:
        self.manifest = manifest
        self._encoder, self._ngrams = None, None
        if ENCODER in files:
            self._encoder = TokenModel(files[ENCODER], files[TOKENIZER], threads, manifest.tokens_max)
        if NGRAMS in files:
            self._ngrams = session(files[NGRAMS], threads)
        if self._encoder is None and self._ngrams is None:
            raise ValueError(f"satisfaction model {manifest.id} has neither an encoder nor n-grams")
        if self._ngrams is not None and manifest.ngrams is None:
            raise ValueError(f"satisfaction model {manifest.id} has n-grams, but its manifest does not say which")

    def read(self, texts: list[str]) -> Said:
        """What each review says; what one says does not depend on the others."""
        own = self.manifest
        logits, stars = self.logits(texts)
        p = _sigmoid(logits @ np.array([own.encoder_weight, own.ngrams_weight]) + own.constant)
        shares = None
        if stars is not None and own.stars_temperature is not None:
            shares = _softmax(stars, own.stars_temperature)
        return Said(p, p >= own.recommended_from, shares)

    def logits(self, texts: list[str]) -> tuple[Float32, Float32 | None]:
        """Before blending and calibration: (U, 2) of encoder and n-grams, 0 for one that is not there; stars (U, 5), None
        without an encoder."""
        found, stars = np.zeros((len(texts), 2), dtype=np.float32), None
        if self._encoder is not None:
            said = self._encoder.run(texts)
            found[:, 0], stars = said["recommended"], said["stars"]
        if self._ngrams is not None:
            found[:, 1] = self._by_ngrams(texts)
        return found, stars

    def _by_ngrams(self, texts: list[str]) -> Float32:
        assert self._ngrams is not None and self.manifest.ngrams is not None
        found = np.zeros(len(texts), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        for start in range(0, len(order), NGRAM_BATCH_MAX):
            some = order[start : start + NGRAM_BATCH_MAX]
            arrays = ngrams.batch([texts[at] for at in some], self.manifest.ngrams)
            found[some] = self._ngrams.run(["recommended"], arrays)[0]
        return found


def _sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -30, 30))))


def _softmax(x: Float32, temperature: float) -> npt.NDArray[np.float64]:
    raised = np.exp((x - x.max(axis=1, keepdims=True)).astype(np.float64) / temperature)
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def median_stars(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(U, 5) → (U,): the number of stars with the least expected absolute error.

    >>> median_stars(np.array([[0.0, 0.1, 0.2, 0.3, 0.4], [0.6, 0.1, 0.1, 0.1, 0.1]])).tolist()
    [4.0, 1.0]
    """
    return np.asarray(STARS[(np.cumsum(shares, axis=1) >= 0.5 - 1e-12).argmax(axis=1)], dtype=np.float64)


def uri_of(registry: str, model_id: str) -> str:
    return f"{registry.rstrip('/')}/satisfaction/{model_id}"


def load(registry: str, model_id: str, threads: int = 1, keys: Keys = ()) -> Satisfaction:
    """Fetch, verify and open; with `keys`, one of them must have signed the manifest. Raises `BundleRefused`."""
    uri = uri_of(registry, model_id)
    raw = model_store.read(f"{uri}/manifest.json")
    model_store.check_signature(uri, raw, keys)
    try:
        manifest = msgspec.json.decode(raw, type=SatisfactionManifest)
    except UNREADABLE as error:
        raise BundleRefused(f"{uri}/manifest.json is unreadable: {error}") from error
    if manifest.format_version != FORMAT_VERSION or manifest.id != model_id:
        found = f"{manifest.id} in format {manifest.format_version}"
        raise BundleRefused(f"{uri} holds {found}, expected is {model_id} in format {FORMAT_VERSION}")
    files = model_store.read_files(uri, manifest.files)
    try:
        model = Satisfaction(manifest, files, threads)
        said = model.read(list(manifest.golden)).p_recommended
    except Exception as error:  # onnxruntime and tokenizers raise many kinds for a file that is not what it should be
        raise BundleRefused(f"{uri} cannot be opened: {type(error).__name__}: {error}") from error
    delta = float(np.abs(said - np.array(list(manifest.golden.values()))).max(initial=0.0))
    if not delta <= GOLDEN_DELTA_MAX:
        raise BundleRefused(f"{uri} differs on its golden texts by {delta:.2g}, at most {GOLDEN_DELTA_MAX} is allowed")
    return model


def newest(registry: str, language: str) -> str | None:
    """The id of the model published last for a language; None when the registry has none. Raises `RegistryAway`."""
    return max(_ids(registry, f"*-{language}-*"), default=None)


def newest_of_each(registry: str) -> dict[str, str]:
    """Language → the id of the model published last for it. Raises `RegistryAway`."""
    # the last of a language wins: ids begin with their time
    return {one.split("-")[1]: one for one in sorted(_ids(registry, "*-*-*"))}


def _ids(registry: str, pattern: str) -> list[str]:
    manifests = model_store.listed(f"{registry.rstrip('/')}/satisfaction", f"{pattern}/manifest.json")
    return [posixpath.basename(posixpath.dirname(one)) for one in manifests]
