"""`python -m tests.golden`: what travels and what is stored, as this version writes it, kept for later ones to read.

Run once a release; a folder that is there is never written again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from tests.golden.samples import FORMS, VERSION

FOLDER = Path(__file__).parent

if __name__ == "__main__":
    target = FOLDER / VERSION
    if target.exists():
        sys.exit(f"{target} is there: what a version wrote does not change")
    target.mkdir()
    for name, form in FORMS.items():
        raw = form.write(form.sample)
        (target / name).write_bytes(raw)
        (target / f"{name}.read.json").write_bytes(msgspec.json.format(msgspec.json.encode(form.read(raw)), indent=1))
    sys.stdout.write(f"{len(FORMS)} forms in {target}\n")
