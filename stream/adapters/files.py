"""Files that other processes read: there as they were or as they are, never half written."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write beside it and rename; folders above are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_bytes(data)
    draft.replace(path)


def append_line(path: Path, line: bytes, head: bytes) -> None:
    """Add a line, on disk when this returns; a new file begins with `head`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if file.tell() == 0:
            file.write(head)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
