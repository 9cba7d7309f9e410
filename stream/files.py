"""Files that other processes read: there as they were or as they are, never half written."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write beside it and rename; folders above are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_bytes(data)
    draft.replace(path)


class RunFile:
    """`<home>/run/<name>.json`: a process's id and what it says of itself, from the first `say` until `end`. What one that
    was killed leaves behind is told by the id."""

    def __init__(self, home: Path, name: str, **said: str | int) -> None:
        self._path, self._said = home / "run" / f"{name}.json", said

    def say(self, **more: str | int) -> None:
        """Write what was said before, and more."""
        self._said |= more
        write_whole(self._path, json.dumps({"pid": os.getpid(), **self._said}).encode())

    def end(self) -> None:
        """Take it back, unless another process has taken over and says something there by now."""
        if self._path.exists() and json.loads(self._path.read_bytes())["pid"] == os.getpid():
            self._path.unlink(missing_ok=True)


def append_line(path: Path, line: bytes, head: bytes) -> None:
    """Add a line, on disk when this returns; a new file begins with `head`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if file.tell() == 0:
            file.write(head)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
