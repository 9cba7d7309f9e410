"""The compose file: valid where a docker client is there, and no secret written into it."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from stream.erasure.rows import ABOUT
from stream.sink.tables import TABLES

ROOT = Path(__file__).parents[2]
CONFIG = ElementTree.parse(ROOT / "deploy" / "clickhouse" / "users.xml").getroot()  # noqa: S314  # our own file
COMPOSE = ROOT / "docker-compose.yml"


def test_compose_config_is_valid() -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("no docker compose client on this machine")
    users = ("SINK_", "ERASURE_", "TRAINING_", "ANALYST_", "")
    secrets = {f"CLICKHOUSE_{user}PASSWORD": "x" for user in users} | {"CLICKWAKE_WRITE_KEYS": '{"shop": "k"}'}
    done = subprocess.run(["docker", "compose", "-f", str(COMPOSE), "config", "--quiet"], cwd=ROOT, capture_output=True,
                          text=True, env={**os.environ, **secrets})  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_every_long_running_service_restarts_and_runs_unprivileged() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for name in ("collector", "catalog", "personalize", "sink", "erasure", "training"):
        service = services[name]
        assert service["restart"] == "unless-stopped" and service["cap_drop"] == ["ALL"], name
    assert {"healthcheck"} <= services["kafka"].keys() & services["clickhouse"].keys() & services["collector"].keys()
    assert "USER clickwake" in (ROOT / "Dockerfile").read_text()


def grants(user: str) -> list[str]:
    """What the file lets a user do."""
    found = CONFIG.findall(f"users/{user}/grants/query")
    return [" ".join((one.text or "").split()) for one in found]


def test_every_table_the_sink_writes_is_granted_to_it_and_nothing_else() -> None:
    assert grants("clickwake_sink") == [f"GRANT INSERT, SHOW COLUMNS ON clickwake.{table.name}" for table in TABLES]


def test_every_table_about_users_is_granted_to_the_erasure_worker() -> None:
    found = grants("clickwake_erasure")
    assert len(found) == len(ABOUT)
    for table in ABOUT:
        (grant,) = (one for one in found if one.endswith(f"ON clickwake.{table}"))
        assert "SELECT, ALTER DELETE" in grant and "INSERT" not in grant and "DROP" not in grant


def test_readers_may_only_read_and_the_engine_knows_every_grant() -> None:
    for user in ("clickwake_training", "clickwake_analyst"):
        assert grants(user) == ["GRANT SELECT ON clickwake.*"]
        profile = CONFIG.findtext(f"users/{user}/profile")
        assert CONFIG.findtext(f"profiles/{profile}/readonly") == "2"
    import chdb

    for user in ("clickwake_sink", "clickwake_erasure", "clickwake_training", "clickwake_analyst"):
        for grant in grants(user):
            assert chdb.query(f"EXPLAIN AST {grant} TO somebody").bytes().startswith(b'"GrantQuery"')


def test_every_user_has_a_password_from_the_environment_and_no_process_is_the_owner() -> None:
    users, services = CONFIG.find("users"), yaml.safe_load(COMPOSE.read_text())["services"]
    assert users is not None
    given = services["clickhouse"]["environment"]
    for user in users:
        password = user.find("password")
        assert password is not None and password.attrib["from_env"] in given, user.tag
    owners = [name for name, one in services.items()
              if (one.get("environment") or {}).get("CLICKWAKE_CLICKHOUSE__USER") == "clickwake"]  # fmt: skip
    assert owners == ["setup"]
    for name, user in (("sink", "clickwake_sink"), ("erasure", "clickwake_erasure"), ("training", "clickwake_training")):
        assert services[name]["environment"]["CLICKWAKE_CLICKHOUSE__USER"] == user
    assert services["sink"]["environment"]["CLICKWAKE_SINK__MIGRATE"] == "false"


def test_nothing_is_unpickled() -> None:
    """A pickle is code: no module of ours reads one, and torch reads weights only."""
    for path in (file for folder in ("stream", "workers", "producers", "training", "clickwake", "schemas")
                 for file in (ROOT / folder).rglob("*.py")):  # fmt: skip
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {"pickle", "joblib", "dill", "shelve", "marshal"} & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                safe = {one.arg: ast.unparse(one.value) for one in node.keywords}
                wanted = {"weights_only": "True"} if "torch" in ast.unparse(node.func) else {"allow_pickle": "False"}
                assert wanted.items() <= safe.items(), f"{path}:{node.lineno}"


def test_lock_files_are_hashed_and_name_no_index() -> None:
    for lock in ROOT.glob("requirements*.lock"):
        text = lock.read_text()
        pins = [line for line in text.splitlines() if "==" in line]
        assert len(pins) > 30 and text.count("--hash=sha256:") >= len(pins)
        assert "://" not in text and "--index" not in text
