"""What kind of thing each item is: as the catalog says, or, where it says nothing of any, derived from the titles."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from training.history.snapshot import History
from training.panel.method import Ints, Past

TITLES_MIN = 10  # that end in a word, for it to name a category
LOOKS = frozenset({  # what titles end in that says how an item looks or is packed, not what it is
    "pink", "red", "blue", "green", "black", "white", "cream", "ivory", "gold", "silver", "colour", "large", "small",
    "medium", "assorted", "design", "set",
})  # fmt: skip
PLURAL = re.compile(r"(?:(?<=x)|(?<=ss)|(?<=sh)|(?<=ch))es$|(?<![su])s$")

CATALOG, DERIVED, NONE = "of the catalog", f"derived: the last word of a title in which {TITLES_MIN} titles end", "none"


class Categories(NamedTuple):
    """Of the items of a history: names (C,), and the column of each item's (N,), -1 where it has none."""

    names: list[str]
    of: Ints

    def of_every_item(self) -> Ints:
        """The same (N,), with a column of its own from C on for each item without one."""
        return np.where(self.of >= 0, self.of, len(self.names) + np.arange(len(self.of)))

    def of_past(self, past: Past) -> Past:
        """Interactions with categories in place of items; those with items that have none are left out."""
        columns = self.of[past.items]
        kept = columns >= 0
        return Past(past.users[kept], columns[kept], past.ts_ms[kept], past.kinds[kept], len(self.names))


def categories(history: History) -> Categories:
    """As its items say."""
    names = sorted({item.category for item in history.items.values()} - {""})
    column = {name: at for at, name in enumerate(names)}
    of = [column.get(item.category, -1) for item in history.items.values()]
    return Categories(names, np.array(of, dtype=np.int64))


def with_categories(history: History) -> tuple[History, str]:
    """The history, and whence its items have categories: CATALOG where any has one, else DERIVED, or NONE where titles give
    none either."""
    if any(item.category for item in history.items.values()):
        return history, CATALOG
    found = derived({item_id: item.title for item_id, item in history.items.items()})
    if not any(found.values()):
        return history, NONE
    items = {item_id: msgspec.structs.replace(item, category=found[item_id]) for item_id, item in history.items.items()}
    return History(history.name, history.events, items), DERIVED


def derived(titles: Mapping[str, str]) -> dict[str, str]:
    """Item → the last word of its title in which at least TITLES_MIN titles end, plurals as singulars, LOOKS left out; empty
    where there is none. A guess for English titles, not a catalog: a cup with a rose may become a rose.

    >>> titles = {f"{n}": f"Mug no. {n}" for n in range(9)} | {"a": "Two red MUGS, large", "b": "Mug for tea", "c": "Tea"}
    >>> found = derived(titles)
    >>> found["0"], found["a"], found["b"], found["c"]
    ('mug', 'mug', 'mug', '')
    """
    things = {}
    for item_id, title in titles.items():
        words = (PLURAL.sub("", word) for word in re.findall(r"[a-z]{3,}", title.lower()))
        things[item_id] = [word for word in words if word not in LOOKS]
    ends = Counter(some[-1] for some in things.values() if some)
    return {item: next((word for word in reversed(some) if ends[word] >= TITLES_MIN), "") for item, some in things.items()}
