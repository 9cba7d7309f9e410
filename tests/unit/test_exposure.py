"""Exposure by brand: shares that add up, and planted favours that are found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.catalog import Item
from training.evaluation.comparison import Comparison, means, under, verdict
from training.evaluation.metrics import Interval
from training.evaluation.report import comparison_page
from training.recommend import exposure
from training.recommend.exposure import GAP_TASK, GROUPS_MAX, OTHERS, SHOWN_TASK, Groups

BRANDS = ["Clay", "Ox & Co.", "Lumen", ""]


def catalog(brands: list[str], kind: str = "brand") -> dict[str, Item]:
    return {f"i{n}": Item(item_id=f"i{n}", tenant="t", **{kind: one}) for n, one in enumerate(brands)}


@given(st.lists(st.sampled_from([f"b{n}" for n in range(12)] + [""]), min_size=2, max_size=60), st.integers(0, 2**32 - 1))
def test_shares_add_up_and_gaps_cancel(brands: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    by = exposure.groups(catalog(brands), rng.integers(0, 9, len(brands)))
    if by is None:
        assert len(set(brands) - {""}) <= 1
        return
    assert len(by.names) <= GROUPS_MAX + 1 and by.names[-1] == OTHERS and by.touched.sum() in (0, pytest.approx(1))
    ranked = rng.permutation(len(brands))
    wanted = ranked[: rng.integers(1, len(brands) + 1)]
    shown, demanded = exposure.of_question(by, ranked, wanted)
    assert shown.sum() == pytest.approx(1) and demanded.sum() == pytest.approx(1) and (shown >= 0).all()
    (gaps,) = (one for task, one in exposure.measured(by, [np.stack([shown, demanded])]).items() if "gap" in task)
    assert sum(float(one[0]) for one in gaps.values()) == pytest.approx(0, abs=1e-9)


def test_the_first_place_counts_most() -> None:
    by = exposure.groups(catalog(["a", "b", "b"]), np.ones(3, dtype=np.int64))
    assert by is not None and by.names == ("b", "a", OTHERS)
    shown, wanted = exposure.of_question(by, np.array([0, 1, 2]), np.array([0, 1]))
    total = 1 + 1 / np.log2(3) + 0.5
    assert shown.tolist() == pytest.approx([1 - 1 / total, 1 / total, 0]) and wanted.tolist() == [0.5, 0.5, 0]


def test_a_favoured_brand_is_found_and_a_fair_ranking_is_not_accused() -> None:
    rng = np.random.default_rng(4)
    brands = [BRANDS[n % 4] for n in range(200)]
    by = exposure.groups(catalog(brands), rng.integers(1, 5, 200))
    assert by is not None and set(by.names) == {"Clay", "Ox & Co", "Lumen", OTHERS}, "a dot would name a sub-task"
    clay = np.flatnonzero(by.of == by.names.index("Clay"))
    fair, partial = [], []
    for _ in range(400):
        wanted = rng.choice(200, 3, replace=False)
        lot = rng.permutation(200)
        fair.append(exposure.of_question(by, lot, wanted))
        front = rng.choice(clay, 3, replace=False)
        partial.append(exposure.of_question(by, np.concatenate([front, lot[~np.isin(lot, front)]]), wanted))
    said = {name: _said(by, some) for name, some in (("fair", fair), ("partial", partial))}
    assert said["fair"]["brand shown too much"] == said["fair"]["brand shown too little"] == "none beyond chance"
    assert str(said["partial"]["brand shown too much"]).startswith("Clay: +0.")
    assert sum(float(said["fair"][f"touches before, {name}"]) for name in by.names) == pytest.approx(1)


def _said(by: Groups, questions: list[np.ndarray]) -> dict[str, float | str]:
    found = exposure.measured(by, questions)
    task = GAP_TASK.format("brand")
    models, _ = means({"clickwake": found[task]}, "clickwake")
    return exposure.said(by, under(task, models)["clickwake"])


def test_categories_stand_in_for_brands_and_neither_is_said() -> None:
    by = exposure.groups(catalog(["Mugs", "Lamps"], kind="category"), np.array([1, 2]))
    assert by is not None and by.kind == "category" and by.names == ("Lamps", "Mugs", OTHERS)
    assert exposure.groups(catalog(["", ""]), np.array([1, 2])) is None
    assert exposure.said(None, {}) == {"exposure by brand": exposure.NOT_NAMED}


def test_more_exposure_is_neither_a_win_nor_a_loss_and_the_page_shows_it() -> None:
    much = Interval(0.3, 0.2, 0.4)
    shown, gap = (f"{task.format('brand')}.Clay" for task in (SHOWN_TASK, GAP_TASK))
    assert verdict(gap, much) == "" and verdict("hr@10", much) == "better"
    found = Comparison(task="recommend", dataset="d", split="s", n=9, served="clickwake",
                       models={"clickwake": {"hr@10": much, shown: much, gap: much}, "other": {shown: much, gap: much}})
    page = comparison_page(found, {})
    assert "Each brand&#x27;s share of what is shown minus" in page and page.count("data:image/png") == 3
