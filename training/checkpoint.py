"""Training that goes on where it was stopped: the state of a run on disk, found again by all it depends on.

A run is named by a hash of its data, its settings and the code that trains, so that none takes up another's state.
Randomness is drawn anew for each step from the seed and the step's number: a run that was stopped and went on is the same,
bit for bit, as one that was not, except that a budget of seconds counts what both took.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import structlog
import torch

log = structlog.get_logger()
SAVE_EVERY_S = 30.0  # what is lost at most; the state of a fine-tuned MiniLM, 270 MB, takes half a second
KEPT_S = 7 * 86_400.0  # of what was stopped, for whoever gives the same command again: data and code change, it piles up
ROOT = Path(__file__).parents[1]

_own: set[Path] = set()  # what runs of this process have gone on with or saved


@functools.cache
def _code(root: Path) -> bytes:
    """A hash of what trains and what makes features."""
    files = sorted([*root.glob("training/**/*.py"), *root.glob("stream/core/**/*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).digest()


class Checkpoint:
    """One run's state; nothing is kept without a folder."""

    def __init__(self, folder: Path | None, name: str, parts: Iterable[bytes | str]) -> None:
        digest = hashlib.sha256(_code(ROOT) + torch.__version__.encode())
        for part in parts:
            digest.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
        self._path = None if folder is None else folder / f"{name}-{digest.hexdigest()[:16]}.pt"
        if self._path is not None:
            _own.add(self._path)
        self._saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """What was saved last; None when there is nothing, or nothing that can be read."""
        if self._path is None or not self._path.exists():
            return None
        try:
            found: dict[str, Any] = torch.load(self._path, weights_only=True)  # tensors and plain values, never code
        except Exception as error:  # torch raises many kinds for a file that is not what it should be
            log.warning("checkpoint left out", file=str(self._path), why=f"{type(error).__name__}: {error}")
            return None
        return found

    def due(self) -> bool:
        """Whether it is time to save."""
        return self._path is not None and time.monotonic() - self._saved >= SAVE_EVERY_S

    def save(self, state: dict[str, Any]) -> None:
        """Replace what was saved, whole or not at all."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._path)
        self._saved = time.monotonic()


def clear(folder: Path) -> None:
    """What this process learned is published: it is not to be gone on with, nor what nobody has touched for KEPT_S. Another
    process may be learning in the same folder."""
    for path in [one for one in _own if one.parent == folder]:
        path.unlink(missing_ok=True)
        _own.discard(path)
    for path in [*folder.glob("*.pt"), *folder.glob("*.partial")]:
        with contextlib.suppress(FileNotFoundError):  # of a process that has just ended
            if time.time() - path.stat().st_mtime > KEPT_S:
                path.unlink()
