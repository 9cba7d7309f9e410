"""`clickwake strategies`: how satisfied users will be under each strategy, which are told apart, and what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import yaml
from clickhouse_connect.driver.exceptions import ClickHouseError
from rich.console import Console
from rich.table import Table

from clickwake.answering import refused
from stream.adapters.database.clickhouse import ClickHouseMissing
from stream.adapters.database.strategies import Known, Store, read
from stream.api.offers import load
from stream.core.offers.offers import NO_OFFERS, Offer, OfferRules, OffersError, Placement
from stream.core.opinions.strategies import NONE, Asked, Model, learn
from stream.core.opinions.strategy_comparison import Arm, Compared, Seed, compare, within
from stream.core.statistics.pooling import Estimate
from stream.settings import load as load_settings

OFFER, DELIVERY, HELD_OUT = "offer/", "delivery/", "held out/"
NOT_RANDOMISED = "not randomised"
ROWS_MAX = 2_000_000  # of one `store`: some minutes, and 100 MB in ClickHouse
CONFOUNDED = ("users differ by more than the strategy where chances are not logged, and only those speak who came and "
              "wanted to: the experiment decides")  # fmt: skip


def run_compare(
    tenant: str, segment: str | None, items: Sequence[str], category: str | None, least: float, picture: Path | None, *,
    as_json: bool,
) -> int:  # fmt: skip
    """Every strategy for the users and items that were asked about; returns the exit code."""
    try:
        known = _known(tenant)
        model = learn(known.rows)
        found = compare(model, _asked(model, known, segment, items, category), least)
        text = snippet(found.seed, _offers(), segment)
    except (ClickHouseMissing, OffersError, ValueError) as error:
        return refused(error, as_json=as_json)
    if picture is not None:
        draw(found, picture)
    if as_json:
        print(msgspec.json.encode({"tenant": tenant, "segment": segment, "items_named": list(items), "category": category,
                                   **msgspec.to_builtins(found), "caution": CONFOUNDED, "yaml": text}).decode())  # fmt: skip
        return 0
    _show(found)
    Console().print(f"\n{text}", markup=False, highlight=False, soft_wrap=True)
    return 0


def run_predict(tenant: str, user: str, item: str, *, as_json: bool) -> int:
    """Every strategy for one user and one item."""
    try:
        known = _known(tenant, user)
        if user in known.refusing:
            raise ValueError(f"user {user!r} refuses a profile: nothing is predicted of them, see docs/privacy.md")
        model = learn(known.rows)
        asked = model.asked({user: known.users.get(user, ())}, {item: known.items.get(item, "")})
        found = compare(model, asked)
    except (ClickHouseMissing, ValueError) as error:
        return refused(error, as_json=as_json)
    if as_json:
        one = {name: msgspec.to_builtins(within(model.posterior.seen(model.x(asked, name))))
               for name in model.levels.strategies}  # fmt: skip
        print(msgspec.json.encode({"tenant": tenant, "user": user, "item": item, "groups": known.users.get(user, ()),
                                   "category": known.items.get(item, ""), "user_leaning": model.leanings.user(user),
                                   "item_leaning": model.leanings.item(item), **msgspec.to_builtins(found),
                                   "one_opinion": one, "caution": CONFOUNDED}).decode())  # fmt: skip
        return 0
    _show(found)
    return 0


def run_store(
    tenant: str, segment: str | None, items: Sequence[str], category: str | None, *, as_json: bool
) -> int:  # fmt: skip
    """Every strategy for each user and item that was asked about, into ClickHouse."""
    try:
        known = _known(tenant)
        model = learn(known.rows)
        users, wanted = _pairs(known, segment, items, category)
        rows = len(users) * len(wanted) * len(model.levels.strategies)
        if rows > ROWS_MAX:
            raise ValueError(f"{len(users):,} users × {len(wanted):,} items × {len(model.levels.strategies)} strategies are "
                             f"{rows:,} rows, {ROWS_MAX:,} at most are stored at once: ask for a segment, a category, items")
        store = Store(load_settings().clickhouse, tenant, known, model, int(datetime.now(UTC).timestamp() * 1000))
        stored = store.write(model.predicted(users, wanted))
    except (ClickHouseMissing, ClickHouseError, ValueError) as error:
        return refused(error, as_json=as_json)
    if as_json:
        until = datetime.fromtimestamp(store.learned_until_ms / 1000, UTC)
        print(msgspec.json.encode({"tenant": tenant, "rows": stored, "users": len(users), "items": len(wanted),
                                   "strategies": model.levels.strategies, "model_version": store.version,
                                   "learned_until": until}).decode())  # fmt: skip
        return 0
    Console().print(f"{stored:,} predictions of {len(users):,} users × {len(wanted):,} items × "
                    f"{len(model.levels.strategies)} strategies are in satisfaction_predictions, by model {store.version}, "
                    f"learned from {len(known.rows):,} opinions; {CONFOUNDED}", highlight=False, soft_wrap=True)  # fmt: skip
    return 0


def _known(tenant: str, user: str = "") -> Known:
    """`user`: the only one who is asked about. Raises ValueError where nobody has said anything of an item."""
    known = read(load_settings().clickhouse, tenant, user)
    if not known.rows:
        raise ValueError(f"tenant {tenant!r} has no opinions about items yet: send Product Reviewed or Survey Answered with "
                         "a product_id, see docs/satisfaction.md")  # fmt: skip
    return known


def _asked(model: Model, known: Known, segment: str | None, items: Sequence[str], category: str | None) -> Asked:
    """Raises ValueError, which says what there is nobody or nothing of."""
    return model.asked(*_pairs(known, segment, items, category))


def _pairs(
    known: Known, segment: str | None, items: Sequence[str], category: str | None
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:  # fmt: skip
    """Users with their groups, but for those who refuse a profile, and items with their categories. Raises ValueError, as
    above."""
    users = {row.user: known.users.get(row.user, ()) for row in known.rows}
    if segment is not None:
        users = {user: groups for user, groups in known.users.items() if segment in groups}
        if not users:
            names = sorted({group for groups in known.users.values() for group in groups})
            raise ValueError(f"nobody is in the segment {segment!r} now; there are {', '.join(names) or 'none'}")
    users = {user: groups for user, groups in users.items() if user not in known.refusing}
    if not users:
        raise ValueError("all who were asked about refuse a profile, and nothing is predicted of them: ask about others")
    wanted = {row.item: row.category for row in known.rows}
    if items:
        wanted = {item: known.items.get(item, "") for item in items}
    elif category is not None:
        wanted = {item: own for item, own in known.items.items() if own == category}
        if not wanted:
            raise ValueError(f"no item of the catalog is in {category!r}; there are "
                             f"{', '.join(sorted(set(known.items.values()) - {''})) or 'no categories'}")  # fmt: skip
    return users, wanted


def _offers() -> OfferRules:
    """Raises OffersError."""
    path = load_settings().offers_file
    return load(path) if path.exists() else NO_OFFERS


def _show(found: Compared) -> None:
    caption = (f"{found.users:,} users × {found.items:,} items; one opinion lies {found.noise:.2f} around what is expected; "
               f"{CONFOUNDED}")  # fmt: skip
    table = Table("strategy", "satisfaction", "behind the best", "", "opinions", "worth", "", box=None, header_style="dim",
                  caption=caption)  # fmt: skip
    for one in found.arms:
        behind = "" if one is found.arms[0] else _cell(one.behind, ".3f")
        table.add_row(one.strategy, _cell(one.satisfaction, ".3f"), behind, one.verdict, f"{one.opinions:,}",
                      f"{one.effective:,.0f}", "" if one.by_lot else NOT_RANDOMISED)  # fmt: skip
    Console().print(table)


def _cell(one: Estimate, form: str) -> str:
    return f"{one.value:{form}} ({one.low:{form}} to {one.high:{form}})"


def snippet(seed: Seed, rules: OfferRules, segment: str | None) -> str:
    """The seed as a file of offers, with what the present file says of them, and in comments what it cannot hold."""
    offers = [one.removeprefix(OFFER).partition("/") for one in seed.arms if one.startswith(OFFER)]
    pairs = [(placement, offer) for placement, _, offer in offers]
    lines = [f"# {datetime.now(UTC):%Y-%m-%d}: {', '.join(seed.arms)}", f"# {seed.why}"]
    days = "nobody speaks under them now" if seed.days is None else f"{seed.days:,} days at the present rate"
    lines.append(f"# {seed.opinions_each:,} opinions under each tell {seed.difference:.3f} apart: {days}; then compare anew")
    for one in seed.arms:
        if one.startswith((DELIVERY, HELD_OUT)):
            lines.append(f"# {one}: in deliveries.yml give {one.partition('/')[2]!r} a holdout of 0.5")
    if NONE in seed.arms and pairs:
        lines.append("# none: who is held out sees nothing")
    if not pairs:
        return "\n".join([*lines, "# no offer is among them"])
    return "\n".join([*lines, yaml.safe_dump(_file(pairs, seed, rules, segment), sort_keys=False).rstrip()])


def _file(pairs: Sequence[tuple[str, str]], seed: Seed, rules: OfferRules, segment: str | None) -> dict[str, Any]:
    """What the offers' file takes."""
    names = dict.fromkeys(placement for placement, _ in pairs)
    placements, offers = [], {}
    for name in names:
        known = rules.placements.get(name)
        place = msgspec.structs.replace(known.placement if known else Placement(name=name), control=None, guardrail=None)
        placements.append(_plain(place))
    for offer in dict.fromkeys(offer for _, offer in pairs):
        at = tuple(placement for placement, one in pairs if one == offer)
        known_offers = [one for place in at if place in rules.placements for one in rules.placements[place].offers
                        if one.id == offer]  # fmt: skip
        own = known_offers[0] if known_offers else Offer(id=offer, placements=at)
        only = own.segments if segment is None else (segment,)
        offers[offer] = _plain(msgspec.structs.replace(own, placements=at, segments=only))
    held = {"holdout": round(1 / len(seed.arms), 2)} if NONE in seed.arms else {}
    return {**held, "placements": placements, "offers": list(offers.values())}


def _plain(one: msgspec.Struct) -> Mapping[str, Any]:
    """As it is written: without what is as it would be anyway."""
    said = {field.encode_name: getattr(one, field.name) for field in msgspec.structs.fields(one)
            if field.required or getattr(one, field.name) != _default(field)}  # fmt: skip
    return {name: _plain(value) if isinstance(value, msgspec.Struct) else
            msgspec.to_builtins(value, builtin_types=(datetime,)) for name, value in said.items()}  # fmt: skip


def _default(field: msgspec.structs.FieldInfo) -> Any:
    """What a field is where nothing is said."""
    made = field.default_factory
    return field.default if made is msgspec.NODEFAULT else made()


def draw(found: Compared, path: Path) -> None:
    """Each strategy with its interval, the best on top; what is not compared by lot is hollow."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.4 * len(found.arms)), layout="constrained")
    axis = figure.subplots()
    for at, one in enumerate(found.arms[::-1]):
        mean = one.satisfaction
        axis.plot([mean.low, mean.high], [at, at], color="#4a7ebb")
        axis.plot(mean.value, at, "o", color="#4a7ebb", markerfacecolor="#4a7ebb" if one.by_lot else "white")
    axis.set_yticks(range(len(found.arms)), [_label(one) for one in found.arms[::-1]])
    axis.set_xlabel("expected satisfaction, 95% interval; hollow: not randomised")
    figure.savefig(path)


def _label(one: Arm) -> str:
    return f"{one.strategy} ({one.opinions:,})"
