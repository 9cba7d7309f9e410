"""What each user of deploy/clickhouse/users.xml can do, tried in an engine with that file: JSON for the test beside this.

python -m tests.contract.granted FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from chdb.state.sqlitelike import Connection

from stream.adapters.database.clickhouse import migrations

USERS = ("clickwake_sink", "clickwake_erasure", "clickwake_training", "clickwake_strategies", "clickwake_analyst")
CONFIG = "<clickhouse><user_directories><users_xml><path>{}/users.xml</path></users_xml></user_directories></clickhouse>"
OWNER = """<clickhouse><profiles><default/></profiles><quotas><default/></quotas><users><default>
<password/><networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota>
<access_management>1</access_management></default></users></clickhouse>"""
DENIED = "Not enough privileges"


class Engine:
    """The engine with a server's configuration: the file lies where the compose file mounts it, in `users.d`."""

    def __init__(self, folder: Path, users: Path) -> None:
        (folder / "users.d").mkdir(parents=True)
        (folder / "config.xml").write_text(CONFIG.format(folder))
        (folder / "users.xml").write_text(OWNER)
        given = users.read_text().replace("<grants>", "<grants><query>GRANT SELECT ON probe.*</query>")  # to write from
        (folder / "users.d" / "clickwake.xml").write_text(given)
        self._raw = Connection(f"file:{folder / 'data'}?config-file={folder / 'config.xml'}&log-level=none")

    def rows(self, query: str) -> list[str]:
        return str(self._raw.query(query, "TSVRaw").data()).splitlines()

    def may(self, query: str) -> bool:
        """Whether it is allowed. Anything else that is wrong with it is raised."""
        try:
            self.rows(query)
        except RuntimeError as error:
            if DENIED not in str(error):
                raise
            return False
        return True


def tried(engine: Engine) -> dict[str, dict[str, list[str]]]:
    """By user: the grants that the engine has understood, and the tables and views that the user could read and write."""
    engine.rows("CREATE DATABASE clickwake")
    engine.rows("USE clickwake")
    for migration in migrations():
        for statement in migration.statements:
            engine.rows(statement)
    engine.rows("CREATE DATABASE probe")
    of_ours = "FROM system.tables WHERE database = 'clickwake'"
    readable = engine.rows(f"SELECT name {of_ours} AND empty(parameterized_view_parameters) ORDER BY name")
    tables = engine.rows(f"SELECT name {of_ours} AND engine != 'View' ORDER BY name")
    for name in tables:
        engine.rows(f"CREATE TABLE probe.{name} AS clickwake.{name} ENGINE = Null")
    return {user: _of(engine, user, readable, tables) for user in USERS}


def _of(engine: Engine, user: str, readable: list[str], tables: list[str]) -> dict[str, list[str]]:
    as_user = f"DEFINER = {user} SQL SECURITY DEFINER"
    reads, writes = [], []
    for name in readable:
        engine.rows(f"CREATE VIEW probe.seen {as_user} AS SELECT count() FROM clickwake.{name}")  # noqa: S608
        if engine.may("SELECT * FROM probe.seen"):
            reads.append(name)
        engine.rows("DROP VIEW probe.seen")
    for name in tables:
        engine.rows(
            f"CREATE MATERIALIZED VIEW probe.written TO clickwake.{name} {as_user} AS SELECT * FROM probe.{name}")  # noqa: S608
        if engine.may(f"INSERT INTO probe.{name} FORMAT JSONEachRow {{}}"):
            writes.append(name)
        engine.rows("DROP VIEW probe.written")
    return {"grants": engine.rows(f"SHOW GRANTS FOR {user}"), "reads": reads, "writes": writes, "all": readable}


if __name__ == "__main__":
    os.environ.update({f"CLICKHOUSE_{user.removeprefix('clickwake_').upper()}_PASSWORD": "x" for user in USERS})
    file = Path(__file__).parents[2] / "deploy" / "clickhouse" / "users.xml"
    print(json.dumps(tried(Engine(Path(sys.argv[1]), file))))
