"""A file of rules that people change while a process runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger()
T = TypeVar("T")


class Watched(Generic[T]):
    """`value` is what the file says, `nothing` where there is none. One that cannot be used is said, and what it said before
    stays."""

    def __init__(self, path: Path, load: Callable[[Path], T], nothing: T, what: str) -> None:
        """`load` raises ValueError for a file that cannot be used. `what` it is of, for the log."""
        self.path, self.value = path, nothing
        self._load, self._nothing, self._what = load, nothing, what
        self._seen: tuple[int, int] | None = None  # the file's time and size

    def look(self) -> None:
        """Take the file over if it has changed; costs one system call."""
        try:
            stat = self.path.stat()
            seen = (stat.st_mtime_ns, stat.st_size)
        except FileNotFoundError:
            seen = None
        except OSError as error:  # reading it says why
            seen = (0, error.errno or 0)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self.value = self._nothing if seen is None else self._load(self.path)
        except ValueError as error:
            log.error(f"{self._what} refused", why=str(error), next="what the file said before stays; mend it")
            return
        log.info(f"{self._what} taken", file=str(self.path), there=seen is not None)
