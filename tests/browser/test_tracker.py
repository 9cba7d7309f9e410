"""The tracker in a real browser against a collector that fails: nothing is lost, each event has one id, consent holds."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Page

from producers import tracker
from tests.support.cluster import until
from tests.support.guides import Block, blocks, guides

BYTES_MAX = 9_000  # a few KB
CONSENT = "Segment Consent Preference Updated"


class Collector:
    """Serves a page and the tracker, keeps what is sent; `answers` are what the next requests get, then 200."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.page = (b"<script>var clickwake = [['track', 'Early']]</script>"
                     b"<script src='/clickwake.js' data-write-key='key'></script>")  # fmt: skip
        self.batches: list[list[dict[str, Any]]] = []  # that were taken
        self.refused: list[list[dict[str, Any]]] = []
        self.bodies: list[dict[str, Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/clickwake.js"):
                    self.reply(200, tracker.source(), "text/javascript")
                else:
                    self.reply(200, b"<!doctype html><title>t</title>" + collector.page, "text/html")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = collector.answers.pop(0) if collector.answers else 200
                collector.bodies.append(body)
                (collector.batches if status == 200 else collector.refused).append(body["batch"])
                self.reply(status, b"{}", "application/json")

            def reply(self, status: int, content: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """What is sent is kept, not printed."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"

    def events(self) -> list[dict[str, Any]]:
        return [event for batch in self.batches for event in batch]

    def names(self) -> list[str]:
        return [event.get("event") or event["type"] for event in self.events()]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_calls_are_batched_and_carry_what_segment_carries(collector: Collector, page: Page) -> None:
    page.goto(collector.url)
    page.evaluate("""async () => {
        clickwake.page("home", {section: "a"});
        clickwake.track("Product Viewed", {product_id: "sku-1", price: 9.5});
        clickwake.identify("u1", {plan: "pro"});
        clickwake.track("Product Added", {product_id: "sku-1"});
        clickwake.alias("u2");
        await clickwake.flush();
    }""")
    assert collector.names() == ["Early", "page", "Product Viewed", "identify", "Product Added", "alias"]
    early, _, viewed, known, added, alias = collector.events()
    assert viewed["properties"] == {"product_id": "sku-1", "price": 9.5} and "userId" not in early
    assert known["traits"] == {"plan": "pro"} and added["userId"] == "u1" and added["anonymousId"] == early["anonymousId"]
    assert (alias["userId"], alias["previousId"]) == ("u2", "u1")
    assert len({one["messageId"] for one in collector.events()}) == 6
    assert {one["context"]["sessionId"] for one in collector.events()} == {early["context"]["sessionId"]}
    assert {one["writeKey"] for one in collector.bodies} == {"key"} and all(one["sentAt"] for one in collector.bodies)
    assert len(tracker.source()) < BYTES_MAX


def test_what_is_not_taken_is_sent_again_under_the_same_ids(collector: Collector, page: Page) -> None:
    collector.answers = [503, 429]
    page.goto(collector.url)
    page.evaluate("async () => { clickwake.track('A'); clickwake.track('B'); await clickwake.flush(); }")
    assert collector.names() == ["Early", "A", "B"]
    tried = {one["messageId"] for batch in collector.refused for one in batch}
    assert tried and tried <= {one["messageId"] for one in collector.events()}
    collector.answers = [400]
    page.evaluate("async () => { clickwake.track('never taken'); await clickwake.flush(); clickwake.track('C'); "
                  "await clickwake.flush(); }")  # fmt: skip
    assert collector.names()[3:] == ["C"], "what the collector refuses for good holds nobody up"


def test_what_is_left_when_the_page_goes_is_sent_by_the_next(collector: Collector, page: Page) -> None:
    page.goto(collector.url)
    page.evaluate("clickwake.flush()")
    page.route("**/v1/batch", lambda route: route.abort())  # the network is gone, for beacons too
    page.evaluate("clickwake.track('Offline', {product_id: 'sku-9'})")
    page.wait_for_function("Object.keys(localStorage).some(key => /queue/.test(key))")
    waiting = page.evaluate("""JSON.parse(localStorage.getItem(Object.keys(localStorage).find(
        key => /queue/.test(key)))).events.map(one => one.messageId)""")
    page.goto("about:blank")
    page.unroute("**/v1/batch")
    page.add_init_script("const now = Date.now; Date.now = () => now() + 60000;")  # that tab is long gone
    page.goto(collector.url)
    until(lambda: "Offline" in collector.names(), 10, "the next page sends what was left")
    found = [one for one in collector.events() if one.get("event") == "Offline"]  # a beacon may have got through as well
    assert {one["messageId"] for one in found} == set(waiting) and found[0]["properties"] == {"product_id": "sku-9"}


def test_the_last_events_of_a_page_go_by_beacon(collector: Collector, page: Page) -> None:
    page.goto(collector.url)
    page.evaluate("clickwake.flush()")
    page.evaluate("() => { clickwake.track('Bye'); location.href = 'about:blank'; }")
    until(lambda: "Bye" in collector.names(), 10, "a beacon carries it")
    page.wait_for_url("about:blank")  # to close it while it still goes there has hung Chromium
    assert len({one["messageId"] for one in collector.events() if one.get("event") == "Bye"}) == 1


def test_who_refuses_is_neither_counted_nor_known(collector: Collector, page: Page) -> None:
    page.goto(collector.url)
    page.evaluate("clickwake.flush()")
    before = page.evaluate("clickwake.anonymousId()")
    page.evaluate("""async () => {
        clickwake.consent({analytics: true, personalization: false});
        clickwake.track("Seen");
        await clickwake.flush();
        clickwake.consent({analytics: false, personalization: false});
        clickwake.track("Unseen");
        await clickwake.flush();
    }""")
    assert collector.names() == ["Early", CONSENT, "Seen", CONSENT]
    assert collector.events()[2]["context"]["consent"] == {"analytics": True, "personalization": False}
    last = collector.events()[3]  # by it the collector and the workers know whose profile to clear
    assert last["context"]["consent"] == {"analytics": False, "personalization": False} and last["anonymousId"] == before
    assert page.evaluate("localStorage.getItem('clickwake.anonymousId')") is None
    page.goto(collector.url)  # it is remembered
    page.evaluate("async () => { clickwake.page(); clickwake.identify('u1'); await clickwake.flush(); }")
    assert len(collector.names()) == 4
    page.evaluate("""async () => {
        clickwake.consent({analytics: true, personalization: true});
        clickwake.track("Again");
        await clickwake.flush();
    }""")
    again = collector.events()[4:]
    assert [one["event"] for one in again] == ["Again"]
    assert again[0]["anonymousId"] != before, "a later visit is somebody else's"


def test_arguments_may_be_left_out_as_in_segments_calls(collector: Collector, page: Page) -> None:
    page.goto(collector.url)
    page.evaluate("""async () => {
        clickwake.identify({plan: "free"});
        clickwake.identify("u1");
        clickwake.identify({plan: "pro"});
        clickwake.page();
        clickwake.page("Home");
        clickwake.page("Shop", "Garden", {shelf: 2});
        clickwake.page({shelf: 3});
        clickwake.track("Viewed", {a: 1}, {context: {campaign: {name: "spring"}}, timestamp: "2026-01-02T03:04:05Z"});
        await clickwake.flush();
    }""")
    _, free, known, pro, bare, home, garden, shelf, viewed = collector.events()
    assert "userId" not in free and free["traits"] == {"plan": "free"}
    assert (known["userId"], known["traits"]) == ("u1", {}) and (pro["userId"], pro["traits"]) == ("u1", {"plan": "pro"})
    assert "name" not in bare and home["name"] == "Home"
    assert (garden["name"], garden["properties"]["category"], garden["properties"]["shelf"]) == ("Garden", "Shop", 2)
    assert "name" not in shelf and shelf["properties"]["shelf"] == 3 and shelf["properties"]["path"] == "/"
    assert viewed["context"]["campaign"] == {"name": "spring"} and viewed["originalTimestamp"] == "2026-01-02T03:04:05.000Z"


@pytest.mark.parametrize("block", [one for path in guides() for one in blocks(path, "html")], ids=lambda block: block.where)
def test_what_the_pages_say_to_put_into_ones_own_works(collector: Collector, page: Page, block: Block) -> None:
    """As it stands, from this collector: each call is an event, in the order of the page, or a choice that is remembered."""
    collector.page = block.text.replace("http://127.0.0.1:8080/", collector.url).encode()
    page.goto(collector.url)
    page.evaluate("clickwake.flush()")
    calls = re.findall(r"clickwake\.(track|page|identify|screen|group|alias)\(\s*(?:\"([^\"]+)\")?", block.text)
    assert len(calls) >= 1 and 'data-write-key="demo-write-key"' in block.text
    told = [one for one in collector.events() if one.get("event") != CONSENT]
    assert [one["type"] for one in told] == [kind for kind, _ in calls]
    assert [one["event"] for one in told if one["type"] == "track"] == [name for kind, name in calls if kind == "track"]
    assert {one["writeKey"] for one in collector.bodies} == {"demo-write-key"}
    if chosen := re.search(r"clickwake\.consent\(\{(.+?)\}\)", block.text):
        consent = {name: value == "true" for name, value in re.findall(r"(\w+): (true|false)", chosen[1])}
        assert {json.dumps(one["context"]["consent"]) for one in told} == {json.dumps(consent)}
