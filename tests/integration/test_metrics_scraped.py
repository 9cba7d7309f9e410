"""A real Prometheus beside everything that `clickwake up` runs: it evaluates each expression of the dashboards and of the
alert rules, and they are about metrics that live processes have."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from clickwake.local import process
from clickwake.local.up import Local
from schemas import topics
from stream.settings import ClickHouse
from tests.integration.test_delivery_worker import alert
from tests.support.cluster import Sender, answers, running, until
from tests.support.fakes import event
from tests.support.needs import needs
from tests.unit.test_deploy import METRIC, ROOT, alerts, expressions

DELIVERIES = """
channels: {files: {type: csv, folder: %s}}
caps: [{messages: 1, days: 7}]
deliveries:
  - {name: save them, channel: files, about: churn}
  - {name: all of them, channel: files, about: churn}
"""
ASK = 'sum by (status, reason) (clickwake_deliveries_total{delivery="all of them"})'


def targets(local: Local) -> dict[str, str]:
    """Where each process says its metrics, by the name of its job."""
    found = {name: f"127.0.0.1:{getattr(local.settings, name).port}" for name in ("collector", "api")}
    for path in (local.home / "run").glob("*.json"):
        said = json.loads(path.read_text())
        if "metrics_port" in said:
            found[path.stem.partition("-")[0]] = f"127.0.0.1:{said['metrics_port']}"
    return found


class Prometheus:
    """Its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer; fails with what Prometheus says."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=20, trust_env=False).json()
        assert answer["status"] == "success", f"{parameters}: {answer.get('error')}"
        return answer["data"]

    def listens(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def asked(self, expression: str) -> dict[str, float]:
        """Each series' labels and value now."""
        return {" ".join(f"{one}={of}" for one, of in sorted(row["metric"].items())): float(row["value"][1])
                for row in self.get("query", query=expression)["result"]}  # fmt: skip


@contextlib.contextmanager
def prometheus(where: dict[str, str], home: Path) -> Iterator[Prometheus]:
    """One with the configuration of deploy/, its targets where they are now."""
    binary, folder = needs("prometheus"), ROOT / "deploy" / "prometheus"
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    config |= {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(folder / "rules.yml")]}
    config["scrape_configs"] = [{"job_name": job["job_name"], "static_configs": [{"targets": [where[job["job_name"]]]}]}
                                for job in config["scrape_configs"]]  # fmt: skip
    home.mkdir()
    (home / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = process.free_port()
    with (home / "prometheus.log").open("wb") as log:
        running = subprocess.Popen([binary, f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data",
                                    f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)  # fmt: skip
    try:
        made = Prometheus(f"http://127.0.0.1:{port}")
        until(made.listens, 30, "Prometheus listens")
        yield made
    finally:
        running.terminate()
        running.wait(20)


@pytest.fixture
def home(kafka: str, clickhouse: ClickHouse, topic_prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Of an installation on the tests' servers, with something to deliver."""
    made = tmp_path / "home"
    for name, value in {"CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS": kafka, "CLICKWAKE_KAFKA__TOPIC_PREFIX": topic_prefix,
                        "CLICKWAKE_CLICKHOUSE__HOST": clickhouse.host, "CLICKWAKE_CLICKHOUSE__PORT": str(clickhouse.port),
                        "CLICKWAKE_CLICKHOUSE__DATABASE": topic_prefix, "CLICKWAKE_HOME": str(made),
                        # the usual ones are for an installation of tests beside this one
                        **{f"CLICKWAKE_{name}__PORT": str(process.free_port()) for name in ("API", "COLLECTOR")},
                        }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    made.mkdir()
    (made / "deliveries.yml").write_text(DELIVERIES % (made / "out"))
    return made


def test_prometheus_evaluates_every_expression_about_metrics_that_live_processes_have(home: Path, tmp_path: Path) -> None:
    needs("prometheus")  # before anything is started
    with (Local(home) as local, _dashboard(local),
          prometheus(targets(local), tmp_path / "prometheus") as made):  # fmt: skip
        until(lambda: _all_up(made), 60, "every job is scraped")
        with Sender(local.settings, topics.CHURN_ALERTS) as said, Sender(local.settings) as events:
            events.send([event(user=f"u{number}", item="i1") for number in range(20)])
            said.send([alert("u1")])
        until(lambda: any(made.asked(ASK).values()), 60, "what became of the alert is scraped")
        known = {re.sub("_total$", "", name) for name in made.get("metadata")}
        silent = []
        for expression in expressions():
            if not made.asked(expression):  # raises where it is not understood
                silent.append(expression)
            for name in re.findall(METRIC, expression):
                assert re.sub(r"_(bucket|sum|count|total)$", "", name) in known, name
        print(f"{len(expressions())} expressions, without a series so far:", *silent, sep="\n  ")
        rules = until(lambda: _evaluated(made), 30, "every rule is evaluated")
        assert {one["name"]: one["health"] for one in rules} == {one["alert"]: "ok" for one in alerts()}
        capped = "reason=cap over all: at most 1 message to a person in 7 days status=capped"
        wanted = {"status=sent": 0.0, "status=failed": 0.0, capped: 1.0}
        until(lambda: made.asked(ASK) == wanted, 30, f"{wanted}")  # one look that comes late leaves a gap


@contextlib.contextmanager
def _dashboard(local: Local) -> Iterator[None]:
    """As `clickwake dashboard` beside `up`, once it has answered."""
    port = process.free_port()
    with running(local.settings, "clickwake.dashboard", local.home, CLICKWAKE_DASHBOARD__PORT=str(port)):
        until(lambda: answers(f"http://127.0.0.1:{port}/"), 60, "the dashboard answers")
        yield


def _all_up(made: Prometheus) -> bool:
    return {one["health"] for one in made.get("targets")["activeTargets"]} == {"up"}


def _evaluated(made: Prometheus) -> list[dict[str, Any]] | None:
    """The rules, once all have been looked at."""
    rules = [rule for group in made.get("rules")["groups"] for rule in group["rules"]]
    return rules if rules and all(not one["lastEvaluation"].startswith("0001") for one in rules) else None
