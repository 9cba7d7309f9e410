"""The browser's side: `clickwake.js`, which the collector serves, and how big it may be."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

FILE = Path(__file__).with_name("clickwake.js")


@lru_cache(maxsize=1)
def source() -> bytes:
    """The tracker as it is served: without its indentation, which no string in it goes over, and what stands behind ` // `,
    which no string has in it."""
    lines = (re.split(rb"(?:^|\s)// ", line.strip())[0] for line in FILE.read_bytes().splitlines())
    return b"\n".join(filter(None, lines))
