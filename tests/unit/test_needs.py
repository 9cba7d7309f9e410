"""A test that cannot be tried says so: here at the end of the run, in CI by failing where it need not be so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.needs import PROGRAMS, needs, needs_file, program

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No program on the path, and no CI."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CI", "CLICKWAKE_TEST_WITHOUT", *(f"CLICKWAKE_TEST_{one.upper()}" for one in PROGRAMS)):
        monkeypatch.delenv(name, raising=False)


def test_what_is_missing_skips_a_test_and_fails_it_in_ci_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pytest.skip.Exception, match="chromium: install it"):
        needs("chromium")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CLICKWAKE_TEST_WITHOUT=chromium"):
        needs("chromium")
    with pytest.raises(pytest.fail.Exception, match="CLICKWAKE_TEST_WITHOUT=promtool"):
        needs("promtool")
    with pytest.raises(pytest.skip.Exception, match="docker"):  # cannot be had everywhere
        needs("docker")
    monkeypatch.setenv("CLICKWAKE_TEST_WITHOUT", "kubectl,chromium")
    with pytest.raises(pytest.skip.Exception, match="chromium"):
        needs("chromium")


def test_a_program_is_found_on_the_path_under_any_of_its_names_or_where_it_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "google-chrome").touch(mode=0o755)
    assert needs("chromium") == program("chromium") == str(tmp_path / "google-chrome")
    monkeypatch.setenv("CLICKWAKE_TEST_CHROMIUM", "/opt/chromium")
    assert needs("chromium") == "/opt/chromium"
    assert needs_file(tmp_path / "google-chrome").exists()
    with pytest.raises(pytest.skip.Exception, match=r"data\.csv: .* is not there"):
        needs_file(tmp_path / "data.csv")


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "side by side"])
def test_the_end_of_a_run_says_what_was_not_tried(tmp_path: Path, workers: tuple[str, ...]) -> None:
    (tmp_path / "test_it.py").write_text(
        "from tests.support.needs import needs\nimport pytest\n"
        "@pytest.mark.parametrize('n', [1, 2])\ndef test_browser(n):\n    needs('chromium')\n"
        "def test_rules():\n    needs('promtool')\ndef test_nothing():\n    pass\n")  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml"),
               "--rootdir", str(tmp_path), *workers, str(tmp_path / "test_it.py")]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("not tried here: ")]
    assert [line.partition(", or")[0] for line in said] == [
        "not tried here: 2 for want of chromium: install it (chromium, chromium-browser or google-chrome)",
        "not tried here: 1 for want of promtool: install it"], done.stdout
