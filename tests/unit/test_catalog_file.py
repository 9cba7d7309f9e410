"""Catalog files: good rows are items, bad ones are named with their line."""

from __future__ import annotations

import gzip
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from producers.catalog import items
from producers.datasets.table import DatasetError
from schemas.catalog import Item


def test_csv_with_a_shops_own_column_names(tmp_path: Path) -> None:
    path = tmp_path / "catalog.csv"
    path.write_bytes(
        b'\xef\xbb\xbfID,Name,Price,In stock,Description,Colour\n'
        b'a,"Mug, red",2.5,true,"two\nlines",red\n'
        b"b,Bowl,cheap,true,,\n"
        b",Plate,1,true,,\n"
        b"c,Cup,1\n"
        b"d,\xff,1,true,,\n"
        b"e,Jug,,false,,\n"
    )
    found = dict(items(path, "shop"))
    assert found[2] == Item(item_id="a", tenant="shop", title="Mug, red", price=2.5, description="two\nlines")
    assert "price" in str(found[4]) and "item_id" in str(found[5])
    assert "columns" in str(found[6]) and found[7] == "not UTF-8"
    assert found[8] == Item(item_id="e", tenant="shop", title="Jug", in_stock=False)


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "catalog.jsonl"
    path.write_text('{"item_id":"a","title":"Mug","tenant":"other","odd":1}\n\n[1]\n{"item_id":5}\n{"id":"b","price":"1"}\n{\n')
    found = dict(items(path, "shop"))
    assert found[1] == Item(item_id="a", tenant="shop", title="Mug")
    assert found[3] == "not a JSON object"
    assert all(isinstance(found[line], str) for line in (4, 5, 6))


@pytest.mark.parametrize(("name", "text"), [("c.csv.gz", "id,name\na,Mug\n"), ("c.jsonl.gz", '{"id":"a","name":"Mug"}\n')])
def test_gzip(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()))
    assert [item for _, item in items(path, "shop")] == [Item(item_id="a", tenant="shop", title="Mug")]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DatasetError, match="cut off or damaged"):
        list(items(path))


@pytest.mark.parametrize("zipped", [False, True])
def test_a_pipe_is_read_whole(tmp_path: Path, zipped: bool) -> None:
    """It gives what it has once: nothing may be read of it to see what it is, and then again."""
    path = tmp_path / "catalog.jsonl"
    os.mkfifo(path)
    rows = "".join(f'{{"id":"i{n}","title":"{"x" * 100}"}}\n' for n in range(2_000)).encode()
    with ThreadPoolExecutor() as at_once:
        writing = at_once.submit(path.write_bytes, gzip.compress(rows) if zipped else rows)
        found = [item for _, item in items(path, "shop")]
        writing.result()
    assert [one.item_id for one in found if isinstance(one, Item)] == [f"i{n}" for n in range(2_000)]


def test_a_file_without_items_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.csv"
    path.write_text("colour,price\nred,1\n")
    with pytest.raises(DatasetError, match="item_id"):
        list(items(path))
    with pytest.raises(DatasetError, match="Cannot open"):
        list(items(tmp_path / "absent.csv"))
