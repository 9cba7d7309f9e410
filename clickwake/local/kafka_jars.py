"""The broker's jars: named by Maven coordinates in `kafka.lock`, each with its sha256.

    python -m clickwake.local.kafka_jars fetch    # only get and check the jars
    python -m clickwake.local.kafka_jars lock     # write kafka.lock anew, after a change of version
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clickwake.local.process import StartError

KAFKA_VERSION = "4.1.2"
ROOTS = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.3",  # without a binding the broker logs nothing at all
)
LOCK = Path(__file__).with_name("kafka.lock")
DOWNLOAD_THREADS = 8
DOWNLOAD_ATTEMPTS = 3

Progress = Callable[[str, int, int], None]  # (what, done, total)


@dataclass(frozen=True)
class Jar:
    sha256: str
    coordinate: str  # group:artifact:version

    @property
    def filename(self) -> str:
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


def read_lock(lock: Path = LOCK) -> tuple[Jar, ...]:
    """The pinned jars. Lines are `sha256  group:artifact:version`; `#` starts a comment."""
    lines = (line.split("#")[0].split() for line in lock.read_text().splitlines())
    return tuple(Jar(*parts) for parts in lines if parts)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def user_cache() -> Path:
    """Shared by every checkout of this user, so that a clean clone downloads nothing again."""
    return Path.home() / ".cache" / "clickwake" / "kafka"


def jar_folders(home: Path) -> tuple[Path, Path]:
    return home / "kafka" / "jars", user_cache()


def fetch_jars(home: Path, progress: Progress | None = None) -> list[Path]:
    """Paths of all locked jars, each verified; the missing ones are downloaded to the user's cache.

    A file of the right name with the wrong content is replaced. Raises `StartError` when a jar cannot be had, or when
    what was downloaded has another hash than the lock says: then nothing is started.
    """
    jars = read_lock()
    found = {jar: _verified(jar, jar_folders(home)) for jar in jars}
    absent = [jar for jar, path in found.items() if path is None]
    if absent:
        target = _writable(home)
        done = 0
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target) as scratch, \
                ThreadPoolExecutor(DOWNLOAD_THREADS) as pool:
            for jar, path in zip(absent, pool.map(lambda jar: _download(jar, Path(scratch), target), absent), strict=True):
                found[jar] = path
                done += 1
                if progress:
                    progress(jar.filename, done, len(absent))
    return [path for path in found.values() if path is not None]


def missing(home: Path) -> list[Jar]:
    """Locked jars that are not here, or not as the lock says."""
    return [jar for jar in read_lock() if _verified(jar, jar_folders(home)) is None]


def _verified(jar: Jar, folders: tuple[Path, ...]) -> Path | None:
    for folder in folders:
        path = folder / jar.filename
        if path.is_file() and sha256(path) == jar.sha256:
            return path
    return None


def _writable(home: Path) -> Path:
    """The user's cache, or `<home>/kafka/jars` where that cannot be written (read-only home folders of CI)."""
    for folder in reversed(jar_folders(home)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise StartError(f"no folder for the broker's jars can be written (tried {', '.join(map(str, jar_folders(home)))}); "
                     "free some space or set CLICKWAKE_HOME to a folder you own")


def _download(jar: Jar, scratch: Path, target: Path) -> Path:
    """Fetch one jar by its coordinate, check it, and move it into place in one step."""
    import requests
    from jgo.maven import MavenContext, PythonResolver

    group, artifact, version = jar.coordinate.split(":")
    for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
        context = MavenContext(resolver=PythonResolver(), repo_cache=scratch / f"{artifact}-{attempt}", timeout=30)
        try:
            path = Path(context.project(group, artifact).at_version(version).artifact().resolve())
            break
        except (requests.RequestException, RuntimeError, OSError) as error:
            if attempt == DOWNLOAD_ATTEMPTS:
                raise StartError(f"cannot download {jar.coordinate}: {error}\nCheck the network (a proxy is taken from "
                                 f"HTTPS_PROXY), or put {jar.filename} into {target} yourself") from error
    actual = sha256(path)
    if actual != jar.sha256:
        raise StartError(f"{jar.coordinate} was downloaded with sha256 {actual}, but {LOCK.name} says {jar.sha256}. "
                         "Somebody changed it on the way; nothing was started. Try another network")
    final = target / jar.filename
    path.replace(final)
    return final


def write_lock(lock: Path = LOCK) -> int:
    """Resolve `ROOTS` with their dependencies and write the lock; returns how many jars there are."""
    from jgo.maven import MavenContext, PythonResolver

    with tempfile.TemporaryDirectory() as scratch:
        context = MavenContext(resolver=PythonResolver(), repo_cache=Path(scratch), timeout=30)
        chosen: dict[tuple[str, str], Any] = {}
        for root in ROOTS:  # one by one: resolved together, log4j's managed versions would overrule Kafka's own
            inputs, transitive = context.resolver.resolve([context.create_dependency(root)])
            for found in (*inputs, *transitive):
                chosen.setdefault((found.groupId, found.artifactId), found)
        lines = {f"{d.groupId}:{d.artifactId}:{d.version}": sha256(Path(d.artifact.resolve())) for d in chosen.values()}
    header = f"# Apache Kafka {KAFKA_VERSION} and what it needs, written by `python -m clickwake.local.kafka_jars lock`.\n"
    lock.write_text(header + "".join(f"{lines[name]}  {name}\n" for name in sorted(lines)))
    return len(lines)


if __name__ == "__main__":
    action = sys.argv[1] if len(sys.argv) > 1 else "fetch"
    if action == "lock":
        print(f"{write_lock()} jars locked in {LOCK.name}")
    elif action == "fetch":
        print(f"{len(fetch_jars(Path('.clickwake')))} jars verified")
    else:
        sys.exit(f"unknown action {action}: use fetch or lock")
