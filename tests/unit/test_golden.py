"""What earlier versions wrote is read as it was meant: events and outputs on the topics, states, counts and bundles."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.golden.samples import FORMS, VERSION

FOLDER = Path(__file__).parents[1] / "golden"
VERSIONS = sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and path.name[0].isdigit())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_form_of_every_version_is_read(version: str) -> None:
    names = {path.name for path in (FOLDER / version).iterdir() if not path.name.endswith(".read.json")}
    assert names <= FORMS.keys(), "a form that is gone needs a way to read what was written in it"
    for name in names:
        meant = msgspec.json.decode((FOLDER / version / f"{name}.read.json").read_bytes())
        found = msgspec.to_builtins(FORMS[name].read((FOLDER / version / name).read_bytes()), str_keys=True)
        assert_holds(msgspec.json.decode(msgspec.json.encode(found)), meant, f"{version}/{name}")


def assert_holds(found: object, meant: object, where: str) -> None:
    """All that was meant is there; a later version may have added fields, behind the others in those read as arrays."""
    if isinstance(meant, dict):
        assert isinstance(found, dict), where
        for key, value in meant.items():
            assert key in found, f"{where}: {key} is gone"
            assert_holds(found[key], value, f"{where}.{key}")
    elif isinstance(meant, list):
        assert isinstance(found, list) and len(found) >= len(meant), where
        for at, value in enumerate(meant):
            assert_holds(found[at], value, f"{where}[{at}]")
    else:
        assert found == meant, where


def test_this_version_has_its_files() -> None:
    """`python -m tests.golden` writes them."""
    assert {path.name for path in (FOLDER / VERSION).iterdir()} == {
        file for name in FORMS for file in (name, f"{name}.read.json")
    }
    for name, form in FORMS.items():
        assert form.write(form.sample) == (FOLDER / VERSION / name).read_bytes(), (
            f"{name} is written otherwise than version {VERSION} wrote it: raise the version, then python -m tests.golden"
        )
