"""`clickwake offers`: the file checked, how offers do, and whether they help."""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.table import Table

from clickwake.answering import asking, refused, rows
from stream.api.offers import load
from stream.core.offers.offer_policy import TEXT_PREFIX
from stream.core.offers.offers import Offer, OfferRules, OffersError
from stream.settings import load as load_settings

RESULTS = """SELECT tenant, placement, offer_id, holdout, users, impressions, clicks, orders, revenue, spent, click_rate,
    click_low, click_high, order_rate, order_low, order_high, text
FROM offer_results ORDER BY tenant, placement, holdout, offer_id"""
EFFECT = "SELECT * FROM offer_effect ORDER BY tenant, placement"


def check(*, as_json: bool) -> int:
    """Whether the file of offers can be used; 1 when not, with the reason."""
    path = load_settings().offers_file
    try:
        rules = load(path)
    except OffersError as error:
        return refused(error, as_json=as_json)
    if as_json:
        found = {name: [one.id for one in place.offers] for name, place in rules.placements.items()}
        print(msgspec.json.encode({"ok": True, "version": rules.version, "holdout": rules.holdout,
                                   "placements": found}).decode())  # fmt: skip
        return 0
    _show(rules)
    return 0


def _show(rules: OfferRules) -> None:
    console = Console()
    console.print(f"{rules.holdout:.0%} of users are held out", highlight=False)
    for name, place in rules.placements.items():
        own = place.placement
        console.print(f"{name}: rewarded by {own.reward}s within {own.window_hours:g} hours, groups "
                      f"{', '.join(own.groups) or 'none'}", highlight=False)  # fmt: skip
        for one in place.offers:
            console.print(f"  {one.id}{' (control)' if one.id == own.control else ''}: {_limits(one)}", highlight=False)


def _limits(one: Offer) -> str:
    budget = msgspec.to_builtins(one.budget)
    said = [f"{value:g} {name.replace('_', ' ')}" for name, value in budget.items() if value is not None]
    if one.cap is not None:
        said.append(f"{one.cap.count} a user within {one.cap.hours:g} hours")
    if one.when is not None:
        said.append(one.when)
    return "; ".join(said) or "no limits"


@asking
def results(*, as_json: bool) -> int:
    """Each offer at each placement, and whether offers help against the hold-out."""
    offers, effects = rows(load_settings().clickhouse, RESULTS, EFFECT)
    for one in effects:
        one["verdict"] = verdict(one["effect_low"], one["effect_high"])
    if as_json:
        print(msgspec.json.encode({"offers": offers, "effect": effects}).decode())
        return 0
    if not offers:
        Console().print("nobody has been shown an offer yet; they are written in "
                        f"{load_settings().offers_file}, see docs/offers.md", highlight=False, soft_wrap=True)  # fmt: skip
        return 0
    table = Table("placement", "offer", "users", "seen", "click rate", "order rate", "spent", box=None, header_style="dim")
    for row in offers:
        rates = (f"{row[f'{what}_rate']:.2%} ({row[f'{what}_low']:.2%} to {row[f'{what}_high']:.2%})"
                 for what in ("click", "order"))  # fmt: skip
        offer = named(row["offer_id"], row["text"]) + (", held out" if row["holdout"] else "")
        counts = (f"{row['users']:,}", f"{row['impressions']:,}")
        table.add_row(row["placement"], offer, *counts, *rates, f"{row['spent']:,.2f}")
    Console().print(table)
    for one in effects:
        Console().print(
            f"{one['placement']}: {one['offered_rate']:.2%} of {one['offered']:,} users ordered, {one['held_out_rate']:.2%} "
            f"of {one['held_out']:,} held out; {one['effect']:+.2%} ({one['effect_low']:+.2%} to "
            f"{one['effect_high']:+.2%}): {one['verdict']}", highlight=False, soft_wrap=True)  # fmt: skip
    return 0


def named(offer_id: str, text: str) -> str:
    """What to call an offer: a text that a caller gave by its words, for its id is a hash of them.

    >>> named("summer", "20% off the garden"), named("text-c6b9dafe99e5", "Hello")
    ('summer', 'Hello')
    """
    return text if text and offer_id.startswith(TEXT_PREFIX) else offer_id


def verdict(low: float, high: float) -> str:
    """What may be said of an effect.

    >>> verdict(0.01, 0.03), verdict(-0.01, 0.03)
    ('offers help', 'no decision')
    """
    return "offers help" if low > 0 else "offers harm" if high < 0 else "no decision"
