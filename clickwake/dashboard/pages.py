"""The pages. Each asks its questions, and says which store does not answer instead of showing nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from urllib.parse import quote

import httpx
import structlog
from fastapi.routing import APIRoute
from nicegui import app, ui
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from clickwake import erase
from clickwake.dashboard import charts, letters_page, models_page, promotions_page, queries, satisfaction_page
from clickwake.dashboard.frame import NAV, Page, choose_one, draw, link_users, picture
from clickwake.dashboard.sessions import Sessions
from clickwake.segments import served
from clickwake.storefront.app import NoKey, plain_key
from producers.kafka import KafkaUnavailable, NotAcknowledged
from stream.adapters.models.model_store import BundleRefused
from stream.core.segments.audience import NO_AUDIENCE
from stream.core.segments.segment_rules import RulesError
from stream.http.quoted import QuotedRoute
from stream.pseudonyms import Pseudonyms
from stream.segments import load as load_rules
from stream.settings import Settings

log = structlog.get_logger()
MODELS_MAX = 6  # in the picture, the newest: as many as it has colours
TRAFFIC_S, HISTORY_S = 3.0, 15.0  # between two questions: about the last minutes, and about all there is


async def live(page: Page) -> None:
    t = page.t
    tiles: dict[str, ui.label] = {}
    away = ui.column().classes("w-full")
    away.set_visibility(False)
    with ui.row().classes("w-full gap-4"):
        for name, text in (("events", "events"), ("users", "users"), ("recommendations", "recommendations"),
                           ("alerts", "alerts"), ("letters", "dead letters")):  # fmt: skip
            with ui.card().classes("min-w-[9rem]"):
                tiles[name] = ui.label("–").classes("text-2xl").props(f'data-tile="{name}"')
                ui.label(t(text))
    taken, stepped = t("Events per 10 seconds, as the broker took them (UTC)"), t("Funnel, the last 30 days with events")
    traffic = picture(charts.over(taken, [], {}, bars=True))
    with ui.row().classes("w-full no-wrap max-md:flex-wrap"):
        steps = picture(charts.funnel(stepped, {}))
        active = picture(charts.over(t("Active users"), [], {}, bars=True))

    async def asked(sql: str) -> queries.Rows:
        return await page.database.rows(sql, tenant=page.tenant)

    async def passing() -> None:
        events = await asked(queries.TRAFFIC)
        draw(traffic, charts.over(taken, [row["at"][11:19] for row in events],
                                  {t("events"): [row["events"] for row in events]}, bars=True))  # fmt: skip

    async def counted() -> None:
        for totals in await asked(queries.TOTALS):
            for name, label in tiles.items():
                label.set_text(f"{totals[name]:,}")

    async def went_on() -> None:
        funnel = await asked(queries.FUNNEL)
        names = {"viewed": "viewed", "added": "added to cart", "checkout": "checkout", "ordered": "ordered"}
        draw(steps, charts.funnel(stepped, {t(text): funnel[0][name] for name, text in names.items() if funnel}))

    async def came() -> None:
        days = (await asked(queries.ACTIVE))[::-1]
        draw(active, charts.over(t("Active users"), [row["day"][5:10] for row in days], {
            t("new"): [row["new"] for row in days], t("returning"): [row["returning"] for row in days],
        }, bars=True, stacked=True))  # fmt: skip

    await page.kept_fresh({passing: TRAFFIC_S, counted: HISTORY_S, went_on: HISTORY_S, came: HISTORY_S}, away)


async def segments(page: Page) -> None:
    t = page.t
    rows = await page.database.rows(queries.SEGMENTS, tenant=page.tenant)
    told = await _meanings(page)
    nobody = told.keys() - {row["segment"] for row in rows}
    rows = [*rows, *({"segment": name, "members": 0, "entered_1d": 0, "left_1d": 0, "changed_at": None}
                     for name in told if name in nobody)]  # fmt: skip
    if not rows:
        ui.label(f"{t('No segments yet: write rules into')} {page.settings.segments_file.absolute()}")
        return
    for row in rows:
        row["meaning"] = t(told.get(row["segment"], ""))
    columns = {"segment": "segment", "meaning": "meaning", "members": "members", "entered_1d": "entered, 1 day",
               "left_1d": "left, 1 day", "changed_at": "changed (UTC)"}  # fmt: skip
    found = page.table(rows, columns)
    assert found is not None
    choose_one(page, found, "segment", lambda row: show(row["segment"]))
    chosen = ""
    at = ui.input(t("as of (UTC)"), value=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}").classes("w-64")
    at.on("keydown.enter", lambda: show(chosen))
    below = ui.column().classes("w-full")
    with below:
        ui.label(t("Choose a segment to see who is in it."))

    async def show(segment: str) -> None:
        nonlocal chosen
        if not (segment and page.holds()):
            return
        chosen = segment
        below.clear()
        with below:
            try:
                when = datetime.fromisoformat(at.value)
            except ValueError as error:
                page.problem("as of (UTC)", str(error))
                return
            when = when if when.tzinfo else when.replace(tzinfo=UTC)
            await page.guarded(lambda: _members(page, segment, when))


async def _members(page: Page, segment: str, at: datetime) -> None:
    members = await page.database.rows(queries.MEMBERS, tenant=page.tenant, segment=segment, at=at)
    page.heading(f"{page.t('Members of')} {segment}")
    made = page.table(members, {"user_id": "user", "entered_at": "entered (UTC)", "left_at": "left (UTC)",
                                "values": "because"})  # fmt: skip
    if made is not None:
        link_users(page, made, "user_id")


async def _meanings(page: Page) -> dict[str, str]:
    """Each segment of the tenant → what it is, by the file of rules: its description or condition, of a discovered cluster
    its words."""
    path = page.settings.segments_file
    if not path.exists():  # it is where the workers are
        return {}
    version, audience = "", NO_AUDIENCE
    try:
        version, audience = await asyncio.to_thread(served, page.settings)
    except BundleRefused as error:
        page.problem("The release cannot be read", str(error))
    try:
        rules = load_rules(path, audience, version)
    except RulesError as error:
        page.problem("The rules cannot be used", str(error))
        return {}
    return {rule.name: rule.description or rule.when for rule in rules.rules if rule.tenant in (None, page.tenant)}


async def churn(page: Page) -> None:
    precision, alerts = await asyncio.gather(
        page.database.rows(queries.PRECISION, tenant=page.tenant), page.database.rows(queries.ALERTS, tenant=page.tenant))
    page.table(precision, {"model_version": "model", "horizon_days": "days", "raised": "raised", "judged": "judged",
                           "correct": "right", "precision": "precision", "said": "as said", "pending": "pending"},
               "How often alerts were right")  # fmt: skip
    for row in alerts:
        row["reasons"] = "; ".join(map(page.t, row["reasons"].split("; ")))
        row["outcome"] = page.t(row["outcome"])
    made = page.table(alerts, {"as_of_ts": "at (UTC)", "user_id": "user", "probability": "probability",
                               "horizon_days": "days", "reasons": "reasons", "outcome": "outcome"},
                      "Alerts raised, newest first")  # fmt: skip
    if made is not None:
        link_users(page, made, "user_id")


async def recommendations(page: Page) -> None:
    t = page.t
    asked = (queries.HIT_RATE, queries.HIT_RATE_DAILY, queries.SCENARIOS)
    rates, daily, scenarios = await asyncio.gather(*(page.database.rows(sql, tenant=page.tenant) for sql in asked))
    if daily:
        by_model: dict[str, dict[str, float]] = {}
        for row in daily:
            by_model.setdefault(row["model_version"], {})[row["day"]] = row["hit_rate"]
        newest = sorted(by_model, key=lambda model: (max(by_model[model]), model))[-MODELS_MAX:]
        days = sorted({day for model in newest for day in by_model[model]})
        series = {model: [by_model[model].get(day) for day in days] for model in newest}
        picture(charts.over(t("Hit rate within a day, over time"), days, series))
    for row in (*rates, *scenarios):
        row |= {name: t(row[name]) for name in ("horizon", "scenario") if name in row}
    page.table(rates, {"model_version": "model", "horizon": "within", "emissions": "emissions", "hits": "hits",
                       "hit_rate": "hit rate", "ordered": "ordered", "pending": "pending"},
               "Hit rate of recommendations, by model")  # fmt: skip
    page.table(scenarios, {"scenario": "scenario", "answers": "answers", "shown": "shown", "clicked": "clicked",
                           "added": "added", "ordered": "ordered"}, "Answers of the read API, by scenario")  # fmt: skip


async def users(page: Page) -> None:
    t = page.t
    wanted = ui.input(t("Find a user by id")).classes("w-80").props("autofocus")

    # by the browser itself: what is typed before the page is connected would be lost
    look = f"""(event) => {{ const id = event.target.closest("main").querySelector("input").value;
        if (id) location.href = "{page.href("/users/USER")}".replace("USER", encodeURIComponent(id)) }}"""
    wanted.on("keydown.enter", js_handler=look)
    ui.button(t("Look")).on("click", js_handler=look)


async def user(page: Page, ident: str) -> None:
    t = page.t
    await page.guarded(lambda: _known(page, ident))
    called = Pseudonyms(page.settings.privacy).ids_of(page.tenant, ident)[0]
    timeline = await page.database.rows(queries.TIMELINE, tenant=page.tenant, user=called)
    was = await page.database.rows(queries.USER_SEGMENTS, tenant=page.tenant, user=called)
    page.table(was, {"segment": "segment", "entered_at": "entered (UTC)", "left_at": "left (UTC)"}, "Segments")
    page.table(timeline, {"timestamp": "at (UTC)", "event": "event", "product_id": "item", "revenue": "revenue"}, "Timeline")
    if not page.may_change:
        return
    warning = t(f"Everything about user {ident} of tenant {page.tenant} will be erased, everywhere. This cannot be undone.")
    with ui.dialog() as sure, ui.card():
        ui.label(warning).classes("break-words")
        with ui.row():
            ui.button(t("Erase"), color="negative", on_click=lambda: _forget(page, ident, sure))
            ui.button(t("Cancel"), on_click=sure.close).props("flat")
    sure.props["aria-label"] = warning  # an id may hold what `props` reads as its own
    ui.button(t("Forget this user…"), on_click=sure.open).props("outline color=negative").classes("mt-6")


def _read_api(page: Page) -> httpx.AsyncClient:
    """Asks in the tenant's name. Raises `NoKey`."""
    own = page.settings.api
    key = plain_key(own.read_keys, page.tenant, "read")
    url = page.settings.dashboard.api_url or f"http://{own.host}:{own.port}"
    return httpx.AsyncClient(base_url=url, auth=(key, ""), trust_env=False)


async def _known(page: Page, ident: str) -> None:
    """What the read API says of the user."""
    t = page.t
    try:
        client = _read_api(page)
    except NoKey as error:
        page.problem("The read API does not answer", str(error))
        return
    async with client as api:
        name, titled = quote(ident, safe=""), {"fields": "title"}
        looked_at = {**titled, "log": "false"}  # the user sees none of it
        found, answer, near = await asyncio.gather(
            api.get(f"/v1/users/{name}"), api.get(f"/v1/recommendations/{name}", params=looked_at),
            api.get(f"/v1/users/{name}/nearest", params=titled))
        last = next((one["item_id"] for one in found.json()["history"] if one["item_id"]), "") if found.is_success else ""
        alike = await api.get(f"/v1/items/{quote(last, safe='')}/neighbors", params=titled) if last else None
    if found.status_code != 200:
        ui.label(t("Nothing is known of this user.") if found.status_code == 404 else found.text)
        return
    known = found.json()
    facts = [("Known since (UTC)", (known["first_seen"] or "–")[:19]),
             ("last seen (UTC)", (known["last_seen"] or "–")[:19]),
             ("events", known["events"]),
             ("orders", known["orders"]), ("spent", known["revenue"]), ("active days", known["active_days"]),
             ("in now", ", ".join(known["segments"]) or "–")]  # fmt: skip
    if said := known.get("ads"):
        facts.append(("advertising", t("refused" if said["refused"] else "allowed")))
    if churning := known["churn"]:
        facts += [("days of silence", round(churning["silent_days"], 1)), ("gone with probability", churning["p_no_return"])]
    with ui.row().classes("w-full no-wrap max-md:flex-wrap"):
        with ui.card().classes("min-w-[18rem]"):
            for name, value in facts:
                with ui.row().classes("w-full justify-between"):
                    ui.label(t(name))
                    ui.label(str(value))
        if churning:
            shown = [one for one in churning["curve"] if one[0] <= 180]
            picture(charts.curve(t("Chance of still being away, by days of silence"), shown,
                                   min(180.0, churning["silent_days"])))  # fmt: skip
    columns = {"item": "item", "title": "title", "score": "score", "source": "source", "why": "because of"}
    page.table(_items(page, answer), columns, "What is recommended now")
    with ui.row().classes("items-center"):
        asked = ui.input(t("Why, or why not: an item's id")).classes("w-80")
        told = ui.column().props('role="status"')
    asked.on("keydown.enter", lambda: page.guarded(lambda: _why(page, ident, asked.value, told)))
    page.table(_items(page, near), {"item": "item", "title": "title", "score": "cosine"}, "Nearest to the user's own vector")
    if alike is not None:
        page.heading(f"{t('Items like the last one dealt with')}: {last}")
        page.table(_items(page, alike), {"item": "item", "title": "title", "score": "score"})


def _items(page: Page, answer: httpx.Response) -> queries.Rows:
    return [
        {"item": one["item_id"], "title": (one["item"] or {}).get("title") or "", "score": one["score"],
         "source": page.t(one["source"]), "why": ", ".join(reason["item_id"] for reason in one["reasons"])}
        for one in (answer.json()["items"] if answer.is_success else [])
    ]  # fmt: skip


async def _why(page: Page, ident: str, item: str, told: ui.column) -> None:
    """Place, parts of the score, and what removed the item, below the question."""
    if not (item and page.holds()):
        return
    async with _read_api(page) as api:
        answer = await api.get(f"/v1/why/{quote(ident, safe='')}/{quote(item, safe='')}")
    told.clear()
    t = page.t
    with told:
        if not answer.is_success:
            ui.label(t(answer.json()["error"]["message"]))
            return
        why = answer.json()
        among = f"{t('place')} {why['place']} {t('of')} {why['of_items']}" if why["place"] else ""
        ui.label(f"{item}: {among or t('not among those to choose from')}").classes("font-bold")
        for removed in why["removed_by"]:
            ui.label(t(removed))
        parts = sorted(why["shares"].items(), key=lambda part: -part[1])
        ui.label(", ".join(f"{t(name)} {share:.0%}" for name, share in parts if share >= 0.005))
        if why["reasons"]:
            ui.label(f"{t('because of')}: {', '.join(reason['item_id'] for reason in why['reasons'])}")


async def _forget(page: Page, ident: str, dialog: ui.dialog) -> None:
    dialog.close()
    if not (page.may_change and page.holds()):
        return
    log.info("erasure asked for", by=page.visitor.name, tenant=page.tenant)
    try:
        called = Pseudonyms(page.settings.privacy).ids_of(page.tenant, ident)
        await asyncio.to_thread(erase.request, page.settings, page.tenant, called, suppress=False, lift=False)
    except (KafkaUnavailable, NotAcknowledged) as error:
        said = f"{page.t('The request was not taken')}: {error}"
        ui.notify(said, type="negative", timeout=0, close_button=page.t("Close"))
        return
    ui.notify(page.t("The request was taken: the erasure worker carries it out."), type="positive")


PAGES = {"/": live, "/segments": segments, "/churn": churn, "/recommendations": recommendations,
         "/promotions": promotions_page.promotions, "/satisfaction": satisfaction_page.satisfaction,
         "/models": models_page.models, "/dead-letters": letters_page.dead_letters, "/users": users}  # fmt: skip


class QuotedPage(QuotedRoute, APIRoute):
    """A page whose path may hold an id."""


def routes(settings: Settings, sessions: Sessions) -> None:
    """Tell NiceGUI of all pages. What is in front of them (`gate`) says who asks."""
    async def opened(
        request: Request, path: str, title: str, lang: str, tenant: str | None, fill: Callable[[Page], Awaitable[None]]
    ) -> Response | None:
        """What is answered instead of a page that the visitor may not open."""
        allowed = request.state.visitor.tenant(tenant, settings.shop.tenant)
        if allowed is None:
            return PlainTextResponse("This account may not open the pages of this tenant.", 403)
        page = Page(settings, sessions, request, path, lang, allowed)
        others = asyncio.create_task(page.others())
        page.frame(page.t(title) if path in NAV else title)  # an id is no word
        await page.guarded(lambda: fill(page))
        page.lead_to(await others)
        return None

    def add(path: str, fill: Callable[[Page], Awaitable[None]]) -> None:
        @ui.page(path, title=f"Clickwake · {NAV[path]}", response_timeout=30)
        async def shown(request: Request, lang: str = "", tenant: str | None = None) -> Response | None:
            return await opened(request, path, NAV[path], lang, tenant, fill)

    app.router.route_class = QuotedPage
    for path, fill in PAGES.items():
        add(path, fill)

    @ui.page("/users/{ident}", title="Clickwake · user", response_timeout=30)
    async def one_user(request: Request, ident: str, lang: str = "", tenant: str | None = None) -> Response | None:
        path = f"/users/{quote(ident, safe='')}"
        return await opened(request, path, ident, lang, tenant, lambda page: user(page, ident))
