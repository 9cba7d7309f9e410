"""What a release knows of everybody: clusters of users and quantiles of what users do, learned by
training/clusters/audience.py.

Both are constants of a release, so that two workers, a replay and a batch say the same; they move when a release does.

A user is in the cluster whose centroid is nearest to their vector by cosine, as of their last event. So that nobody flaps
between two that are nearly equally near, the visits before the last one are asked where the nearest leads by less than
MARGIN: who was nearer to another of the close ones then stays there. That is hysteresis without memory: a function of the
user's history alone, whatever the moments at which it was looked at, so that a stream and a batch agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from stream.core.user.featurize import HOUR_MS, Float32
from stream.core.user.state import UserState

MARGIN = 0.05  # of cosine; docs/results.md, "Clusters of users", has what it does
CALM_MS = 6 * HOUR_MS  # silence between two visits, as in training
STEPS = 100  # quantiles are kept at each hundredth; between two of them a line
POPULATIONS: Mapping[str, str] = {"quantile": "everybody", "buyers_quantile": "buyers"}  # function of a rule → whose
CLUSTERS_MAX = 64
Doubles = npt.NDArray[np.float64]


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """Users with like vectors. `id` and `name` stay when the next release finds the same users together."""

    id: str
    name: str  # readable, of its items' words
    terms: tuple[str, ...]  # that tell it from the others, the most telling first
    users: int  # when it was learned
    items: tuple[str, ...]  # nearest to the centroid, of those that its users touch
    centroid: tuple[float, ...]  # (D,) of length 1


class Audience(msgspec.Struct, frozen=True, kw_only=True):
    """`audience.json` of a bundle. `quantiles`: population → field → (STEPS + 1,) values, ascending."""

    users: int = 0
    clusters: tuple[Cluster, ...] = ()
    quantiles: dict[str, dict[str, tuple[float, ...]]] = {}
    measured: dict[str, float] = {}  # of the clustering: silhouettes, structure, agreement with the release before

    def centroids(self) -> Float32:
        """(K, D), rows of length 1."""
        dim = len(self.clusters[0].centroid) if self.clusters else 0
        return np.array([one.centroid for one in self.clusters], dtype=np.float32).reshape(len(self.clusters), dim)

    def quantile(self, population: str, field: str, share: float) -> float:
        """What a share of the population is at or below; NaN where the release does not know.

        >>> Audience(quantiles={"buyers": {"revenue": tuple(range(101))}}).quantile("buyers", "revenue", 0.805)
        80.5
        """
        values = self.quantiles.get(population, {}).get(field)
        return float("nan") if values is None else float(np.interp(share * STEPS, np.arange(STEPS + 1), values))


NO_AUDIENCE = Audience()
_decoder = msgspec.json.Decoder(Audience)


def to_bytes(audience: Audience) -> bytes:
    """The file in a bundle."""
    return msgspec.json.encode(audience)


def from_bytes(data: bytes, dim: int) -> Audience:
    """Inverse of `to_bytes`. Raises ValueError for what does not fit together or a model of `dim` dimensions.

    >>> from_bytes(to_bytes(NO_AUDIENCE), 4) == NO_AUDIENCE
    True
    """
    found = _decoder.decode(data)
    names = [one.name for one in found.clusters]
    if len(names) > CLUSTERS_MAX or len(set(names)) < len(names) or len({one.id for one in found.clusters}) < len(names):
        raise ValueError(f"audience.json has clusters of one name or id, or more than {CLUSTERS_MAX}: {', '.join(names)}")
    for one in found.clusters:
        if len(one.centroid) != dim or abs(float(np.linalg.norm(one.centroid)) - 1) > 1e-3:
            raise ValueError(f"audience.json: the centroid of {one.name!r} is no vector of {dim} dimensions and length 1")
    for population, fields in found.quantiles.items():
        for field, values in fields.items():
            if len(values) != STEPS + 1 or not (np.isfinite(values).all() and (np.diff(values) >= 0).all()):
                raise ValueError(f"audience.json: quantiles of {field} of {population} are not {STEPS + 1} rising numbers")
    return found


def similarities(vectors: Float32, centroids: Float32) -> Float32:
    """Cosine of users (B, D) and centroids (K, D) → (B, K); zeros for a user without a vector."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)  # (B, 1)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-9)
    found: Float32 = unit @ centroids.T
    return found


def unsure(states: Sequence[UserState], near: Float32, margin: float = MARGIN) -> tuple[list[int], list[int]]:
    """Users whose two nearest of (B, K) are so close that the visits before their last are asked: rows, and as of when."""
    if near.shape[1] < 2:
        return [], []
    two = np.partition(near, -2, axis=1)[:, -2:]
    ends_ms = {row: before_last_visit_ms(states[row]) for row in np.flatnonzero(two[:, 1] - two[:, 0] < margin).tolist()}
    return [row for row, end_ms in ends_ms.items() if end_ms], [end_ms for end_ms in ends_ms.values() if end_ms]


def settled(near: Float32, rows: Sequence[int], then: Float32, margin: float = MARGIN) -> npt.NDArray[np.int64]:
    """Cosines now (B, K), and of some `rows` at the end of the visit before (R, K) → (B,): the nearest; for these the one
    that was the nearest then of the clusters within the margin of the nearest now.

    >>> now = np.array([[0.70, 0.72, 0.1], [0.70, 0.72, 0.1], [0.2, 0.9, 0.1]], dtype=np.float32)
    >>> settled(now, [0], np.array([[0.9, 0.2, 0.95]], dtype=np.float32)).tolist()
    [0, 1, 1]
    """
    found = np.asarray(near.argmax(axis=1), dtype=np.int64)
    if len(rows):
        some = near[list(rows)]
        close = some > some.max(axis=1, keepdims=True) - margin
        found[list(rows)] = np.where(then.any(axis=1), np.where(close, then, -np.inf).argmax(axis=1), found[list(rows)])
    return found


def before_last_visit_ms(state: UserState) -> int:
    """When the visit before the last one ended, 0 where the ring holds but one."""
    history = state.history()
    for later, earlier in zip(reversed(history), reversed(history[:-1]), strict=False):
        if later.ts_ms - earlier.ts_ms >= CALM_MS:
            return earlier.ts_ms
    return 0


def history_mark(state: UserState) -> int:
    """Stands for what the cluster is decided from: another history has another mark.

    >>> history_mark(UserState(last_ts_ms=1)) == history_mark(UserState(last_ts_ms=2))
    False
    """
    whole = msgspec.msgpack.encode((state.last_ts_ms, state.history()))
    return int.from_bytes(hashlib.blake2b(whole, digest_size=6).digest(), "big")
