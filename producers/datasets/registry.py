"""The data sets by the name the command line knows them by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, cast

from producers.datasets import cdnow, deskdrop, events, online_retail, taobao
from producers.datasets.table import Row
from schemas.catalog import Item
from schemas.events import Lane


class Dataset(Protocol):
    """What a module of this package offers."""

    NAME: str
    HEADER: Sequence[str] | None  # the columns that its file begins with

    def rows(self, path: Path, tenant: str = "demo", lane: Lane = "import") -> Iterator[Row]: ...

    def items(self, path: Path, tenant: str = "demo") -> Iterator[Item]: ...


DATASETS: dict[str, Dataset] = {
    module.NAME: cast(Dataset, module) for module in (events, online_retail, taobao, deskdrop, cdnow)
}
