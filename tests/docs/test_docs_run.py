"""Every command of the README and of docs/ runs, against one installation: the tutorial in its order, in a shell that keeps
its folder and its variables, then what the other pages say. What is not run is declared here, with the reason."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clickwake.up import read_status
from stream.settings import ClickHouse
from tests.support.guides import ROOT, SHELL, TUTORIAL, Block, blocks, commands, guides, rule_files

HOME_FILES = {"segments": "segments.yml", "lifecycle": "segments.yml", "channels": "deliveries.yml",
              "experiments": "experiments.yml", "holdout": "offers.yml", "placements": "offers.yml"}  # fmt: skip
AWAITED_S, BLOCK_S = 20.0, 120.0
STRICT = 'set -eu\ncurl() { command curl --fail-with-body --silent --show-error "$@"; }'  # a 404 is a failure here
PLACEHOLDER = r"\b(USER|ID|VERSION|OTHER|TENANT|PATH|NAME|DIR)\b"

# pattern → why no test of this file runs it
NOT_RUN = {
    r"^make ": "what CI itself runs",
    PLACEHOLDER: "stands for something of the reader's",
    r"clickwake up --detach +#": "the installation that all of this runs in is up already, by the tutorial",
    r"clickwake (train|demo)": "minutes; tests/integration/test_releases.py, tests/unit/test_training_*.py",
    r"clickwake evaluate": "minutes and a public data set; tests/unit/test_training_*.py, test_satisfaction_evaluation.py …",
    r"clickwake (rollback|release|models watch)": "needs trained bundles; tests/integration/test_releases.py, test_watch.py",
    r"clickwake dead-letters (repair|replay)": "needs dead letters; tests/integration/test_dead_letters.py",
    r"^docker |^pip ": "needs a container engine, or changes the installation",
    r"^jupyter ": "a page for people; tests/docs/test_notebooks.py runs the notebooks",
}


class Shell:
    """Runs blocks one after the other; folder and variables are kept from one to the next, as in a terminal."""

    def __init__(self, scratch: Path, env: dict[str, str]) -> None:
        self.cwd, self.env, self._scratch = ROOT, env, scratch
        self.shop = scratch / "shop"

    def run(self, text: str) -> subprocess.CompletedProcess[str]:
        text = self._here(text.replace("/tmp/shop", str(self.shop)))  # noqa: S108
        script = f"{STRICT}\n{text}\npwd > '{self._scratch}/cwd'\nenv -0 > '{self._scratch}/env'\n"
        done = subprocess.run(["bash", "-c", script], cwd=self.cwd, env=self.env, capture_output=True, text=True,
                              timeout=BLOCK_S, check=False)  # fmt: skip
        if done.returncode == 0:
            self.cwd = Path((self._scratch / "cwd").read_text().strip())
            pairs = (self._scratch / "env").read_text().rstrip("\0").split("\0")
            self.env = dict(pair.split("=", 1) for pair in pairs)
        return done

    def _here(self, text: str) -> str:
        """The usual addresses are those of this installation: others may use the usual ports on this machine."""
        status = read_status(self.shop / ".clickwake")
        if status is not None:
            text = text.replace("http://127.0.0.1:8080", status.collector).replace("http://127.0.0.1:8090", status.api)
        return text

    def succeed(self, block: Block) -> None:
        """Run it; until it prints what is expected, or an address answers: what is asked for may be under way."""
        deadline = time.monotonic() + AWAITED_S
        while True:
            done = self.run(block.text)
            said = f"{block.where}\n{block.text}\n{done.stdout}\n{done.stderr}"
            if done.returncode == 0 and (block.expect is None or re.search(block.expect, done.stdout)):
                return
            awaited = block.expect is not None or block.text.startswith("curl ")
            assert awaited and time.monotonic() < deadline, f"{said}\nexpected: {block.expect}"


@pytest.fixture(scope="module")
def shell(kafka: str, clickhouse: ClickHouse, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """After the whole tutorial but for its end. Its servers are those that the other tests use too."""
    scratch = tmp_path_factory.mktemp("docs")
    variables = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS": kafka,
                 "CLICKWAKE_KAFKA__TOPIC_PREFIX": "docs", "CLICKWAKE_CLICKHOUSE__HOST": clickhouse.host,
                 "CLICKWAKE_CLICKHOUSE__PORT": str(clickhouse.port), "CLICKWAKE_CLICKHOUSE__DATABASE": "docs",
                 "COLUMNS": "200"}  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CLICKWAKE_")}
    shell = Shell(scratch, inherited | variables)
    try:
        for block in blocks(TUTORIAL, "bash"):
            if "clickwake down" not in block.text:
                shell.succeed(block)
        yield shell
    finally:
        shell.run("clickwake down")


def test_the_tutorial_works(shell: Shell) -> None:
    status = read_status(shell.shop / ".clickwake")
    assert status is not None and status.ready and shell.cwd == shell.shop


def test_every_other_command_runs_or_says_why_not(shell: Shell) -> None:
    home, left_out = shell.shop / ".clickwake", set()
    item = re.search(r"clickwake catalog items\.jsonl +# (\{.+?\}) a line", (ROOT / "README.md").read_text())
    assert item is not None
    (shell.shop / "items.jsonl").write_text(f"{item[1]}\n")
    for path in guides():
        for first, text, _ in rule_files(path):  # what the page says a file may be is the file while its commands run
            if first in HOME_FILES:
                (home / HOME_FILES[first]).write_text(text)
        shown = [block for block in blocks(path, *SHELL) if path != TUTORIAL or block.language != "bash"]
        for block in shown:
            for command in commands(block.text):
                if why := next((pattern for pattern in NOT_RUN if re.search(pattern, command)), None):
                    left_out.add(why)
                else:
                    shell.succeed(block._replace(text=command.removeprefix(".venv/bin/")))
    assert left_out == set(NOT_RUN), "these reasons are no longer needed"


def test_down_is_the_end(shell: Shell) -> None:
    assert shell.run("clickwake down").returncode == 0
    assert read_status(shell.shop / ".clickwake") is None
