"""What the stream needs of the world outside. Each port has a real adapter and a fake in the tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy.typing as npt

from schemas.erasure import Erasure
from schemas.release import Manifest
from stream.core.ranking.links import Links
from stream.core.segments.audience import Audience
from stream.core.terms import Begun
from stream.core.user.featurize import Float32

T = TypeVar("T")


class Runner(Protocol):
    """Runs a blocking model call off the event loop."""

    async def __call__(self, call: Callable[..., T], *args: object) -> T: ...


class Clock(Protocol):
    """Wall time, used only to carry a partition's clock through silence."""

    def now_ms(self) -> int: ...


class Models(Protocol):
    """A verified bundle, ready to run. Calls are synchronous and may take tens of milliseconds."""

    manifest: Manifest
    links: Links
    audience: Audience

    @property
    def learned(self) -> Mapping[str, Float32]:
        """Unit vectors (D,) of items seen in training, for those the catalog does not know."""
        ...

    def adapt(self, text_vectors: Float32, item_ids: list[str]) -> Float32:
        """(N, T) text vectors (zeros where there is no text) → (N, D) item vectors in the model's space."""
        ...

    def encode(self, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[Float32, Float32]:
        """Inputs of `featurize.batch` → user vectors (B, D), event weights (B, L)."""
        ...

    def survival(self, features: Float32) -> Float32:
        """(B, F) churn features → (B, E) log survival at `churn.EDGES_DAYS`."""
        ...

    def effects(self, features: Float32) -> dict[str, Float32]:
        """(B, F) alert features → for each delivery it knows of (B, 2): P(back within 7 days) if it is sent, and if not."""
        ...


class Fence(Protocol):
    """Between owners of a partition: a process may stop anywhere, even inside a write, and go on when it owns nothing."""

    def holds(self) -> bool:
        """Whether this process still owns what it owned, as far as anybody can know."""
        ...

    async def regained(self, partition: int) -> bool:
        """Where it does not hold: whether it does once the group has answered, or the partition is taken away."""
        ...

    async def written_between(self, partition: int, first: int, last: int) -> set[bytes]:
        """Keys of the changelog's records from one offset to another, both included; claims have `terms.CLAIM_KEY`."""
        ...


class Erasures(Protocol):
    """Whom nothing may be kept of, as the erasures topic says."""

    def covers(self, user_key: bytes, ts_ms: int) -> bool:
        """Whether what the user did at this time is not to be taken."""
        ...

    def until_ms(self, user_key: bytes) -> int:
        """Up to when the user was erased, -1 for never."""
        ...

    def takes(self, user_key: bytes, began_ms: int) -> bool:
        """Whether the profile that began then is one that an erasure takes, so that nothing more is to be said of it."""
        ...

    def suppresses(self, user_key: bytes) -> bool:
        """Whether nothing of the user is taken, whenever they did it."""
        ...

    def request(self, user_key: bytes) -> Erasure | None:
        """The oldest request to forget the user that is not done: the one that is carried out."""
        ...

    async def caught_up(self) -> None:
        """Return once everything that is on the topic now is known here."""
        ...


class Refusals(Protocol):
    """Who refuses advertising, as the topic of refusals says."""

    def refuses(self, user_key: bytes) -> bool: ...

    async def caught_up(self) -> None:
        """Return once everything that is on the topic now is known here."""
        ...


class Store(Protocol):
    """One partition's state on local disk."""

    @property
    def changelog_offset(self) -> int:
        """Offset of the last changelog record the values stand for, -1 for none."""
        ...

    @property
    def term(self) -> int:
        """The term that held there, see `stream.core.terms`."""
        ...

    @property
    def begun(self) -> Begun:
        """What was not closed there."""
        ...

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def write(self, puts: Mapping[bytes, bytes | None], changelog_offset: int, now_ms: int) -> None:
        """All or nothing, with the changelog offset the values stand for."""
        ...

    def purge(self, keys: Sequence[bytes]) -> None:
        """Nothing of these keys, which were deleted before, stays on disk when this returns."""
        ...
