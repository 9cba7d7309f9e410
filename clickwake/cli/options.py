"""Arguments and options that several commands take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

WORKERS = min(2, os.cpu_count() or 1)  # one Python process uses one core; broker and ClickHouse leave room for a second

DATA_SETS = "events (your own, JSON lines), online-retail, taobao, deskdrop or cdnow"
DatasetName = Annotated[str, typer.Argument(help=DATA_SETS)]
DataPath = Annotated[Path, typer.Argument(help="the data set's file, gzip or plain")]
AsJson = Annotated[bool, typer.Option("--json", help="print the comparison as JSON")]
NamedDataset = Annotated[
    tuple[str, Path] | None, typer.Option(help="NAME PATH of a data set that `clickwake replay` sends, instead")
]
ReportDir = Annotated[Path | None, typer.Option("--report", help="folder for a page with tables and plots")]
