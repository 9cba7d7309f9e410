"""Users to discovered clusters, live: with their recommendation, whose vector says it, or a few at a time, when they did
something since and the next one is not due yet, or when a release with other clusters has come."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import islice

import numpy as np
import numpy.typing as npt

from stream.core.segments import audience
from stream.core.user.featurize import Float32, sequence
from stream.core.user.state import Placed, UserState
from stream.partition import PartitionState
from stream.ports import Runner
from stream.recommending import encoded
from stream.serving import Serving

PLACED_USERS_MAX = 32  # of each kind, encoded when one interval closes: some 20 ms a partition and quarter second


def stale(state: UserState, serving: Serving) -> bool:
    """Whether the user's cluster is of another release, or of another history, than they have now."""
    if serving.models is None or not state.events or state.claims:
        return False
    return state.placed.release != serving.version or state.placed.mark != audience.history_mark(state)


async def place(
    serving: Serving, tenant: str, states: Seq[UserState], run: Runner, vectors: Float32 | None = None
) -> None:
    """Set where each belongs, as of their last event. `vectors` (B, D) as of then, where they are known already.

    Of a user whose items are all unknown nothing is kept: the catalog may still come.
    """
    if not states:
        return
    index, states = serving.index(tenant), list(states)

    async def vectors_of(some: list[UserState], now_ms: list[int]) -> Float32:
        sequences = [sequence(state, at, serving.events_max) for state, at in zip(some, now_ms, strict=True)]
        found, _ = await encoded(serving, index, sequences, now_ms, run)
        return np.zeros((len(some), serving.dim), dtype=np.float32) if found is None else found

    if not len(serving.centroids):
        names = [""] * len(states)
        known: npt.NDArray[np.bool_] = np.ones(len(states), dtype=bool)
    else:
        if vectors is None:
            vectors = await vectors_of(states, [state.last_ts_ms for state in states])
        known = np.asarray(vectors.any(axis=1))  # (B,)
        near = audience.similarities(vectors, serving.centroids)  # (B, K)
        rows, ends_ms = audience.unsure(states, near)
        then = await vectors_of([states[row] for row in rows], ends_ms) if rows else near[:0]
        found = audience.settled(near, rows, audience.similarities(then, serving.centroids) if rows else then)
        names = [serving.audience.clusters[at].name if some else "" for at, some in zip(found, known, strict=True)]
    for state, name, some in zip(states, names, known, strict=True):
        state.placed = Placed(serving.version, audience.history_mark(state), name) if some else Placed()


async def place_some(part: PartitionState, serving: Serving, run: Runner) -> list[bytes]:
    """Place PLACED_USERS_MAX of those who strayed and as many of the others who wait for it; returns their keys."""
    keys: list[bytes] = []
    for waiting in (part.strayed, part.unplaced):
        some = list(islice(waiting, PLACED_USERS_MAX))
        for key in some:
            del waiting[key]
        keys += some
    keys = list(dict.fromkeys(keys))
    part.load(keys)
    keys = [key for key in keys if stale(part.read(key), serving)]
    by_tenant: dict[str, list[bytes]] = {}
    for key in keys:
        by_tenant.setdefault(key.decode().split("/", 1)[0], []).append(key)
    for tenant, some in by_tenant.items():
        await place(serving, tenant, [part.change(key) for key in some], run)
    return keys
