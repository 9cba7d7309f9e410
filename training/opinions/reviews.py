"""Reviews for the satisfaction models: two public sets, and a shop's own; and how each is split.

Women's clothing (Kaggle, CC0): title, text, 1–5 stars, recommended or not; split by item, so that no product is on both
sides. Online shopping (ChineseNlpCorpus): category, positive or not, text; one category is left out in turn.
A shop's own are what people said with stars beside it, as the sink stored it; split by item.
A review without any text says nothing to a text model and is left out.
"""

from __future__ import annotations

import csv
import hashlib
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from clickhouse_connect.driver.exceptions import ClickHouseError

from producers.datasets.table import DatasetError, opened
from stream.adapters.database.clickhouse import ClickHouseMissing, connect, missing
from stream.adapters.models.opinion_reader import UNKNOWN, Languages
from stream.core.opinions.opinions import FORMS, Said, said
from stream.settings import Settings

SHOP = "shop"  # the name of a shop's own
LANGUAGES = {"womens-clothing": "en", "chinese-reviews": "zh"}
CLOTHING_COLUMNS = ("Clothing ID", "Title", "Review Text", "Rating", "Recommended IND")
SHOPPING_COLUMNS = ("cat", "label", "review")
CATEGORIES = {  # names of measures
    "书籍": "books", "平板": "tablets", "手机": "phones", "水果": "fruit", "洗发水": "shampoo", "热水器": "heaters",
    "衣服": "clothes", "计算机": "computers", "蒙牛": "milk", "酒店": "hotels",
}  # fmt: skip
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1  # of the groups, by a hash of their names
UNKNOWN_STARS = 0
RECOMMENDED_STARS = 4  # and more: who gives so many would recommend it
OF_EACH_MIN = 20  # recommended ones and others, in each part: with fewer nothing can be chosen, or judged


@dataclass(frozen=True)
class Reviews:
    """Texts (U,), whether the writer recommends it (U,), stars (U,) of 1–5 or 0 where nobody gave any, item or category."""

    language: str
    texts: list[str]
    recommended: npt.NDArray[np.float64]
    stars: npt.NDArray[np.int64]
    groups: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, at: npt.NDArray[np.int64]) -> Reviews:
        """Those at these places, in this order."""
        some = at.tolist()
        return Reviews(self.language, [self.texts[one] for one in some], self.recommended[at], self.stars[at],
                       [self.groups[one] for one in some])  # fmt: skip

    def where(self, keep: npt.NDArray[np.bool_]) -> Reviews:
        return self.take(np.flatnonzero(keep))


def joined(title: str, text: str) -> str:
    """What a model reads of a review.

    >>> joined("Great!", "Fits well."), joined("", "Fits well. ")
    ('Great! Fits well.', 'Fits well.')
    """
    return f"{title.strip()} {text.strip()}".strip()


def read(dataset: str, path: Path) -> Reviews:
    """A set by its name. Raises `DatasetError` when the name or the file is not what it should be."""
    readers = {"womens-clothing": womens_clothing, "chinese-reviews": chinese_reviews}
    if dataset not in readers:
        raise DatasetError(f"unknown reviews {dataset!r}; known are {', '.join(readers)}")
    return readers[dataset](path)


def womens_clothing(path: Path) -> Reviews:
    """Title and text are one text; the group is the item. Raises `DatasetError`."""
    texts, recommended, stars, groups = [], [], [], []
    for line, (item, title, text, rating, flag) in _rows(path, CLOTHING_COLUMNS):
        if rating not in {"1", "2", "3", "4", "5"} or flag not in {"0", "1"}:
            raise DatasetError(f"{path}, line {line}: rating {rating!r} and recommended {flag!r} must be 1–5 and 0 or 1")
        if whole := joined(title, text):
            texts.append(whole)
            recommended.append(float(flag))
            stars.append(int(rating))
            groups.append(item)
    return Reviews(LANGUAGES["womens-clothing"], texts, np.array(recommended), np.array(stars), groups)


def chinese_reviews(path: Path) -> Reviews:
    """A repeated text is kept once, or it would be on both sides; the group is the category, in English. Raises
    `DatasetError`."""
    texts, recommended, groups, seen = [], [], [], set()
    for line, (category, label, text) in _rows(path, SHOPPING_COLUMNS):
        if label not in {"0", "1"}:
            raise DatasetError(f"{path}, line {line}: label {label!r} must be 0 or 1")
        plain = text.strip().lstrip("\ufeff")
        if plain and plain not in seen:
            seen.add(plain)
            texts.append(plain)
            recommended.append(float(label))
            groups.append(CATEGORIES.get(category, category))
    return Reviews(LANGUAGES["chinese-reviews"], texts, np.array(recommended), np.full(len(texts), UNKNOWN_STARS), groups)


def from_clickhouse(settings: Settings, tenant: str, language: str = "") -> Reviews:
    """`stored` ones, if they are enough to learn, choose and judge by; else raises `DatasetError`."""
    reviews = stored(settings, tenant, language)
    if min(rarest(part) for part in by_item(reviews)) < OF_EACH_MIN:
        raise DatasetError(too_few(tenant, reviews.language, len(reviews), OF_EACH_MIN))
    return reviews


def too_few(tenant: str, language: str, count: int, of_each: int) -> str:
    """What to say where they are not enough."""
    there = f"{count} in {language}" if count else "none"
    return (f"tenant {tenant} has too few reviews with words and stars ({there}): needed are {of_each} of each kind, "
            f"{RECOMMENDED_STARS} stars and more or fewer, among those to learn from, to choose by and to judge by")


def rarest(reviews: Reviews) -> int:
    """How many there are of the rarer kind, recommended or not."""
    return int(np.bincount(reviews.recommended.astype(np.int64), minlength=2).min())


def stored(settings: Settings, tenant: str, language: str = "") -> Reviews:
    """A shop's own reviews and survey answers that have words and stars, of one language, without one the most frequent; in
    the order of time. The group is the item, else what was said. Raises `ClickHouseMissing`."""
    sql = ("SELECT event, properties FROM events FINAL WHERE tenant = {tenant:String} AND event IN {names:Array(String)} "
           "ORDER BY timestamp, message_id")  # fmt: skip
    names = [name for name, form in FORMS.items() if form.rating is not None]
    client = connect(settings.clickhouse, wait_s=10.0)
    try:
        rows = client.query(sql, parameters={"tenant": tenant, "names": names}).result_rows
    except ClickHouseError as error:
        raise ClickHouseMissing(missing(settings.clickhouse, error)) from error
    finally:
        client.close()
    languages, found = Languages(), dict[str, dict[str, Said]]()
    for name, properties in rows:
        one = said(name, properties.encode())
        if one is not None and one.text and one.stars is not None:
            found.setdefault(languages.of(one.text), {})[one.text] = one  # who says the same twice is heard once
    most = language or max(found, key=lambda name: len(found[name]), default=UNKNOWN)
    some = list(found.get(most, {}).values())
    stars = np.array([round(one.stars or 0.0) for one in some], dtype=np.int64)
    return Reviews(most, [one.text for one in some], (stars >= RECOMMENDED_STARS).astype(np.float64), stars,
                   [one.item_id or one.text for one in some])  # fmt: skip


def _rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(line, the wanted columns) of each row of a CSV file, whose fields may hold line breaks."""
    csv.field_size_limit(min(sys.maxsize, 1 << 24))
    try:
        with opened(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if missing := [name for name in wanted if name not in header]:
                raise DatasetError(f"{path} has no column {', '.join(missing)}; its columns are {', '.join(header)[:200]}")
            places = [header.index(name) for name in wanted]
            for row in rows:
                if len(row) != len(header):
                    raise DatasetError(f"{path}, line {rows.line_num}: {len(row)} fields, expected {len(header)}")
                yield rows.line_num, [row[at] for at in places]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} is cut off or damaged: {error}. Fetch it again.") from error


def place(group: str) -> float:
    """Where a group lies in [0, 1), the same on every machine and for ever.

    >>> round(place("1078"), 4)
    0.8459
    """
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64


def by_item(reviews: Reviews) -> tuple[Reviews, Reviews, Reviews]:
    """(train, validation, test): all reviews of an item are in the same part."""
    at = np.array([place(group) for group in reviews.groups])
    test, validation = at < TEST_SHARE, (at >= TEST_SHARE) & (at < TEST_SHARE + VALIDATION_SHARE)
    return reviews.where(~test & ~validation), reviews.where(validation), reviews.where(test)


def by_place(reviews: Reviews, share: float) -> tuple[Reviews, Reviews]:
    """(the others, those in this share of the groups)."""
    chosen = np.array([place(group) for group in reviews.groups]) < share
    return reviews.where(~chosen), reviews.where(chosen)


def left_out(reviews: Reviews, category: str | None) -> tuple[Reviews, Reviews, Reviews]:
    """(train, validation, test): one category is the test, the others are split by a hash of the text. Without a category
    nothing is left out, and the test is empty."""
    test = np.array([group == category for group in reviews.groups])
    validation = ~test & (np.array([place(text) for text in reviews.texts]) < VALIDATION_SHARE)
    return reviews.where(~test & ~validation), reviews.where(validation), reviews.where(test)
