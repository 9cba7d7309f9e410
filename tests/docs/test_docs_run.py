"""Every command and all Python of the README and of docs/ runs, against one installation: the tutorial in its order, in a
shell that keeps its folder and its variables, then the other pages, whose placeholders are filled with what is there.
What is not run is declared here, with the reason."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from kafka import KafkaProducer
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from clickwake.local.up import read_status
from schemas.outputs import ChurnAlert
from stream.adapters.models import signing
from stream.settings import ClickHouse, Models, Settings
from tests.support import bundles
from tests.support.bundles import Exported
from tests.support.guides import ROOT, SHELL, TUTORIAL, Block, blocks, commands, guides, rule_files, spoken, words
from training.release import release
from training.text import text_encoder

HOME_FILES = {"segments": "segments.yml", "lifecycle": "segments.yml", "channels": "deliveries.yml",
              "experiments": "experiments.yml", "holdout": "offers.yml", "placements": "offers.yml"}  # fmt: skip
AWAITED_S, BLOCK_S = 60.0, 300.0
STRICT = 'set -eu\ncurl() { command curl --fail-with-body --silent --show-error "$@"; }'  # a 404 is a failure here
PLACEHOLDER = r"\b(USER|ID|ITEM_ID|VERSION|OTHER|TENANT|CAUSE|PATH|NAME|DIR)\b"

# pattern → why no test of this file runs it
NOT_RUN = {
    r"^make (install|test)": "CI runs `make test`, which first makes .venv by the rule that is all of `make install`",
    r"^make demo": "minutes, and servers of its own; tests/integration/test_demo.py has how it ends",
    r"^export PATH": "the tutorial has set it, for all that runs here",
    r"clickwake up --detach +#": "the installation that all of this runs in is up already, by the tutorial",
    r"clickwake up$": "goes on until it is stopped; tests/integration/test_traces.py has processes that trace",
    r"clickwake train +#|clickwake train --dataset": "test_docs_training.py, tests/integration/test_training_loop.py",
    r"clickwake train --every": "goes on until it is stopped; tests/integration/test_training_loop.py",
    r"clickwake evaluate": "minutes, and files that are not in the repository; test_docs_training.py, on small ones",
    r"clickwake models watch .*--candidate": "asks what was recommended a day ago; tests/integration/test_watch.py",
    r"\bdocker |^pip ": "needs a container engine, or changes the installation",
    r"clickwake (bench|demo|simulate)\b": "minutes; tests/unit has their parts, tests/integration/test_demo.py a demo",
    r"clickwake rewind$": "no worker may run; tests/faults/test_topics_changed.py",
    r"add-user NAME ": "asks for a password; tests/unit/test_sign_in.py has accounts with tenants",
    r"clickwake (key|erase --verify|erase USER --tenant T|replay events FILE.jsonl.gz|sql \"…\")$|train --events …":
        "short for what is shown whole elsewhere",
    r"^jupyter ": "a page for people; tests/docs/test_notebooks.py runs the notebooks",
}

# what the pages leave to the reader → what it is here; `there` adds what is known only once it is there
STANDS_FOR = {
    "key TENANT": "key outlet",
    "erase USER": "erase guest-4711", "predict USER ITEM_ID": "predict customer-1 CF1", "--item ID": "--item CF1",
    "--segment NAME": "--segment 'lifecycle/repeat buyer'", "--category NAME": "--category Coffee",
    "--picture PATH": "--picture strategies.png",
}  # fmt: skip
WRITE_KEYS = {"demo": "demo-write-key", "shop": "shop-write-key"}  # tenant → key


class Shell:
    """Runs blocks one after the other; folder and variables are kept from one to the next, as in a terminal."""

    def __init__(self, scratch: Path, env: dict[str, str]) -> None:
        self.cwd, self.env, self._scratch = ROOT, env, scratch
        self.shop = scratch / "shop"

    def run(self, text: str) -> subprocess.CompletedProcess[str]:
        text = self.here(text.replace("/tmp/shop", str(self.shop)))  # noqa: S108
        script = f"{STRICT}\n{text}\npwd > '{self._scratch}/cwd'\nenv -0 > '{self._scratch}/env'\n"
        done = subprocess.run(["bash", "-c", script], cwd=self.cwd, env=self.env, capture_output=True, text=True,
                              timeout=BLOCK_S, check=False)  # fmt: skip
        if done.returncode == 0:
            self.cwd = Path((self._scratch / "cwd").read_text().strip())
            pairs = (self._scratch / "env").read_text().rstrip("\0").split("\0")
            self.env = dict(pair.split("=", 1) for pair in pairs)
        return done

    def here(self, text: str) -> str:
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

    def until(self, command: str, expect: str) -> str:
        """What a command prints once it is what is expected."""
        block = Block("bash", command, expect, "what the pages speak of")
        self.succeed(block)
        return self.run(command).stdout

    def send(self, tenant: str, *events: dict[str, Any]) -> None:
        """One batch; the collector takes what it can of it."""
        status = read_status(self.shop / ".clickwake")
        assert status is not None
        answer = httpx.post(f"{status.collector}/v1/batch", json={"batch": events}, auth=(WRITE_KEYS[tenant], ""),
                            trust_env=False)  # fmt: skip
        answer.raise_for_status()


@pytest.fixture(scope="module")
def shell(kafka: str, clickhouse: ClickHouse, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """After the whole tutorial but for its end. Its servers are those that the other tests use too."""
    scratch = tmp_path_factory.mktemp("docs")
    variables = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS": kafka,
                 "CLICKWAKE_KAFKA__TOPIC_PREFIX": "docs", "CLICKWAKE_CLICKHOUSE__HOST": clickhouse.host,
                 "CLICKWAKE_CLICKHOUSE__PORT": str(clickhouse.port), "CLICKWAKE_CLICKHOUSE__DATABASE": "docs",
                 "CLICKWAKE_COLLECTOR__WRITE_KEYS": json.dumps(WRITE_KEYS), "COLUMNS": "200"}  # fmt: skip
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
    shell.until("clickwake sql --json \"SELECT countIf(kind = 'dropped') AS n FROM dead_letters\"", r'"n": ?"?0\b')


@pytest.fixture(scope="module")
def there(shell: Shell, exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the pages' commands speak of is there, and what stands for it."""
    return STANDS_FOR | letters(shell) | visitors(shell) | models(shell, exported, tmp_path_factory.mktemp("keys"))


def viewed(price: Any, **ids: str) -> dict[str, Any]:
    return {"type": "track", "event": "Product Viewed", "properties": {"product_id": "CF1", "price": price}} | ids


def letters(shell: Shell) -> dict[str, str]:
    """Dead letters of two causes: of one the fix is known, the other one is the README's."""
    shell.send("demo", viewed(7.5, userId="customer-3"), viewed("7,50", userId="customer-3"),
               viewed("8.20", userId="customer-4"), viewed(9.5, user_id="customer-5"))
    listed = json.loads(shell.until("clickwake dead-letters list --json", r"(?s)properties\.price.*userId"))
    by_path = {one["path"]: one for one in listed["causes"]}
    price, nobody = by_path["properties.price"], by_path["userId"]
    assert price["letters"] == 2
    return {"repair ID": f"repair {nobody['example']}", "--cause CAUSE": f"--cause {price['cause']}"}


def visitors(shell: Shell) -> dict[str, str]:
    """Opinions about coffee, one of them a repeat buyer's, and somebody who wants to be forgotten by another shop."""
    told = [{"product_id": f"CF{1 + n % 2}", "rating": 1 + n % 5} for n in range(8)]
    shell.send("demo", *({"type": "track", "event": "Product Reviewed", "userId": f"customer-{n}", "properties": one}
                         for n, one in enumerate(told, 1)))
    shell.send("shop", viewed(7.5, userId="guest-4711"))
    shell.until("clickwake sql --json \"SELECT count() AS n FROM strategy_opinions\"", r'"n": ?"?8\b')
    shell.until("clickwake segments members 'lifecycle/repeat buyer'", "customer-1")
    shell.until("clickwake sql \"SELECT user FROM events WHERE tenant = 'shop'\"", "guest-4711")
    return {}


def models(shell: Shell, exported: Exported, keys: Path) -> dict[str, str]:
    """Two bundles, the newer one signed by a key that is to be changed for the one that the page makes."""
    settings = Settings(home=shell.shop / ".clickwake")
    space = text_encoder.export(settings)
    first = bundles.publish(settings.registry, exported, space=space).model_version
    second = bundles.publish(settings.registry, exported, seed=1, space=space, parent=first).model_version
    old = signing.keygen(keys / "old.key")
    signed = Models.model_validate({"registry": settings.registry, "signing_key": str(keys / "old.key")})
    release.sign_again(settings.model_copy(update={"models": signed}), second, trust=True)
    changed = (f"CLICKWAKE_MODELS__SIGNING_KEY={settings.home}/keys/signing.key "
               f"CLICKWAKE_MODELS__VERIFY_KEYS='[\"{old.text}\"]'")  # fmt: skip
    again = " && ".join(f"clickwake release {one}" for one in (first, second))  # what was announced once is gone back to
    return {"clickwake models sign VERSION": f"{changed} clickwake models sign {second}", "VERSION": second, "OTHER": first,
            "clickwake rollback": f"{again} && clickwake rollback"}  # fmt: skip


def filled(command: str, there: dict[str, str]) -> str:
    for said, meant in there.items():
        command = command.replace(said, meant)
    assert not re.search(PLACEHOLDER, command), f"STANDS_FOR has to say what this speaks of: {command}"
    return command


def shown(page: Path) -> list[Block]:
    """A block for each command of a page, without those of the tutorial that have run already."""
    return [block._replace(text=command) for block in blocks(page, *SHELL) if page != TUTORIAL or block.language != "bash"
            for command in commands(block)]


def named(page: Path) -> list[Block]:
    """What the page has between backticks, beyond the beginnings of commands that a block shows."""
    whole = [words(command) or [] for path in guides() for block in blocks(path, *SHELL) for command in commands(block)]
    found = {one.text: one for one in spoken(page)}
    return [one for text, one in found.items() if not any(shown[: len(text.split())] == text.split() for shown in whole)]


def why_not_run(command: str) -> str | None:
    return next((pattern for pattern in NOT_RUN if re.search(pattern, command)), None)


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in guides() if shown(page) or named(page)])
def test_every_other_command_of_a_page_runs(page: Path, shell: Shell, there: dict[str, str]) -> None:
    for first, text, _ in rule_files(page):  # what the page says a file may be is the file while its commands run
        if first in HOME_FILES:
            (shell.shop / ".clickwake" / HOME_FILES[first]).write_text(text)
    for block in (*shown(page), *named(page)):
        if not why_not_run(block.text):
            shell.succeed(block._replace(text=filled(block.text, there)))


def test_what_is_not_run_is_on_a_page() -> None:
    left_out = {why_not_run(block.text) for page in guides() for block in (*shown(page), *named(page))}
    assert left_out - {None} == set(NOT_RUN), "these reasons are no longer needed"


def sends(shell: Shell, block: Block) -> None:
    """What the client was told arrives: with items and revenue, where SQL finds it."""
    done = subprocess.run([sys.executable, "-c", shell.here(block.text)], cwd=shell.cwd, env=shell.env, check=False,
                          capture_output=True, text=True, timeout=BLOCK_S)  # fmt: skip
    assert done.returncode == 0, done.stderr
    asked = "clickwake sql --json \"SELECT revenue FROM event_products FINAL WHERE user = 'u1' AND order_id = 'o1'\""
    shell.succeed(Block("bash", asked, r"\b19\b", block.where))


def hears(shell: Shell, block: Block) -> None:
    """It goes on for ever: until it has printed the alert that is on the topic."""
    now = datetime.now(UTC)
    alert = ChurnAlert(
        alert_id="of-the-docs", tenant="demo", user_id="u1", state="raised", probability=0.83, horizon_days=14,
        interval=(0.8, 0.9), reasons=("silent for 9.0 days, never came back before",), last_event_ts=now, as_of_ts=now,
        model_version="none")  # fmt: skip
    servers = shell.env["CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS"]
    producer = KafkaProducer(bootstrap_servers=servers, acks="all")
    producer.send("docs.churn-alerts.v1", key=b"demo/u1", value=msgspec.json.encode(alert)).get(30)
    producer.close()
    text = block.text.replace("clickwake.churn-alerts.v1", "docs.churn-alerts.v1").replace("127.0.0.1:9092", servers)
    with subprocess.Popen([sys.executable, "-u", "-c", text], env=shell.env, stdout=subprocess.PIPE, text=True) as listener:
        too_long = threading.Timer(BLOCK_S, listener.kill)
        too_long.start()
        try:
            heard = any("'alert_id': 'of-the-docs'" in line for line in listener.stdout or ())
        finally:
            too_long.cancel()
            listener.kill()
    assert heard, f"{block.where}: it ended, or was ended, without a word of the alert"


def serves(shell: Shell, block: Block) -> None:
    """In a server of one's own, which knows whose session it is."""
    code: dict[str, Any] = {}
    exec(shell.here(block.text), code)  # noqa: S102 - our own page

    async def sign_in(request: Request) -> Response:
        request.session["user_id"] = "customer-1"
        return Response()

    async def visit() -> httpx.Response:
        routes = [Route("/sign-in", sign_in), Route("/recommended", code["recommended"])]
        server = Starlette(routes=routes, middleware=[Middleware(SessionMiddleware, secret_key=secrets.token_hex())])
        asked = httpx.AsyncClient(transport=httpx.ASGITransport(server), base_url="http://shop.example")
        async with code["api"], asked as browser:
            await browser.get("/sign-in")
            return await browser.get("/recommended")

    answer = asyncio.run(visit())
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["user_id"] == "customer-1" and found["items"]
    assert all(one["item"].keys() == {"title", "price", "image_url", "url"} for one in found["items"])
    assert all(one["item"]["title"] for one in found["items"]), "known before anything is trained"


# what a piece of Python has in it → what it is to have done
PYTHON = {"client.track(": sends, "KafkaConsumer(": hears, "async def recommended": serves}


def test_all_python_does_what_it_is_there_for(shell: Shell) -> None:
    found = [block for path in guides() for block in blocks(path, "python")]
    assert len(found) >= len(PYTHON)
    for block in found:
        does = [check for mark, check in PYTHON.items() if mark in block.text]
        assert len(does) == 1, f"{block.where}: PYTHON above has to say what it does"
        does[0](shell, block)


def test_down_is_the_end(shell: Shell) -> None:
    assert shell.run("clickwake down").returncode == 0
    assert read_status(shell.shop / ".clickwake") is None
