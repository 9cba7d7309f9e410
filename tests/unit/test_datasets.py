"""Every row of a data set becomes an event or a drop or a rejection with its reason, in event-time order."""

from __future__ import annotations

import functools
import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.datasets import cdnow, deskdrop, events, online_retail, taobao
from producers.datasets.registry import DATASETS
from producers.datasets.table import Accepted, DatasetError, Dropped, Invalid, Rejected, Row, fields, parsed
from schemas.events import Event, encode
from tests.support.needs import needs_file
from training.history import snapshot

RETAIL = ",".join(online_retail.HEADER)
TAOBAO = ",".join(taobao.HEADER)


def write(folder: Path, text: str | bytes, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def outcome(row: Row) -> str:
    if isinstance(row, Accepted):
        return str(row.event["event"])
    return row.reason if isinstance(row, Dropped) else f"{row.path}:{row.keyword}"


@pytest.mark.parametrize(("line", "expected"), [
    ("536365,85123a,WHITE HOLDER,6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom", "Order Completed"),
    ("536365,85123A,WHITE HOLDER,6,12/1/2010 8:26,2.55,,United Kingdom", "Order Completed"),
    ("C536379,22556,PLASTERS,-12,2010-12-01 09:49:00,1.65,17548.0,United Kingdom", "Order Refunded"),
    ("536370,POST,POSTAGE,3,2010-12-01 08:45:00,18,12583.0,France", "not_a_product"),
    ("C536379,D,Discount,-1,2010-12-01 09:41:00,27.5,14527.0,United Kingdom", "not_a_product"),
    ("C1,m,Manual,-1,2010-12-01 09:41:00,27.5,14527.0,United Kingdom", "not_a_product"),
    ("1,gift_0001_20,Voucher,1,2010-12-01 09:41:00,27.5,,United Kingdom", "not_a_product"),
    ("A563185,B,Adjust bad debt,1,2011-08-12 14:50:00,11062.06,,United Kingdom", "not_a_product"),
    ("536589,21777,,-10,2010-12-01 16:50:00,0,,United Kingdom", "adjustment"),
    ("C1,21777,,0,2010-12-01 16:50:00,1,,United Kingdom", "adjustment"),
    ("536414,22139,,56,2010-12-01 11:52:00,0,,United Kingdom", "no_price"),
    ("536414,22139,x,six,2010-12-01 11:52:00,1,,United Kingdom", "Quantity:type"),
    ("536414,22139,x,1,2010-12-01 11:52:00,nan,,United Kingdom", "UnitPrice:type"),
    ("536414,22139,x,1,yesterday,1,,United Kingdom", "InvoiceDate:format"),
    (",22139,x,1,2010-12-01 11:52:00,1,,United Kingdom", "InvoiceNo:length"),
    ("536414,22139,x,1", ":columns"),
    ('536414,22139,"x,1,2010-12-01 11:52:00,1,,United Kingdom', ":csv"),
])
def test_online_retail_says_what_becomes_of_a_line(tmp_path: Path, line: str, expected: str) -> None:
    (row,) = online_retail.rows(write(tmp_path, f"{RETAIL}\r\n{line}\r\n"))
    assert outcome(row) == expected
    if not isinstance(row, Accepted):
        assert row.raw == line.encode()


def test_an_order_line_in_full(tmp_path: Path) -> None:
    line = "536365,85123a,WHITE HOLDER ,6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom"
    (row,) = online_retail.rows(write(tmp_path, f"{RETAIL}\n{line}\n"), tenant="shop")
    assert isinstance(row, Accepted)
    assert row.event == {
        "messageId": "online-retail:1", "type": "track", "event": "Order Completed", "userId": "17850", "tenant": "shop",
        "lane": "import", "timestamp": "2010-12-01T08:26:00Z",
        "properties": {"order_id": "536365", "currency": "GBP", "revenue": 15.3, "products": [
            {"product_id": "85123A", "name": "WHITE HOLDER", "price": 2.55, "quantity": 6}]},
        "context": {"location": {"country": "United Kingdom"}},
    }
    assert row.ts_ms == 1_291_191_960_000


def test_a_guest_is_known_by_the_invoice_and_a_refund_counts_up(tmp_path: Path) -> None:
    line = "C536379,22556,PLASTERS,-12,2010-12-01 09:49:00,1.65,,United Kingdom"
    (row,) = online_retail.rows(write(tmp_path, f"{RETAIL}\n{line}"))
    assert isinstance(row, Accepted)
    assert (row.event["anonymousId"], "userId" in row.event) == ("invoice-C536379", False)
    assert row.event["properties"]["products"][0]["quantity"] == 12


def test_rows_come_in_event_time_order_and_equal_times_keep_the_files(tmp_path: Path) -> None:
    times = [1511600003, 1511600001, 1511600003, 1511600001, 1511600002]
    lines = [f"u,i{index},c,pv,{ts_s}" for index, ts_s in enumerate(times)]
    lines.insert(2, "u,broken,c,pv,never")  # stays behind the row before it
    found = list(taobao.rows(write(tmp_path, "\n".join([TAOBAO, *lines]))))
    assert [row.row for row in found] == [2, 3, 5, 6, 1, 4]
    assert [row.ts_ms // 1000 for row in found if isinstance(row, Accepted)] == sorted(times)


def test_taobao_names_and_window(tmp_path: Path) -> None:
    rows = "u,i,c,pv,1511539200\nu,i,c,cart,1511539201\nu,i,c,fav,1511539202\nu,i,c,buy,1511539203\n" \
           "u,i,c,pv,1505117799\nu,i,c,pv,1512316800\nu,i,c,wave,1511539204\n"
    found = [outcome(row) for row in taobao.rows(write(tmp_path, f"{TAOBAO}\n{rows}"))]
    assert Counter(found) == Counter(["Product Viewed", "Product Added", "Product Added to Wishlist", "Order Completed",
                                      "out_of_window", "out_of_window", "behavior:enum"])


def test_a_line_that_is_not_utf8_costs_only_itself(tmp_path: Path) -> None:
    path = write(tmp_path, TAOBAO.encode() + b"\nu,\xff,c,pv,1511539200\n\nu,i,c,pv,1511539201\n")
    rejected, accepted = taobao.rows(path)
    assert isinstance(rejected, Rejected) and rejected.keyword == "encoding"
    assert isinstance(accepted, Accepted) and accepted.row == 2


def test_a_file_that_is_another_is_refused_as_a_whole(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="expected the columns"):
        list(taobao.rows(write(tmp_path, "a,b\n1,2\n")))
    with pytest.raises(DatasetError, match="Cannot open"):
        list(taobao.rows(tmp_path / "absent.csv"))
    whole = gzip.compress(f"{TAOBAO}\n".encode() + b"u,i,c,pv,1511539200\n" * 5000)
    with pytest.raises(DatasetError, match="cut off"):
        list(taobao.rows(write(tmp_path, whole[: len(whole) // 2], "rows.csv.gz")))


def clicks(*given: dict[str, Any] | bytes) -> bytes:
    """A file of them: product views at a day of May."""
    lines = [one if isinstance(one, bytes) else msgspec.json.encode(
        {"type": "track", "event": "Product Viewed", "userId": "u1", "properties": {"product_id": "p1"}} | one
        | {"timestamp": f"2024-05-{one['timestamp']}Z"}) for one in given]  # fmt: skip
    return b"\n".join(lines) + b"\n"


@pytest.mark.parametrize("written", [bytes, b"\xef\xbb\xbf".__add__, gzip.compress], ids=["plain", "BOM", "gzip"])
def test_a_shops_own_events_come_in_the_order_of_their_own_times(tmp_path: Path, written: Any) -> None:
    raw = clicks({"timestamp": "03T10:00:00"}, {"timestamp": "01T10:00:00.0009"}, b"", b"{broken",
                 {"timestamp": "02T10:00:00"}, {"timestamp": "01T10:00:00.0001", "userId": "u2"})  # fmt: skip
    found = list(events.rows(write(tmp_path, written(raw), "clicks.jsonl"), tenant="shop"))
    assert [row.row for row in found] == [2, 3, 5, 4, 1], "the broken line stays behind the one before it"
    assert [row.ts_ms - 1_714_557_600_000 for row in found if isinstance(row, Accepted)] == [0, 0, 86_400_000, 172_800_000]
    (first, broken, *_) = found
    assert isinstance(first, Accepted) and isinstance(broken, Rejected)
    assert (first.user, first.event["tenant"], first.event["lane"]) == ("u1", "shop", "import")
    assert first.event["properties"] == {"product_id": "p1"}
    assert (broken.path, broken.keyword, broken.raw) == ("", "json", b"{broken")


def test_what_is_wrong_with_a_line_is_said_with_whose_it_is(tmp_path: Path) -> None:
    raw = clicks({"timestamp": "01T10:00:00", "properties": 7},
                 b'{"type":"track","userId":"u2","event":"x","writeKey":"k1"}')  # fmt: skip
    typed, untimed = events.rows(write(tmp_path, raw))
    assert isinstance(typed, Rejected) and isinstance(untimed, Rejected)
    assert (typed.path, typed.keyword, typed.user, typed.ts_ms) == ("properties", "type", "u1", 1_714_557_600_000)
    assert (untimed.path, untimed.keyword, untimed.user, untimed.ts_ms) == ("timestamp", "required", "u2", 0)
    assert b"k1" not in untimed.raw, "a write key ends here"


def test_the_same_line_is_the_same_event(tmp_path: Path) -> None:
    raw = clicks({"timestamp": "01T10:00:00"})
    twice, elsewhere = write(tmp_path, raw + raw), write(tmp_path, raw, "other.jsonl")
    found = [row.event for row in (*events.rows(twice), *events.rows(elsewhere, lane="live")) if isinstance(row, Accepted)]
    assert [event["lane"] for event in found] == ["import", "import", "live"]
    assert {event["timestamp"] for event in found} == {"2024-05-01T10:00:00.000Z"}
    assert len({event["messageId"] for event in found}) == 1


def test_a_model_can_be_learned_of_it(tmp_path: Path) -> None:
    raw = clicks(*({"timestamp": f"{day:02}T10:00:00", "properties": {"product_id": f"p{day}"}} for day in (2, 3, 1, 3)))
    history = snapshot.from_dataset("events", write(tmp_path, raw))
    found = [(one.history.item_ids, one.targets) for one in snapshot.replay(history).moments]
    assert found == [(["p1"], ("p2",)), (["p1", "p2"], ("p3",))], "the same line counts once"


values = st.none() | st.integers() | st.text(max_size=9) | st.datetimes().map(lambda at: f"{at.isoformat()}+14:00")
said = st.dictionaries(st.sampled_from(["timestamp", "originalTimestamp", "userId", "type"]), values)


@given(st.lists(st.binary(min_size=1, max_size=80).filter(lambda line: b"\n" not in line and line.strip(b"\r"))
                | said.map(msgspec.json.encode), min_size=1, max_size=5))  # fmt: skip
def test_any_line_of_events_is_accounted_for(tmp_path_factory: pytest.TempPathFactory, raws: list[bytes]) -> None:
    path = write(tmp_path_factory.getbasetemp(), b"{}\n" + b"\n".join(raws), "any.jsonl")
    assert sorted(row.row for row in events.rows(path)) == list(range(1, len(raws) + 2))


@given(st.text(max_size=60).filter(lambda text: text.strip("\r\n") != "" and "\n" not in text))
def test_any_line_is_accounted_for(line: str) -> None:
    raw = line.encode("utf-8", "surrogatepass")
    for module in (online_retail, taobao, deskdrop, cdnow):
        row = parsed(1, raw, len(module.HEADER), functools.partial(_event_of, module))
        assert isinstance(row, Accepted | Dropped | Rejected)


@given(st.sampled_from([online_retail, taobao, deskdrop, cdnow]), st.lists(st.text(max_size=12), min_size=8, max_size=8))
def test_any_fields_are_accounted_for(module: Any, values: list[str]) -> None:
    columns = len(module.HEADER)
    line = ",".join('"' + value.replace('"', '""') + '"' for value in values[:columns]).encode("utf-8", "surrogatepass")
    assert isinstance(parsed(1, line, columns, functools.partial(_event_of, module)), Accepted | Dropped | Rejected)


def _event_of(module: Any, row: int, values: list[str]) -> tuple[dict[str, Any], int]:
    event: tuple[dict[str, Any], int] = module._event(row, values, "t", "import")
    return event


def test_quoted_fields() -> None:
    assert fields(b'a,"say ""hi"", you",c', 3) == ["a", 'say "hi", you', "c"]
    with pytest.raises(Invalid):
        fields(b"a,b", 3)


EXPECTED = {
    "online-retail": (
        "transactions.csv.gz", 320_705, 316_934, {"not_a_product": 1_983, "adjustment": 925, "no_price": 863}, 3_534,
    ),
    "taobao": ("user_behavior.csv.gz", 67_300, 67_272, {"out_of_window": 28}, 45_157),
    "deskdrop": ("users_interactions.csv.gz", 61_425, 61_425, {}, 2_557),
    "cdnow": ("purchases.csv.gz", 6_919, 6_919, {}, 0),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_whole_set_is_accounted_for(data_sets: Path, name: str) -> None:
    file, total, accepted, dropped, items = EXPECTED[name]
    path = needs_file(data_sets / name / file)
    found: Counter[str] = Counter()
    ids, last = set(), 0
    for row in DATASETS[name].rows(path, tenant="shop"):
        ids.add(row.row)
        if isinstance(row, Accepted):
            found["accepted"] += 1
            assert row.ts_ms >= last
            last = row.ts_ms
            if row.row % 97 == 0:
                event = msgspec.json.decode(encode(row.event), type=Event)
                assert (event.ts_ms, event.tenant, event.lane) == (row.ts_ms, "shop", "import")
        else:
            found[outcome(row)] += 1
    assert found == Counter({"accepted": accepted} | dropped)
    assert found.total() == total == len(ids)
    catalog = list(DATASETS[name].items(path, "shop"))
    assert len(catalog) == len({item.item_id for item in catalog}) == items
