"""Nothing on the dashboard has English alone: labels, codes in the records, the sentences that alerts and answers say."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickwake.dashboard import charts, frame, models_page
from clickwake.dashboard.words import CHINESE, Words
from schemas import dead_letter
from stream.alerts import reasons
from stream.api.choosing import unknown_item
from stream.core.ranking import why
from stream.core.ranking.recommend import SOURCES
from stream.core.ranking.scenarios import Scenario
from stream.core.segments.segment_rules import RulesFile, compiled
from stream.core.user.state import UserState

LATIN = re.compile("[A-Za-z]{2}")
chinese = Words("zh")
SOURCE = "\n".join(path.read_text() for path in sorted(Path(frame.__file__).parent.glob("*.py")) if path.name != "charts.py")
COLUMNS = [pair for columns in re.findall(r"\{((?:\s*\"\w+\": \"[^\"]*\",?)+)\s*\}", SOURCE)
           for pair in re.findall(r'"(\w+)": "([^"]+)"', columns)]  # fmt: skip
TIMES = {"as_of_ts", "changed_at", "data_to", "entered_at", "last", "left_at", "newest", "timestamp"}


def test_every_label_has_its_chinese() -> None:
    used = set(re.findall(r'\bt\("([^"]+)"\)', SOURCE)) | set(frame.NAV.values()) | set(models_page.FEATURES.values())
    used |= {label for _, label in COLUMNS} | {frame.SLOW, frame.FAILS}
    assert len(used) > 50
    assert {word for word in used if word not in CHINESE and not word.startswith("/")} == set()


def test_every_time_is_said_to_be_utc() -> None:
    labels = [(field, label) for field, label in COLUMNS if field in TIMES]
    assert {field for field, _ in labels} == TIMES
    assert {label for _, label in labels if "(UTC)" not in label or "UTC" not in CHINESE[label]} == set()


def test_every_code_has_its_chinese() -> None:
    codes = {*get_args(Scenario), *SOURCES, "pinned", "rank", "offer", *get_args(dead_letter.Kind),
             "correct", "wrong", "pending", "1h", "1d", "7d"}  # fmt: skip
    assert codes - set(CHINESE) == set()


def test_every_built_in_segment_is_told_in_chinese() -> None:
    rules = compiled(RulesFile(rfm=True, fifths=True)).rules
    assert len(rules) == 28 and {rule.description for rule in rules if LATIN.search(chinese(rule.description))} == set()


@given(days=st.lists(st.integers(0, 30_000), unique=True, min_size=1).map(sorted), orders=st.integers(0, 10_000),
       silence_days=st.floats(0, 4_000))  # fmt: skip
def test_every_reason_of_an_alert_has_its_chinese(days: list[int], orders: int, silence_days: float) -> None:
    for reason in reasons(UserState(days=days, orders=orders), silence_days):
        said = chinese(reason)
        assert not LATIN.search(said)
        assert sorted(re.findall(r"[\d.]+", said)) == sorted(re.findall(r"[\d.]+", reason)), "the same figures"


def sentences(function: Callable[..., object]) -> Iterator[str]:
    """What a function may say, with a number wherever it puts a value in."""
    docstring = function.__doc__
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "7" for part in node.values)
        elif isinstance(node, ast.Constant) and " " in str(node.value) and node.value != docstring:
            yield str(node.value)


def test_every_rule_that_removes_an_item_has_its_chinese() -> None:
    said = set(sentences(why._removed_by))
    whole = {text for text in said if not any(text != other and text in other for other in said)}  # no parts of f-strings
    assert len(whole) >= 9
    assert {text for text in whole if LATIN.search(chinese(text))} == set()


@pytest.mark.parametrize("item", ["i1", "it's", 'a "b"'])
def test_an_item_that_nobody_knows_keeps_its_name(item: str) -> None:
    assert chinese(unknown_item(item).message) == f"商品目录和事件中都没有商品 {item}。"


def _light(colour: str) -> float:
    """Relative luminance; WCAG 2.2."""
    values = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("paper", ["#ffffff", "#121212"])
def test_lines_and_bars_stand_out(paper: str) -> None:
    for colour in charts.COLOURS:
        low, high = sorted((_light(colour), _light(paper)))
        assert (high + 0.05) / (low + 0.05) >= 3, colour
