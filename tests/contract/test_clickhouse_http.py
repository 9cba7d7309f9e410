"""ClickHouse's HTTP interface as clients use it: each case holds for a real server too.

Set CLICKWAKE_TEST_CLICKHOUSE=host:port to run the list against one; what only the embedded server refuses is in
`test_refusals`.
"""

from __future__ import annotations

import datetime as dt
import gzip
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import clickhouse_connect
import httpx
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from stream.settings import ClickHouse

NOON = dt.datetime(2024, 1, 1, 12)
ROWS = [[i, f"s{i}", NOON, "low", [1.0, 2.0], None if i % 2 else -i, "2024-01-01"] for i in range(500)]


@pytest.fixture(scope="module")
def address(request: pytest.FixtureRequest) -> str:
    if real := os.environ.get("CLICKWAKE_TEST_CLICKHOUSE"):
        return real
    server: ClickHouse = request.getfixturevalue("clickhouse")
    return f"{server.host}:{server.port}"


@contextmanager
def connected(address: str, **options: Any) -> Iterator[Client]:
    host, _, port = address.rpartition(":")
    client = clickhouse_connect.get_client(host=host, port=int(port), **options)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    """A client in a database of its own, with one filled table `t`."""
    database = f"contract_{uuid.uuid4().hex[:8]}"
    with connected(address) as admin:
        admin.command(f"CREATE DATABASE {database}")
        with connected(address, database=database) as ours:
            ours.command("CREATE TABLE t (id UInt64, s String, at DateTime64(3), low LowCardinality(String), "
                         "xs Array(Float32), n Nullable(Int32), d String) ENGINE = MergeTree ORDER BY id "
                         "SETTINGS non_replicated_deduplication_window = 100")
            ours.insert("t", ROWS)
            yield ours
        admin.command(f"DROP DATABASE {database}")


def fails(code: int, call: Callable[[], object]) -> str:
    with pytest.raises(DatabaseError) as caught:
        call()
    assert caught.value.code == code, str(caught.value)
    return str(caught.value)


# --- the list, for clickhouse-connect ---------------------------------------------------------------------------------

def query_gives_rows_and_types(c: Client) -> None:
    result = c.query("SELECT * FROM t ORDER BY id LIMIT 2")
    assert result.column_names == ("id", "s", "at", "low", "xs", "n", "d")
    assert [t.name for t in result.column_types[:4]] == ["UInt64", "String", "DateTime64(3)", "LowCardinality(String)"]
    assert result.result_rows[1] == (1, "s1", dt.datetime(2024, 1, 1, 12), "low", [1.0, 2.0], None, "2024-01-01")


def empty_result_keeps_its_columns(c: Client) -> None:
    assert c.query("SELECT id, s FROM t LIMIT 0").column_names == ("id", "s")
    assert c.query("SELECT id FROM t WHERE id > 1000000").result_rows == []


def data_frames_go_both_ways(c: Client) -> None:
    pytest.importorskip("pandas")
    frame = c.query_df("SELECT id, s FROM t ORDER BY id")
    assert frame.shape == (500, 2)
    c.command("CREATE TABLE copy (id UInt64, s String) ENGINE = MergeTree ORDER BY id")
    c.insert_df("copy", frame)
    assert c.command("SELECT sum(cityHash64(id, s)) FROM t") == c.command("SELECT sum(cityHash64(id, s)) FROM copy")


def streams_more_than_fits_a_buffer(c: Client) -> None:
    with c.query_row_block_stream("SELECT number, toString(number) FROM numbers(700000)") as blocks:
        assert sum(len(block) for block in blocks) == 700_000


def error_in_the_middle_of_a_stream_is_an_error(c: Client) -> None:
    def read() -> int:
        with c.query_row_block_stream("SELECT throwIf(number = 3000000), number FROM system.numbers LIMIT 4000000",
                                      settings={"max_threads": 1}) as blocks:
            return sum(len(block) for block in blocks)

    fails(395, read)


def error_late_in_a_whole_query_is_an_error(c: Client) -> None:
    fails(395, lambda: c.query("SELECT throwIf(number = 3000000) FROM system.numbers LIMIT 4000000"))


def insert_says_how_many_rows(c: Client) -> None:
    summary = c.insert("t", [[1000, "x", dt.datetime(2024, 1, 1), "y", [], None, ""]] * 3)
    assert summary.written_rows == 3
    assert len(summary.query_id()) == 36


def insert_select_says_how_many_rows(c: Client) -> None:
    c.command("CREATE TABLE copy AS t")
    summary = c.command("INSERT INTO copy SELECT * FROM t")
    assert int(summary.summary["written_rows"]) == 500


def insert_values_and_text_formats(c: Client) -> None:
    c.command("CREATE TABLE f (id UInt64, s String) ENGINE = Memory")
    c.command("INSERT INTO f (id, s) VALUES (1, 'a;b'), (2, 'it''s -- /* no comment')")
    c.raw_insert("f", ["id", "s"], b"3\tthree\n4\tfour\n", fmt="TSV")
    c.raw_insert("f", ["id", "s"], gzip.compress(b'{"id":5,"s":"five"}\n'), fmt="JSONEachRow", compression="gzip")
    assert [row[0] for row in c.query("SELECT s FROM f ORDER BY id").result_rows] == [
        "a;b", "it's -- /* no comment", "three", "four", "five"]


def failed_insert_writes_nothing(c: Client) -> None:
    before = c.command("SELECT count() FROM t")
    fails(27, lambda: c.raw_insert("t", ["id"], b"1\n2\nx\n", fmt="TSV"))
    assert c.command("SELECT count() FROM t") == before


def deduplication_token_drops_a_retry(c: Client) -> None:
    row = [[7000, "x", dt.datetime(2024, 1, 1), "y", [], None, ""]]
    for _ in range(2):
        c.insert("t", row, settings={"insert_deduplication_token": "once", "async_insert": 0})
    assert c.command("SELECT count() FROM t WHERE id = 7000") == 1


def parameters_are_bound_by_the_server(c: Client) -> None:
    values = {"n": 3, "names": ["it's", "tab\t", "back\\slash"], "none": None, "at": dt.datetime(2024, 1, 2, 3)}
    result = c.query("SELECT {n:UInt8} + 1, {names:Array(String)}, {none:Nullable(String)}, {at:DateTime}", values)
    assert result.result_rows == [(4, values["names"], None, values["at"])]
    fails(456, lambda: c.query("SELECT {missing:UInt8}"))


def settings_last_for_one_query(c: Client) -> None:
    read = "SELECT getSetting('max_block_size')"
    usual = c.command(read)
    assert c.query(read, settings={"max_block_size": 777}).result_rows == [(777,)]
    assert c.command(read) == usual
    fails(115, lambda: c.command("SET no_such_setting_at_all = 1"))


def execution_time_and_memory_are_bounded(c: Client) -> None:
    started = time.monotonic()
    fails(159, lambda: c.query("SELECT count() FROM system.numbers", settings={"max_execution_time": 1}))
    assert time.monotonic() - started < 5
    limit = {"max_memory_usage": 20_000_000}
    fails(241, lambda: c.query("SELECT groupArray(number) FROM numbers(100000000)", settings=limit))
    assert c.command("SELECT 1") == 1


def errors_carry_their_codes(c: Client) -> None:
    assert "UNKNOWN_TABLE" in fails(60, lambda: c.query("SELECT * FROM no_such_table"))
    fails(47, lambda: c.query("SELECT no_such_column FROM t"))
    fails(62, lambda: c.query("SELEC 1"))
    fails(81, lambda: c.command("USE no_such_database"))
    fails(16, lambda: c.raw_insert("t", ["no_such_column"], b"1\n", fmt="TSV"))
    fails(57, lambda: c.command("CREATE TABLE t (x UInt8) ENGINE = Memory"))


def one_statement_a_request(c: Client) -> None:
    fails(62, lambda: c.command("SELECT 1; SELECT 2"))
    assert c.command("SELECT 1;") == 1


def low_cardinality_json_and_maps(c: Client) -> None:
    c.command("CREATE TABLE m (j JSON, m Map(String, UInt8), e Enum8('a' = 1)) ENGINE = Memory")
    c.insert("m", [[{"a": {"b": 1}}, {"k": 2}, "a"]])
    assert c.query("SELECT * FROM m").result_rows == [({"a": {"b": 1}}, {"k": 2}, "a")]


def show_describe_explain(c: Client) -> None:
    assert ("t",) in c.query("SHOW TABLES").result_rows
    assert c.query("DESCRIBE t").result_rows[0][:2] == ("id", "UInt64")
    assert c.query("EXPLAIN SELECT 1").row_count > 0
    assert c.query("EXISTS t").result_rows == [(1,)]


def mutations_and_final(c: Client) -> None:
    c.command("CREATE TABLE r (id UInt64, v UInt64) ENGINE = ReplacingMergeTree(v) ORDER BY id")
    for version in (1, 2):
        c.insert("r", [[1, version]])
    assert c.query("SELECT v FROM r FINAL").result_rows == [(2,)]
    c.command("DELETE FROM r WHERE id = 1", settings={"mutations_sync": 2})
    assert c.command("SELECT count() FROM r") == 0


CASES = [query_gives_rows_and_types, empty_result_keeps_its_columns, data_frames_go_both_ways,
         streams_more_than_fits_a_buffer,
         error_in_the_middle_of_a_stream_is_an_error, error_late_in_a_whole_query_is_an_error, insert_says_how_many_rows,
         insert_select_says_how_many_rows, insert_values_and_text_formats, failed_insert_writes_nothing,
         deduplication_token_drops_a_retry, parameters_are_bound_by_the_server, settings_last_for_one_query,
         execution_time_and_memory_are_bounded, errors_carry_their_codes, one_statement_a_request,
         low_cardinality_json_and_maps, show_describe_explain, mutations_and_final]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_clickhouse_connect(case: Callable[[Client], None], client: Client) -> None:
    case(client)


@pytest.mark.parametrize("compress", ["lz4", "zstd", "gzip", "deflate", False])
def test_compression_both_ways(address: str, client: Client, compress: str | bool) -> None:
    if compress in ("lz4", "zstd"):
        pytest.importorskip({"lz4": "lz4.frame", "zstd": "backports.zstd"}[str(compress)])
    with connected(address, database=client.database, compress=compress) as other:
        other.command("CREATE TABLE z (id UInt64, s String) ENGINE = MergeTree ORDER BY id")
        if compress != "deflate":  # clickhouse-connect reads deflate, but does not write it
            other.insert("z", [[i, "x" * 50] for i in range(30_000)])
        else:
            other.command("INSERT INTO z SELECT number, repeat('x', 50) FROM numbers(30000)")
        assert other.query("SELECT count(), sum(length(s)) FROM z").result_rows == [(30_000, 1_500_000)]
        assert len(other.query("SELECT * FROM z").result_rows) == 30_000


def test_session_keeps_its_state_and_is_locked(address: str, client: Client) -> None:
    with connected(address, session_id=uuid.uuid4().hex) as session:
        session.command("CREATE TEMPORARY TABLE mine (x UInt8)")
        session.command("INSERT INTO mine VALUES (1)")
        session.command("SET max_block_size = 4321")
        assert session.command("SELECT count() FROM mine") == 1
        assert session.command("SELECT getSetting('max_block_size')") == 4321
        assert session.query("SELECT getSetting('max_block_size')", settings={"max_block_size": 99}).result_rows == [(99,)]
        assert session.command("SELECT getSetting('max_block_size')") == 4321
        fails(60, lambda: client.query("SELECT * FROM mine"))
        url = f"http://{address}/?session_id={session.get_client_setting('session_id')}"
        with httpx.Client(trust_env=False, timeout=20) as http:
            codes = set()

            def post(sql: str) -> None:
                codes.add(http.post(url, content=sql).headers.get("x-clickhouse-exception-code"))

            slow = threading.Thread(target=post, args=("SELECT sleep(1)",))
            slow.start()
            while slow.is_alive():
                post("SELECT 1")
    assert codes == {None, "373"}  # whichever came second was refused, and nothing else went wrong


def test_nobody_waits_behind_a_long_query(address: str, client: Client) -> None:
    running = threading.Event()

    def long_query() -> None:
        with connected(address) as other:
            running.set()
            other.query("SELECT sum(sleepEachRow(0.25)) FROM numbers(10) SETTINGS max_block_size = 1")

    threads = [threading.Thread(target=long_query) for _ in range(4)]
    for thread in threads:
        thread.start()
    running.wait(5)
    started = time.monotonic()
    client.insert("t", ROWS[:10])
    assert client.command("SELECT count() FROM t") == 510
    assert time.monotonic() - started < 1.5  # the long ones take 2.5 s
    assert any(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.join()


def test_kill_by_the_id_the_client_gave(address: str, client: Client) -> None:
    query_id = uuid.uuid4().hex
    caught: list[DatabaseError] = []

    def run() -> None:
        with connected(address) as other:
            try:
                other.query("SELECT count() FROM system.numbers", settings={"query_id": query_id, "max_execution_time": 20})
            except DatabaseError as error:
                caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        client.command(f"KILL QUERY WHERE query_id = '{query_id}' ASYNC")
        thread.join(0.1)
    assert [error.code for error in caught] == [394]


# --- the list, for curl and other plain HTTP clients ------------------------------------------------------------------

@pytest.fixture
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{address}", trust_env=False, timeout=20) as client:
        yield client


def test_plain_http(http: httpx.Client, client: Client) -> None:
    assert http.get("/ping").text == http.get("/").text == http.get("/replicas_status").text == "Ok.\n"
    assert http.get("/", params={"query": "SELECT 1"}).text == "1\n"
    assert http.post("/", content="SELECT 1 AS x FORMAT JSONEachRow").json() == {"x": 1}
    params = {"default_format": "JSON", "database": str(client.database)}
    answer = http.post("/", params=params, content="SELECT toUInt8(count() / 2) AS n FROM t")
    assert (answer.json()["data"], answer.headers["x-clickhouse-format"]) == ([{"n": 250}], "JSON")
    assert answer.headers["content-type"].startswith("application/json")
    assert json.loads(answer.headers["x-clickhouse-summary"])["read_rows"] >= "0"
    assert answer.headers["x-clickhouse-timezone"] == "UTC"


def test_insert_with_query_in_url_and_data_in_body(http: httpx.Client, client: Client) -> None:
    http.post("/", params={"database": client.database}, content="CREATE TABLE u (a UInt8, b String) ENGINE = Memory")
    url = {"database": client.database, "query": "INSERT INTO u FORMAT CSV"}
    answer = http.post("/", params=url, content=(piece for piece in (b'1,"a', b'b"\n', b"2,c\n")))  # chunked
    assert json.loads(answer.headers["x-clickhouse-summary"])["written_rows"] == "2"
    packed = gzip.compress(b"3,d\n")
    assert http.post("/", params=url, content=packed, headers={"Content-Encoding": "gzip"}).status_code == 200
    rows = http.post("/", params={"database": client.database}, content="SELECT a, b FROM u ORDER BY a FORMAT CSV").text
    assert rows == '1,"ab"\n2,"c"\n3,"d"\n'


@pytest.mark.parametrize(("params", "content", "status", "code"), [
    ({}, "SELECT * FROM no_such_table", 404, "60"),
    ({}, "SELEC", 400, "62"),
    ({}, "", 400, "62"),
    ({"no_such_setting": "1"}, "SELECT 1", 404, "115"),
    ({"database": "no_such_database"}, "SELECT 1", 404, "81"),
    ({"user": "nobody"}, "SELECT 1", 403, "516"),
    ({"session_id": "none", "session_check": "1"}, "SELECT 1", 404, "372"),
])
def test_errors_over_http(http: httpx.Client, params: dict[str, str], content: str, status: int, code: str) -> None:
    answer = http.post("/", params=params, content=content)
    assert (answer.status_code, answer.headers["x-clickhouse-exception-code"]) == (status, code), answer.text
    assert answer.text.startswith(f"Code: {code}. DB::Exception:")


def test_get_only_reads(http: httpx.Client, client: Client) -> None:
    answer = http.get("/", params={"database": client.database, "query": "DROP TABLE t"})
    assert answer.headers["x-clickhouse-exception-code"] == "164"
    assert client.command("SELECT count() FROM t") == 500


def test_authentication(http: httpx.Client) -> None:
    assert http.post("/", content="SELECT 1", auth=("default", "")).text == "1\n"
    assert http.post("/", content="SELECT 1", headers={"X-ClickHouse-User": "default", "X-ClickHouse-Key": ""}).text == "1\n"
    refused = http.post("/", content="SELECT 1", auth=("default", "wrong"))
    assert (refused.status_code, refused.headers["x-clickhouse-exception-code"]) == (403, "516")


def test_form_fields_are_parameters(http: httpx.Client) -> None:
    form = {"query": (None, "SELECT {a:String} FORMAT TSV"), "param_a": (None, "x" * 10_000)}
    assert http.post("/", files=form).text == "x" * 10_000 + "\n"


# --- what the embedded server alone refuses ---------------------------------------------------------------------------

@pytest.mark.skipif("CLICKWAKE_TEST_CLICKHOUSE" in os.environ, reason="a real server does more")
@pytest.mark.parametrize(("params", "content", "code"), [
    ({"decompress": "1"}, "SELECT 1", "48"),
    ({"role": "admin"}, "SELECT 1", "48"),
    ({}, "SELECT * FROM file('/etc/hostname', LineAsString)", "497"),
    ({}, "SELECT 1 INTO OUTFILE 'x'", "48"),
    ({}, "INSERT INTO t FROM INFILE 'x' FORMAT CSV", "48"),
    ({}, "INSERT INTO t (n) SELECT a + 1 FROM input('a Int32') FORMAT CSV\n1", "48"),
])
def test_refusals(http: httpx.Client, params: dict[str, str], content: str, code: str) -> None:
    answer = http.post("/", params=params, content=content)
    assert answer.headers["x-clickhouse-exception-code"] == code, answer.text


@pytest.mark.skipif("CLICKWAKE_TEST_CLICKHOUSE" in os.environ, reason="a real server listens to any name")
def test_other_host_names_are_refused(http: httpx.Client) -> None:
    assert http.post("/", content="SELECT 1", headers={"Host": "evil.example"}).status_code == 403
    assert http.post("/", content="SELECT 1", headers={"Origin": "https://evil.example"}).status_code == 403
