"""One real broker and one embedded ClickHouse server a process of pytest, started when the first test asks for them.

Tests share both: use `topic_prefix` for topics, and a database or tables of your own. `make test` runs several processes
side by side: a test has the servers of its process, and nothing else of the machine, to itself.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import psutil
import pytest
from filelock import FileLock

from stream.settings import ClickHouse, Kafka, Settings
from tests.support.cluster import end_left_over
from tests.support.kafka_python import close_what_is_watched
from tests.support.needs import not_tried

if TYPE_CHECKING:
    from tests.support.bundles import Exported

# laws are about values: how long an example takes, to make or to check, is the machine's business
hypothesis.settings.register_profile("clickwake", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("clickwake")
close_what_is_watched()

WORKER_BYTES = 5 << 30  # of memory: a broker, a ClickHouse, up to ten processes under test, and torch in the tests' own


def pytest_xdist_auto_num_workers() -> int:
    """Of `pytest -n auto`: as many as there are processors, and as there is memory for."""
    return max(1, min(psutil.cpu_count() or 1, psutil.virtual_memory().total // WORKER_BYTES))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was skipped is said whoever asks how: else nobody would know what a run has not shown."""
    for line in not_tried(terminalreporter.stats.get("skipped", ())):
        terminalreporter.write_line(line, yellow=True)


@pytest.fixture(scope="session", autouse=True)
def default_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where settings that name no home write: never the folder the tests run in, whose models and checkpoints are real."""
    with pytest.MonkeyPatch.context() as patched:
        home = tmp_path_factory.mktemp("home")
        patched.setenv("CLICKWAKE_HOME", str(home))
        yield home


@pytest.fixture(scope="module", autouse=True)
def nothing_left_over() -> Iterator[None]:
    yield
    end_left_over()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of all processes of this run; take a lock for what is made there."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture(scope="session")
def runtime_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clickwake")


@pytest.fixture(scope="session")
def kafka(runtime_home: Path, shared: Path) -> Iterator[str]:
    """Bootstrap servers of a real Kafka broker."""
    from clickwake.local import process
    from clickwake.local.broker import Broker
    from clickwake.local.kafka_jars import fetch_jars

    with FileLock(shared / "jars.lock"):  # what is not in the cache yet is downloaded by one
        fetch_jars(runtime_home)
    with Broker(runtime_home, port=process.free_port()) as broker:
        yield broker.bootstrap_servers


@pytest.fixture(scope="session")
def clickhouse(runtime_home: Path) -> Iterator[ClickHouse]:
    """Settings of the embedded ClickHouse server; the database in them does not exist yet."""
    from clickwake.local import process
    from clickwake.local.clickhouse.launch import ClickHouseServer

    with ClickHouseServer(runtime_home, port=process.free_port()) as server:
        yield ClickHouse(port=server.port)


@pytest.fixture
def topic_prefix() -> str:
    """A prefix no other test uses."""
    return _prefix()


@pytest.fixture
def settings(kafka: str, clickhouse: ClickHouse, topic_prefix: str, tmp_path: Path) -> Settings:
    """Settings of one test: the shared servers, its own topics, database and home."""
    return _own(kafka, clickhouse, topic_prefix, tmp_path / "home")


@pytest.fixture(scope="module")
def lasting(kafka: str, clickhouse: ClickHouse, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """`settings` for what all tests of a module look at: starting it takes longer than looking."""
    return _own(kafka, clickhouse, _prefix(), tmp_path_factory.mktemp("home"))


def _own(kafka: str, clickhouse: ClickHouse, prefix: str, home: Path) -> Settings:
    return Settings(
        home=home,
        kafka=Kafka.model_validate({"bootstrap_servers": kafka, "topic_prefix": prefix}),
        clickhouse=clickhouse.model_copy(update={"database": prefix}),
    )


def _prefix() -> str:
    return f"t{uuid.uuid4().hex[:10]}"


@pytest.fixture(scope="session")
def exported() -> Exported:
    """The files of a tiny bundle; `tests.support.bundles.publish` makes whole bundles of them."""
    from tests.support import bundles

    return bundles.exported()


@pytest.fixture(scope="session")
def text_encoder(shared: Path) -> Path:
    """A registry with the real text encoder, which is exported once a run. To be copied, not written to."""
    from training.text.text_encoder import export

    made = Settings(home=shared / "text-encoder")
    with FileLock(shared / "text-encoder.lock"):
        export(made)  # unless it is there
    return Path(made.registry)


@pytest.fixture(scope="session")
def registry(text_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it, into which tests publish."""
    return shutil.copytree(text_encoder, tmp_path_factory.mktemp("registry") / "models")


@pytest.fixture(scope="session")
def data_sets() -> Path:
    """Folder of the public data sets; tests that need one skip with the file's name when it is not there."""
    return Path(os.environ.get("CLICKWAKE_TEST_DATA", str(Path(__file__).parents[2] / "shared" / "data")))
