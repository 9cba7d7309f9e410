"""How `make demo KEEP=1` ends, in a process of its own: everything stays up, with shop and dashboard, until it is told to
end. What comes before takes minutes; the tests of the simulator, of training and of the workers have its parts."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.cluster import answers, until

DEMO_ENDS = """
import sys
from pathlib import Path
from rich.console import Console
from clickwake.demo.stage import Stage
from clickwake.local.up import Local

with Local(Path(sys.argv[1])) as local:
    Stage(local, Console(width=400)).stay(True)
"""
STARTED_S, ENDED_S = 180.0, 60.0  # a broker, an engine and twelve processes, beside other tests


class Demo(NamedTuple):
    """Its process, what it says, and the pages that it names."""

    process: subprocess.Popen[str]
    said: list[str]
    shop: str
    dashboard: str
    api: str
    collector: str

    def end(self) -> None:
        """As Ctrl-C does; it must end in order."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(ENDED_S) == 0, "".join(self.said)


@contextlib.contextmanager
def staying(home: Path) -> Iterator[Demo]:
    """A demo for the length of a block, once all of its pages answer."""
    said: list[str] = []
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}  # it changes NiceGUI
    with subprocess.Popen([sys.executable, "-c", DEMO_ENDS, str(home)], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env=env | {"CLICKWAKE_HOME": str(home)}) as process:  # fmt: skip
        assert process.stdout
        reading = threading.Thread(target=said.extend, args=(process.stdout,))
        reading.start()
        try:
            until(lambda: process.poll() is not None or "stays up" in "".join(said), STARTED_S, "it stays up")
            told = "".join(said)
            assert process.poll() is None, told
            pages = re.findall(r"http://[\d.:]+\d(?:/docs)?", told[told.index("The shop is open"):])
            assert len(pages) == 4, f"shop, dashboard, read API and collector: {told}"
            for page in pages:
                until(lambda page=page: answers(page), STARTED_S, f"{page} answers")
            demo = Demo(process, said, *pages)
            yield demo
            if process.poll() is None:
                demo.end()
        finally:
            process.kill()
            reading.join(ENDED_S)
