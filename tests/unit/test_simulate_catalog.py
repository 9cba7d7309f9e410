"""The simulated catalog: complete, distinct, and readable: its text gives department and style away."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest

from producers.simulate.catalog import Catalog, build
from schemas.catalog import Item


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return build(7, 2_400, "demo", datetime(2026, 1, 1, tzinfo=UTC))


def test_items_are_complete_and_distinct(catalog: Catalog) -> None:
    items = [product.item for product in catalog.products]
    assert len(items) == 2_400 and len({item.title for item in items}) == 2_400
    assert len({item.category.split(" > ")[0] for item in items}) == 15
    for item in items:
        assert msgspec.json.decode(msgspec.json.encode(item), type=Item) == item
        assert item.brand and item.price and item.price > 0 and item.updated_at
        assert len(item.description) > 60 and item.description[0].isupper() and item.description.endswith(".")
        assert not re.search(r"[*~{}]|  |\ban? (a|an) ", item.text())
    assert 0.01 < np.mean([not item.in_stock for item in items]) < 0.06


def test_equal_arguments_equal_catalogs(catalog: Catalog) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert build(7, 2_400, "demo", at) == catalog and build(8, 2_400, "demo", at) != catalog


def test_brands_have_a_department_and_lean_to_a_style(catalog: Catalog) -> None:
    departments: dict[str, set[int]] = {}
    styles: dict[str, Counter[int]] = {}
    for product in catalog.products:
        departments.setdefault(product.item.brand, set()).add(product.department)
        styles.setdefault(product.item.brand, Counter())[product.style] += 1
    assert all(len(found) == 1 for found in departments.values())
    assert np.mean([found.most_common(1)[0][1] / found.total() for found in styles.values()]) > 0.5


@pytest.mark.parametrize("attribute", ["department", "style"])
def test_words_alone_recover_department_and_style(catalog: Catalog, attribute: str) -> None:
    """Ridge regression on the words of title and description, fitted on one half and asked about the other."""
    texts = [set(re.findall(r"[a-z]+", f"{p.item.title} {p.item.description}".lower())) for p in catalog.products]
    labels = np.array([getattr(product, attribute) for product in catalog.products])
    words = {word: n for n, word in enumerate(sorted(set().union(*texts)))}
    features = np.zeros((len(texts), len(words)))  # (I, W)
    for row, text in enumerate(texts):
        features[row, [words[word] for word in text]] = 1
    learn, ask = slice(0, None, 2), slice(1, None, 2)
    x, y = features[learn], np.eye(labels.max() + 1)[labels[learn]]  # (I/2, W), (I/2, K)
    weights = np.linalg.solve(x.T @ x + np.eye(len(words)), x.T @ y)  # (W, K)
    found = (features[ask] @ weights).argmax(axis=1)  # (I/2,)
    assert (found == labels[ask]).mean() > 0.95
