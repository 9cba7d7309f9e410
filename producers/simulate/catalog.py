"""The simulated catalog: products composed of department, style, brand, material, colour and use, then told in English.

Deterministic by seed. Each department has its brands, and each brand leans to one style, as real ones do.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import numpy as np

from producers.simulate import vocabulary as words
from schemas.catalog import Item

BRANDS_PER_DEPARTMENT = 7
BRAND_STYLE_SHARE = 0.6  # of a brand's products have its own style
POPULARITY_SIGMA = 1.2  # log-normal: the top 10% of products draw about half of the untargeted views
OUT_OF_STOCK_SHARE = 0.03
DETAIL_SHARE = 0.4  # of descriptions end with a sentence that says nothing, as real ones do
TITLE_TRIES_MAX = 20  # redraws for an unused title before an edition number is added


class Product(NamedTuple):
    """An item with what the shop's assortment manager would know; indexes point into vocabulary and brand list."""

    item: Item
    department: int
    category: int  # index within the catalog's categories, over all departments
    style: int
    brand: int
    material: str
    use: str
    noun: str
    popularity: float  # mean 1 over the catalog


class Catalog(NamedTuple):
    products: list[Product]
    brands: list[str]
    brand_departments: list[int]
    by_category: list[list[int]]  # product indexes of each category
    number: dict[str, int]  # item_id → product index


class _Pick:
    """Draws of one catalog."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 0x17E5])

    def one(self, options: tuple[str, ...]) -> str:
        return options[int(self.rng.integers(len(options)))]


def _brands(pick: _Pick) -> tuple[list[str], list[int], list[int]]:
    """Names, home department and own style of each brand."""
    combinations = [f"{first} {last}" for first in words.BRAND_FIRST for last in words.BRAND_LAST]
    count = BRANDS_PER_DEPARTMENT * len(words.DEPARTMENTS)
    names = [combinations[i] for i in pick.rng.permutation(len(combinations))[:count]]
    departments = [i // BRANDS_PER_DEPARTMENT for i in range(count)]
    styles = [int(style) for style in pick.rng.integers(len(words.STYLES), size=count)]
    return names, departments, styles


def article(word: str) -> str:
    """The word with its indefinite article.

    >>> article("oak table"), article("mug"), article("utilitarian mug")
    ('an oak table', 'a mug', 'a utilitarian mug')
    """
    vowel = word[0].lower() in "aeiou" and not word.lower().startswith(("uti", "uni", "eu"))
    return f"an {word}" if vowel else f"a {word}"


def _describe(pick: _Pick, noun: str, mark: str, style: words.Style, shade: str, material: str, use: str) -> str:
    """Three or four sentences; every one but the last names an attribute. `mark` is "*", "~" or empty."""
    plural = mark == "*"
    these, are, it = ("these", "are", "them") if plural else ("this", "is", "it")
    thing = f"{pick.one(style.words)} {noun}"
    openings = (
        f"{these.capitalize()} {thing} in {shade} {are} made with {material}.",
        f"{thing if mark else article(thing)} with {material}, in {shade}.",
        f"{material} and {shade}: that makes {these} {thing}.",
    )
    opening = pick.one(openings)
    purpose = (f"Perfect for {use}.", f"We recommend {it} for {use}.", f"Made for {use}.")
    sentences = [opening[0].upper() + opening[1:], pick.one(style.sentences), pick.one(purpose)]
    if pick.rng.random() < DETAIL_SHARE:
        sentences.append(pick.one(words.DETAILS))
    return " ".join(sentences)


def _title(pick: _Pick, noun: str, style: words.Style, shade: str, material: str, taken: set[str]) -> str:
    for _ in range(TITLE_TRIES_MAX):
        word = pick.one(style.words)
        title = pick.one((f"{word} {material} {noun}", f"{word} {noun} in {shade}", f"{word} {noun}, {material}, {shade}"))
        title = title[0].upper() + title[1:]
        if title not in taken:
            break
    else:
        title = f"{title}, edition {len(taken) + 1}"
    taken.add(title)
    return title


def build(seed: int, items: int, tenant: str, updated_at: datetime) -> Catalog:
    """`items` products of a shop; equal arguments give equal catalogs.

    >>> from datetime import UTC
    >>> build(7, 50, "demo", datetime(2026, 1, 1, tzinfo=UTC)).products[0].item.item_id
    'p00000'
    """
    pick = _Pick(seed)
    brands, brand_departments, brand_styles = _brands(pick)
    categories = [(d, c) for d, department in enumerate(words.DEPARTMENTS) for c in range(len(department.categories))]
    category_number = {pair: n for n, pair in enumerate(categories)}
    sizes = np.array([department.size for department in words.DEPARTMENTS])
    departments = pick.rng.choice(len(sizes), size=items, p=sizes / sizes.sum())  # (items,)
    popularity = np.exp(pick.rng.normal(0.0, POPULARITY_SIGMA, size=items))  # (items,)
    popularity /= popularity.mean()
    taken: set[str] = set()
    products: list[Product] = []
    for i in range(items):
        d = int(departments[i])
        department = words.DEPARTMENTS[d]
        brand = d * BRANDS_PER_DEPARTMENT + int(pick.rng.integers(BRANDS_PER_DEPARTMENT))
        own = pick.rng.random() < BRAND_STYLE_SHARE
        s = brand_styles[brand] if own else int(pick.rng.integers(len(words.STYLES)))
        c = int(pick.rng.integers(len(department.categories)))
        category = department.categories[c]
        noun = pick.one(category.nouns)
        mark = noun[-1] if noun[-1] in "*~" else ""
        noun = noun.rstrip("*~")
        style = words.STYLES[s]
        material, use = pick.one(category.materials or department.materials), pick.one(category.uses or department.uses)
        colour = pick.one(style.colours)
        shade = f"{article(colour)} pack" if department.consumable else colour
        low, high = np.log(category.price)
        price = round(float(np.exp(low + (high - low) * pick.rng.beta(2, 3))), 2)
        item = Item(
            item_id=f"p{i:05d}", tenant=tenant, title=_title(pick, noun, style, shade, material, taken),
            brand=brands[brand], category=f"{department.name} > {category.name}",
            description=_describe(pick, noun, mark, style, shade, material, use),
            price=price, url=f"https://shop.example/p/p{i:05d}",
            in_stock=bool(pick.rng.random() >= OUT_OF_STOCK_SHARE), updated_at=updated_at,
        )
        products.append(Product(item, d, category_number[d, c], s, brand, material, use, noun, float(popularity[i])))
    by_category: list[list[int]] = [[] for _ in categories]
    for i, product in enumerate(products):
        by_category[product.category].append(i)
    return Catalog(products, brands, brand_departments, by_category, {p.item.item_id: i for i, p in enumerate(products)})
