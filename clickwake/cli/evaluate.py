"""`clickwake evaluate`: models beside strong baselines."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from clickwake.cli.options import DATA_SETS, AsJson, DataPath, DatasetName, NamedDataset, ReportDir

PANEL = "Train, judge and release"
app = typer.Typer()

evaluate = typer.Typer(help="Compare with strong baselines on a data set, by a time split.", no_args_is_help=True)
app.add_typer(evaluate, name="evaluate", rich_help_panel=PANEL)


@evaluate.command("recommend")
def evaluate_recommend(
    dataset: DatasetName,
    path: DataPath,
    split: Annotated[datetime | None, typer.Option(help="learn before it, ask after it; default: the newest tenth")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="how often ours is trained; its figures are the mean")] = 3,
    panel: Annotated[bool, typer.Option(help="beside popularity, neighbours, EASE, SASRec, BERT4Rec …")] = True,
    ablations: Annotated[bool, typer.Option(help="ours without text, ids, time, live counts …, and pre-trained")] = False,
    freshness: Annotated[bool, typer.Option(help="quality against the model's age, with live counts and without")] = False,
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """Each known user's next moment and every moment after the split, all items ranked, beside a panel of strong methods."""
    from training.evaluation import evaluations

    options = {"seeds": float(seeds), "panel": float(panel), "ablations": float(ablations), "freshness": float(freshness)}
    evaluations.main("recommend", dataset, path, split, as_json, report, options)


@evaluate.command("churn")
def evaluate_churn(
    dataset: DatasetName,
    path: DataPath,
    split: Annotated[datetime | None, typer.Option(help="the cut-off; default: as late as the horizon allows")] = None,
    horizon_days: Annotated[float, typer.Option(min=1, max=365, help="no event within this many days is churn")] = 90.0,
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """Who stays away after the cut-off: AUC, Brier and calibration error."""
    from training.evaluation import evaluations

    evaluations.main("churn", dataset, path, split, as_json, report, {"horizon_days": horizon_days})


@evaluate.command("repurchase")
def evaluate_repurchase(
    dataset: Annotated[str, typer.Argument(help=f"simulated, {DATA_SETS}")],
    path: Annotated[Path | None, typer.Argument(help="the data set's file, gzip or plain")] = None,
    split: Annotated[datetime | None, typer.Option(help="asked at this time; default: 90 days before the end")] = None,
    shoppers: Annotated[int, typer.Option(min=50, help="of the simulated shop")] = 400,
    days: Annotated[int, typer.Option(min=190, help="of the simulated shop")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="of the simulated shop")] = 7,
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """Which items are bought again within 30, 60 and 90 days, what completes a basket, whether reminders are right."""
    from training.evaluation import evaluations

    if dataset != "simulated" and path is None:
        raise typer.BadParameter(f"{dataset} needs its file: clickwake evaluate repurchase {dataset} PATH")
    options = {"shoppers": float(shoppers), "days": float(days), "seed": float(seed)}
    evaluations.main("repurchase", dataset, path or Path(), split, as_json, report, options)


@evaluate.command("satisfaction")
def evaluate_satisfaction(
    dataset: Annotated[str, typer.Argument(help="womens-clothing, chinese-reviews, or shop: what the sink stored")],
    path: Annotated[Path | None, typer.Argument(help="the data set's file; none for shop")] = None,
    split: Annotated[
        str | None, typer.Option(help="item or category: what the data set is split by; a hash decides, never a time"),
    ] = None,
    publish: Annotated[bool, typer.Option("--publish", help="put the model into the registry")] = False,
    tenant: Annotated[str, typer.Option(help="of shop: whose reviews")] = "demo",
    language: Annotated[str, typer.Option(help="of shop: of which language, e.g. en; the most frequent by default")] = "",
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """Recommended or not, and stars, from the text of reviews of items or categories never learned from."""
    from training.evaluation import evaluations
    from training.opinions.reviews import SHOP, from_clickhouse

    splits = {"womens-clothing": "item", "chinese-reviews": "category", SHOP: "item"}
    if dataset not in splits:
        raise typer.BadParameter(f"unknown reviews {dataset!r}; known are {', '.join(splits)}")
    if split not in (None, splits[dataset]):
        raise typer.BadParameter(f"{dataset} is split by {splits[dataset]}; leave --split out")
    if (path is None) != (dataset == SHOP):
        raise typer.BadParameter(f"{dataset} is read from {'ClickHouse' if dataset == SHOP else 'its file'}")
    source = partial(from_clickhouse, tenant=tenant, language=language) if path is None else None
    evaluations.main("satisfaction", dataset, path or Path(), None, as_json, report, {"publish": float(publish)},
                     source=source)  # fmt: skip


@evaluate.command("promotions")
def evaluate_promotions(
    dataset: Annotated[str, typer.Argument(help="open-bandit, hillstrom, or shop: your own decisions in ClickHouse")],
    path: Annotated[
        Path | None, typer.Argument(help="open-bandit: the folder with random/ and bts/; hillstrom: the file; none for shop")
    ] = None,
    tenant: Annotated[str, typer.Option(help="of shop: whose decisions")] = "demo",
    placement: Annotated[str, typer.Option(help="of shop: only at this one; default: each by itself")] = "",
    since: Annotated[datetime | None, typer.Option(help="of shop: served from this time on, UTC")] = None,
    until: Annotated[datetime | None, typer.Option(help="of shop: served before it, UTC")] = None,
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """Which offer, and whom to mail: policies judged by logs that were drawn by lot, and what may be concluded."""
    from training.evaluation import evaluations
    from training.promotions.offer_log import SHOP, from_clickhouse

    if (path is None) != (dataset == SHOP):
        raise typer.BadParameter(f"{dataset} is read from {'ClickHouse' if dataset == SHOP else 'its file'}")
    first, last = (None if at is None else at.replace(tzinfo=UTC) for at in (since, until))
    source = partial(from_clickhouse, tenant=tenant, placement=placement, since=first, until=last) if path is None else None
    evaluations.main("promotions", dataset, path or Path(), None, as_json, report, source=source)


@evaluate.command("clusters")
def evaluate_clusters(
    dataset: Annotated[str, typer.Argument(help="simulated, or one of the data sets")] = "simulated",
    path: Annotated[Path | None, typer.Argument(help="the data set's file, gzip or plain")] = None,
    shoppers: Annotated[int, typer.Option(min=50, help="of the simulated shop")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="of the simulated shop")] = 7,
    retrain: Annotated[bool, typer.Option("--retrain", help="train twice more: are the same users together?")] = False,
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """Clusters of users by their vectors: against planted tastes, under resampling, and whether users stay in them."""
    from training.evaluation import evaluations

    if dataset != "simulated" and path is None:
        raise typer.BadParameter(f"{dataset} needs its file: clickwake evaluate clusters {dataset} PATH")
    options = {"shoppers": float(shoppers), "seed": float(seed), "retrain": float(retrain)}
    evaluations.main("clusters", dataset, path or Path(), None, as_json, report, options)


@evaluate.command("strategies")
def evaluate_strategies(
    dataset: Annotated[str, typer.Argument(help="simulated, or clickhouse: what the sink stored")] = "simulated",
    worlds: Annotated[int, typer.Option(min=1, help="simulated shops, of seeds that follow each other")] = 6,
    shoppers: Annotated[int, typer.Option(min=50, help="of each")] = 800,
    days: Annotated[int, typer.Option(min=20, help="of each")] = 150,
    seed: Annotated[int, typer.Option(min=0, help="of the first")] = 7,
    tenant: Annotated[str, typer.Option(help="whose opinions in ClickHouse")] = "demo",
    split: Annotated[datetime | None, typer.Option(help="of clickhouse: learn before it; default: the newest 30%")] = None,
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """Satisfaction by user, item and strategy after a time split, and whether planted effects of strategies are found."""
    from training.evaluation import evaluations

    if dataset not in ("simulated", "clickhouse"):
        raise typer.BadParameter(f"{dataset!r} has no strategies with opinions; it is simulated or clickhouse")
    options = {"worlds": float(worlds), "shoppers": float(shoppers), "days": float(days), "seed": float(seed)}
    evaluations.main("strategies", dataset, Path(tenant), split, as_json, report, options)


@evaluate.command("explanations")
def evaluate_explanations(
    source: Annotated[str, typer.Option(help="clickhouse: what the sink stored")] = "clickhouse",
    dataset: NamedDataset = None,
    events: Annotated[Path | None, typer.Option(help="JSON lines of canonical events, instead")] = None,
    items: Annotated[Path | None, typer.Option(help="JSON lines of catalog items, with --events")] = None,
    tenant: Annotated[str, typer.Option(help="whose events in ClickHouse")] = "demo",
    split: Annotated[datetime | None, typer.Option(help="learn before it, ask at it; default: the newest tenth")] = None,
    users: Annotated[int, typer.Option(min=2, help="whose histories are taken apart, drawn from those who came back")] = 300,
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """Whether a recommended item falls further without its first reason than without another event of the user's."""
    from training import commands
    from training.evaluation import evaluations

    name, path = dataset or (source if events is None else events.name, Path())
    evaluations.main("explanations", name, path, split, as_json, report, {"users": float(users)}, source=lambda settings:
                     commands.history_of(settings, source, dataset, events, items, tenant))  # fmt: skip


@evaluate.command("text")
def evaluate_text(
    dataset: DatasetName,
    path: DataPath,
    split: Annotated[datetime | None, typer.Option(help="learn before it, ask after it; default: the newest tenth")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="how often the recommender is learned on each encoder's vectors")] = 3,
    keep: Annotated[
        Path | None, typer.Option(help="folder for the adapted encoder, for CLICKWAKE_TRAINING__TEXT_MODEL if it is better")
    ] = None,
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """The text encoder in eight bits, and adapted to the catalog: what each does to the ranking, and how fast it is."""
    from training.evaluation import evaluations

    evaluations.main("text", dataset, path, split, as_json, report, {"seeds": float(seeds)}, keep)
