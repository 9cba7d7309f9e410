"""What a process says of itself in its home: whole, and until it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path

from stream.files import RunFile


def test_it_says_more_and_more_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "run" / "sink.json"
    file = RunFile(tmp_path, "sink", metrics_port=1)
    file.end()
    for ready in (False, True):
        file.say(ready=ready)
        assert json.loads(path.read_bytes()) == {"pid": os.getpid(), "metrics_port": 1, "ready": ready}
    file.end()
    assert list(path.parent.iterdir()) == []


def test_who_was_taken_over_leaves_what_the_other_says(tmp_path: Path) -> None:
    path = tmp_path / "run" / "offers.json"
    file = RunFile(tmp_path, "offers")
    file.say()
    other = json.dumps({"pid": os.getpid() + 1})
    path.write_text(other)
    file.end()
    assert path.read_text() == other
