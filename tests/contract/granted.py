"""What a user of deploy/clickhouse/users.xml can do, tried in an engine with that file: JSON for the test beside this.

Nobody signs in to the embedded engine: whoever asks is its user `default`. The owner makes the tables; after that, in a
process for each, the user is `default`.

python -m tests.contract.granted FOLDER owner|USER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from xml.etree import ElementTree

from chdb.state.sqlitelike import Connection

from stream.adapters.database.clickhouse import migrations

USERS = ("clickwake_sink", "clickwake_erasure", "clickwake_training", "clickwake_strategies",
         "clickwake_segments", "clickwake_analyst")  # fmt: skip
FILE = Path(__file__).parents[2] / "deploy" / "clickhouse" / "users.xml"
CONFIG = "<clickhouse><user_directories><users_xml><path>{}/users.xml</path></users_xml></user_directories></clickhouse>"
LIMITS = "<profiles><default/></profiles><quotas><default/></quotas>"
OWNER = """<users><default><password/><networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota>
<access_management>1</access_management></default></users>"""
DENIED = ("(ACCESS_DENIED)", "(READONLY)")
GRANTED = "(CANNOT_UPDATE_COLUMN)"  # one of the table's key: looked at after the grant
OTHERS = ("TRUNCATE TABLE {}", "ALTER TABLE {} ADD COLUMN another String", "ALTER TABLE {} MODIFY TTL partition_time",
          "OPTIMIZE TABLE {} FINAL", "RENAME TABLE {} TO clickwake.another", "DROP TABLE {}")  # fmt: skip
ANYWHERE = ("CREATE TABLE clickwake.another (x String) ENGINE = Null", "CREATE DATABASE another", "DROP DATABASE clickwake",
            "CREATE USER another", "GRANT SELECT ON *.* TO default")  # fmt: skip


class Engine:
    """The engine with a server's configuration: `given` lies where the compose file mounts users.xml, in `users.d`."""

    def __init__(self, folder: Path, own: str, given: str) -> None:
        (folder / "users.d").mkdir(parents=True, exist_ok=True)
        (folder / "config.xml").write_text(CONFIG.format(folder))
        (folder / "users.xml").write_text(f"<clickhouse>{LIMITS}{own}</clickhouse>")
        (folder / "users.d" / "clickwake.xml").write_text(given)
        self._raw = Connection(f"file:{folder / 'data'}?config-file={folder / 'config.xml'}&log-level=none")

    def rows(self, query: str) -> list[str]:
        return str(self._raw.query(query, "TSVRaw").data()).splitlines()

    def may(self, query: str) -> bool:
        """Whether it is allowed. Anything else that is wrong with it is raised."""
        try:
            self.rows(query)
        except RuntimeError as error:
            text = str(error).rstrip()
            if not text.endswith((*DENIED, GRANTED)):
                raise
            return text.endswith(GRANTED)
        return True


def made(folder: Path) -> dict[str, list[str]]:
    """Every table that the migrations make, and its columns; of views no columns."""
    os.environ.update({f"CLICKHOUSE_{user.removeprefix('clickwake_').upper()}_PASSWORD": "x" for user in USERS})
    engine = Engine(folder, OWNER, FILE.read_text())
    assert set(USERS) <= set(engine.rows("SELECT name FROM system.users")), "the file whole is one that the engine takes"
    engine.rows("CREATE DATABASE clickwake")
    engine.rows("USE clickwake")
    for migration in migrations():
        for statement in migration.statements:
            engine.rows(statement)
    of_ours = "FROM system.tables WHERE database = 'clickwake'"
    readable = engine.rows(f"SELECT name {of_ours} AND empty(parameterized_view_parameters) ORDER BY name")
    columns = dict[str, list[str]]((name, []) for name in readable)
    for row in engine.rows(f"SELECT table, name FROM system.columns WHERE database = 'clickwake' AND table IN "  # noqa: S608
                           f"(SELECT name {of_ours} AND engine != 'View') ORDER BY table, position"):
        table, name = row.split("\t")
        columns[table].append(name)
    return columns


def alone(user: str) -> str:
    """The file as if this user were called `default` and had no password, and no other were there."""
    root = ElementTree.parse(FILE).getroot()  # noqa: S314  # our own
    everybody = root.find("users")
    assert everybody is not None
    for one in list(everybody):
        if one.tag == user:
            one.tag = "default"
            one.remove(*one.iter("password"))
            ElementTree.SubElement(one, "password")
        else:
            everybody.remove(one)
    return ElementTree.tostring(root, encoding="unicode")


def tried(folder: Path, user: str, made: dict[str, list[str]]) -> dict[str, list[str]]:
    """What the user could do to which of them; `others` are whole statements."""
    may = Engine(folder, "", alone(user)).may
    tables = [name for name, columns in made.items() if columns]
    whole = [one.format(f"clickwake.{name}") for name in tables for one in OTHERS]
    return {
        "reads": [name for name in made if may(f"SELECT count() FROM clickwake.{name}")],  # noqa: S608
        "writes": [name for name in tables if may(f"INSERT INTO clickwake.{name} FORMAT JSONEachRow {{}}")],
        "deletes": [name for name in tables if may(f"ALTER TABLE clickwake.{name} DELETE WHERE false")],
        "updates": [f"{name}.{column}" for name in tables for column in made[name]
                    if may(f"ALTER TABLE clickwake.{name} UPDATE `{column}` = `{column}` WHERE false")],
        "others": [one for one in (*whole, *ANYWHERE) if may(one)],
    }  # fmt: skip


if __name__ == "__main__":
    home, who = Path(sys.argv[1]), sys.argv[2]
    print(json.dumps(made(home) if who == "owner" else tried(home, who, json.load(sys.stdin))))
