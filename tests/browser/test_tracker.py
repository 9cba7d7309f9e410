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
from stream.settings import Settings
from tests.support.cluster import until
from tests.support.guides import Block, blocks, guides

BYTES_MAX = 9_000  # a few KB
CONSENT = "Segment Consent Preference Updated"


class Collector:
    """Serves a page and the tracker, keeps what is sent. `answers` are what the next requests get, a status or somebody
    else's page with a 200; then it takes all that is not too large, and says `taken`."""

    def __init__(self) -> None:
        self.answers: list[int | bytes] = []
        self.taken = b'{"success": true}'
        self.bytes_max, self.retry_after = Settings().collector.batch_bytes_max, "0"
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
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                answer = collector.answers.pop(0) if collector.answers else 200 if len(raw) <= collector.bytes_max else 413
                collector.bodies.append(body := json.loads(raw))
                (collector.batches if answer == 200 else collector.refused).append(body["batch"])
                if isinstance(answer, bytes):
                    self.reply(200, answer, "text/html")
                else:
                    self.reply(answer, collector.taken if answer == 200 else b'{"error": {}}', "application/json")

            def reply(self, status: int, content: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                if status == 429:
                    self.send_header("Retry-After", collector.retry_after)
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
    page.evaluate("clickwake.flush()")
    page.evaluate("""async () => {
        clickwake.page("home", {section: "a"});
        clickwake.track("Product Viewed", {product_id: "sku-1", price: 9.5});
        clickwake.identify("u1", {plan: "pro"});
        clickwake.track("Product Added", {product_id: "sku-1"});
        clickwake.alias("u2");
        await clickwake.flush();
    }""")
    assert collector.names() == ["Early", "page", "Product Viewed", "identify", "Product Added", "alias"]
    assert [len(batch) for batch in collector.batches] == [1, 5], "calls that come together are one request"
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


def test_what_is_refused_beside_what_is_taken_is_said(collector: Collector, page: Page) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(collector.url)
    page.evaluate("clickwake.flush()")
    collector.taken = b'{"success": true, "accepted": 1, "rejected": []}'
    page.evaluate("async () => { clickwake.track('A'); await clickwake.flush(); }")
    assert [one for one in said if one.startswith("clickwake")] == []
    collector.taken = b'{"success": true, "accepted": 1, "rejected": [{"index": 1, "messages": [{"message": "too long"}]}]}'
    page.evaluate("async () => { clickwake.track('B'); clickwake.track('C'); await clickwake.flush(); }")
    refused = f"clickwake: events were refused 200 {collector.taken.decode()}"
    assert [one for one in said if one.startswith("clickwake")] == [refused]
    assert collector.names() == ["Early", "A", "B", "C"], "it holds nobody up"


def test_a_batch_is_as_large_as_the_collector_takes(collector: Collector, page: Page) -> None:
    page.goto(collector.url)
    page.evaluate("clickwake.flush()")
    page.evaluate("""async () => {
        for (let n = 0; n < 120; n++) clickwake.track("Small");
        await clickwake.flush();
        for (let n = 0; n < 50; n++) clickwake.track("Large", {text: "x".repeat(12000)});
        await clickwake.flush();
    }""")
    assert [len(batch) for batch in collector.batches[1:4]] == [50, 50, 20]
    assert collector.names()[121:] == ["Large"] * 50 and len(collector.batches[4:]) == 2 and not collector.refused


def test_what_may_outlive_the_page_is_measured_in_bytes(collector: Collector, page: Page) -> None:
    page.goto(collector.url)
    page.evaluate("clickwake.flush()")
    tries = page.evaluate("""async () => {
        const fetched = window.fetch;
        let tries = 0;
        window.fetch = (...call) => { tries += 1; return fetched(...call); };
        for (let n = 0; n < 50; n++) clickwake.track("Product Viewed", {title: "茶".repeat(400)});
        await clickwake.flush();
        return tries;
    }""")
    text = json.dumps(collector.bodies[-1], ensure_ascii=False, separators=(",", ":"))
    assert len(text) < 60_000 and len(text.encode()) > 64 * 1024, "few characters, and more bytes than may outlive a page"
    assert [len(batch) for batch in collector.batches] == [1, 50] and tries == 1


@pytest.mark.parametrize("answer", [401, 404, b"<!doctype html><title>Sign in</title>"],
                         ids=["a key being changed", "a proxy without a way", "a page"])  # fmt: skip
def test_what_is_no_word_of_the_collector_on_the_events_is_no_acknowledgement(
    collector: Collector, page: Page, answer: int | bytes
) -> None:
    page.goto(collector.url)
    page.evaluate("clickwake.flush()")
    collector.answers = [answer]
    page.evaluate("async () => { clickwake.track('Kept'); await clickwake.flush(); }")
    assert collector.names() == ["Early", "Kept"]
    assert [one["messageId"] for one in collector.batches[1]] == [one["messageId"] for one in collector.refused[0]]


def test_who_is_told_to_wait_for_years_waits_an_hour(collector: Collector, page: Page) -> None:
    page.goto(collector.url)
    page.evaluate("clickwake.flush()")
    collector.answers, collector.retry_after = [429] * 1_000, "99999999"  # more than a timer of a browser can count
    page.evaluate("""() => {
        const timed = window.setTimeout;
        window.waits = [];
        window.setTimeout = (then, ms) => { window.waits.push(ms); return timed(then, ms); };
        clickwake.track("Later");
    }""")
    page.wait_for_function("waits.includes(3600000)")
    assert len(collector.refused) == 1
    collector.answers = []
    page.evaluate("async () => { await clickwake.flush(); clickwake.track('At once'); }")
    until(lambda: collector.names() == ["Early", "Later", "At once"], 10, "the wait is over once something was taken")


def test_what_is_too_large_is_sent_in_smaller_parts_and_one_alone_is_given_up(collector: Collector, page: Page) -> None:
    collector.bytes_max = 20_000  # of a proxy
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(collector.url)
    page.evaluate("clickwake.flush()")
    page.evaluate("""async () => {
        for (let n = 0; n < 30; n++) clickwake.track("E" + n, {text: "x".repeat(n === 17 ? 30000 : 10)});
        await clickwake.flush();
    }""")
    assert collector.names()[1:] == [f"E{n}" for n in range(30) if n != 17]
    assert [one["event"] for batch in collector.refused for one in batch if len(batch) == 1] == ["E17"]
    assert len([one for one in said if one.startswith("clickwake: events were refused 413")]) == 1


def test_an_event_is_as_it_was_when_it_was_put_and_what_json_has_no_form_for_is_the_callers_error(
    collector: Collector, page: Page
) -> None:
    page.goto(collector.url)
    error = page.evaluate("""async () => {
        const properties = {stage: 1}, itself = {};
        itself.itself = itself;
        let said = null;
        try { clickwake.track("Itself", itself); } catch (error) { said = error.name; }
        clickwake.track("Put", properties);
        properties.stage = 2;
        await clickwake.flush();
        return said;
    }""")
    assert error == "TypeError" and collector.names() == ["Early", "Put"], "it holds nobody up"
    assert collector.events()[1]["properties"] == {"stage": 1}


def test_what_a_page_takes_over_is_kept_before_it_is_sent(collector: Collector, page: Page) -> None:
    queues = "Object.keys(localStorage).filter(key => /queue/.test(key) && /Offline/.test(localStorage.getItem(key)))"
    page.goto(collector.url)
    page.evaluate("clickwake.flush()")
    page.route("**/v1/batch", lambda route: route.abort())
    page.evaluate("clickwake.track('Offline')")
    left = page.evaluate(queues)
    collector.page = b"<script src='/clickwake.js' data-write-key='key'></script>"  # makes no call itself
    page.add_init_script("const now = Date.now; Date.now = () => now() + 60000;")
    page.goto(collector.url)
    taken = page.evaluate(queues)
    assert len(left) == len(taken) == 1 and left != taken, "should this page go as well, the next one finds it"


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


def test_what_waits_at_a_reset_is_sent_as_whose_it_was(collector: Collector, page: Page) -> None:
    page.goto(collector.url)
    page.evaluate("clickwake.flush()")
    page.evaluate("""async () => {
        clickwake.identify("u1");
        clickwake.track("Signed Out");
        clickwake.reset();
        clickwake.track("Next");
        await clickwake.flush();
    }""")
    early, _, leaving, following = collector.events()
    assert (leaving["event"], leaving["userId"], leaving["anonymousId"]) == ("Signed Out", "u1", early["anonymousId"])
    assert following["event"] == "Next" and "userId" not in following
    assert following["anonymousId"] != early["anonymousId"]
    assert following["context"]["sessionId"] != early["context"]["sessionId"]
    page.evaluate("""async () => {
        clickwake.consent({analytics: false, personalization: false});
        clickwake.reset();
        await clickwake.flush();
    }""")
    refusal = collector.events()[4]
    assert collector.names()[4:] == [CONSENT] and refusal["anonymousId"] == following["anonymousId"]
    assert refusal["context"]["consent"] == {"analytics": False, "personalization": False}


def test_what_is_said_in_one_tab_is_obeyed_in_every_other(collector: Collector, page: Page) -> None:
    page.goto(collector.url)
    page.evaluate("clickwake.flush()")
    other = page.context.new_page()
    other.goto(collector.url)
    other.evaluate("clickwake.flush()")
    before = other.evaluate("clickwake.anonymousId()")
    other.route("**/v1/batch", lambda route: route.abort())
    other.evaluate("clickwake.track('Waiting')")
    page.evaluate("""async () => {
        clickwake.consent({analytics: false, personalization: false});
        await clickwake.flush();
    }""")
    other.wait_for_function("localStorage.getItem('clickwake.consent')")
    other.unroute("**/v1/batch")
    put = other.evaluate("""async () => {
        const put = [clickwake.track("Unseen"), clickwake.identify("u9"), clickwake.alias("u9")];
        clickwake.anonymousId();
        await clickwake.flush();
        return put;
    }""")
    assert put == [None] * 3 and collector.names() == ["Early", "Early", CONSENT]
    assert other.evaluate("Object.keys(localStorage)") == ["clickwake.consent"], "no id is made or kept any more"
    page.evaluate("clickwake.consent({analytics: true, personalization: true})")
    other.wait_for_function("JSON.parse(localStorage.getItem('clickwake.consent')).analytics")
    other.evaluate("async () => { clickwake.track('Again'); await clickwake.flush(); }")
    again = collector.events()[3]
    assert again["event"] == "Again" and again["context"]["consent"] == {"analytics": True, "personalization": True}
    assert again["anonymousId"] != before


def test_who_refuses_is_obeyed_where_storage_is_full(collector: Collector, page: Page) -> None:
    page.goto(collector.url)
    page.evaluate("""async () => {
        clickwake.consent({analytics: true, personalization: true});
        await clickwake.flush();
        localStorage.last = "";
        for (let size = 1 << 22; size >= 1; size /= 2) {
            try { localStorage.setItem(size.toString(36).padStart(8), "x".repeat(size)); } catch (error) { /* too much */ }
        }
        try { for (;;) localStorage.last += "x"; } catch (error) { /* full */ }
        clickwake.consent({analytics: false, personalization: false});
        clickwake.track("Unseen");
        await clickwake.flush();
    }""")
    assert collector.names() == ["Early", CONSENT, CONSENT]
    page.goto(collector.url)
    page.evaluate("async () => { clickwake.page(); await clickwake.flush(); }")
    assert len(collector.names()) == 3, "it is remembered"


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
