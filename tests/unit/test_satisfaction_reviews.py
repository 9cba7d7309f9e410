"""Reviews as they are read and split, and the n-grams of their texts."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.datasets.table import DatasetError
from stream.core.opinions.ngrams import CHARACTERS_MAX, NgramPolicy, batch, counted, normalised
from training.opinions import ngrams, reviews

HEADER = ",Clothing ID,Age,Title,Review Text,Rating,Recommended IND,Positive Feedback Count,Division Name\n"
SMALL = NgramPolicy(low=1, high=3, buckets=1 << 10)


def clothing(folder: Path, rows: str) -> Path:
    path = folder / "reviews.csv.gz"
    path.write_bytes(gzip.compress((HEADER + rows).encode()))
    return path


def test_title_and_text_are_one_and_a_review_without_either_is_left_out(tmp_path: Path) -> None:
    path = clothing(tmp_path, '0,7,33,,"Soft,\nand warm",4,1,0,x\n1,7,33,,,5,1,0,x\n2,8,50,Itchy!, sent back,2,0,0,x\n')
    found = reviews.read("womens-clothing", path)
    assert found.texts == ["Soft,\nand warm", "Itchy! sent back"]
    assert found.groups == ["7", "8"] and found.stars.tolist() == [4, 2] and found.recommended.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(("rows", "said"), [
    ("0,7,33,,Soft,6,1,0,x\n", "line 2: rating '6'"), ("0,7,33\n", "line 2: 3 fields, expected 9"),
])  # fmt: skip
def test_a_row_that_is_not_a_review_is_named(tmp_path: Path, rows: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        reviews.read("womens-clothing", clothing(tmp_path, rows))


def test_a_file_that_is_not_there_damaged_or_another_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="Cannot open"):
        reviews.read("chinese-reviews", tmp_path / "none.csv")
    with pytest.raises(DatasetError, match="has no column cat, label, review"):
        reviews.read("chinese-reviews", clothing(tmp_path, ""))
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(clothing(tmp_path, "0,7,33,,Soft,5,1,0,x\n" * 400).read_bytes()[:-30])
    with pytest.raises(DatasetError, match="cut off or damaged"):
        reviews.read("womens-clothing", cut)
    with pytest.raises(DatasetError, match="unknown reviews"):
        reviews.read("books", cut)


def test_a_repeated_text_is_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "shopping.csv"
    path.write_text("\ufeffcat,label,review\n书籍,1,很好\n书籍,1,很好\n水果,0,\ufeff不新鲜\n水果,0,\n", encoding="utf-8")
    found = reviews.read("chinese-reviews", path)
    assert found.texts == ["很好", "不新鲜"] and found.groups == ["books", "fruit"] and not found.stars.any()


def test_no_item_is_on_two_sides_and_a_left_out_category_is_nowhere_else() -> None:
    rng = np.random.default_rng(0)
    groups = [str(one) for one in rng.integers(0, 300, 3_000)]
    every = reviews.Reviews("en", [f"text {at}" for at in range(3_000)], np.ones(3_000), np.full(3_000, 5), groups)
    parts = reviews.by_item(every)
    assert sum(len(part) for part in parts) == 3_000 and all(len(part) for part in parts)
    items = [set(part.groups) for part in parts]
    assert not (items[0] & items[1] or items[0] & items[2] or items[1] & items[2])
    train, validation, test = reviews.left_out(every, "7")
    assert set(test.groups) == {"7"} and "7" not in {*train.groups, *validation.groups}
    assert len(train) + len(validation) + len(test) == 3_000 and not set(train.texts) & set(validation.texts)
    assert len(reviews.left_out(every, None)[2]) == 0


@given(st.lists(st.text(max_size=40), max_size=5))
def test_n_grams_of_a_text_do_not_depend_on_the_others(texts: list[str]) -> None:
    arrays = batch(texts, SMALL)
    assert arrays["ids"].shape == arrays["counts"].shape == (len(texts), arrays["ids"].shape[1])
    for row, text in enumerate(texts):
        ids, counts = counted(text, SMALL)
        np.testing.assert_array_equal(arrays["ids"][row, : len(ids)], ids)
        np.testing.assert_array_equal(arrays["counts"][row], np.pad(counts, (0, arrays["ids"].shape[1] - len(ids))))
        characters = len(normalised(text))
        assert counts.sum() == sum(max(0, characters - n + 1) for n in (1, 2, 3))
        assert np.all((ids >= 0) & (ids < SMALL.buckets)) and np.all(np.diff(ids) > 0)


def test_buckets_are_the_same_for_ever() -> None:
    """Models that are out there were trained with these numbers."""
    assert counted("茶a", NgramPolicy(low=1, high=2))[0].tolist() == [636532, 3563908, 3733992]


def test_a_text_of_any_length_is_bounded_and_policies_that_count_nothing_are_refused() -> None:
    assert counted("ab" * CHARACTERS_MAX, SMALL)[1].sum() == 3 * CHARACTERS_MAX - 3
    with pytest.raises(ValueError, match="cannot be counted"):
        NgramPolicy(low=3, high=2)


def test_weights_are_those_of_tf_idf() -> None:
    """As sklearn's, but for what it looks up and we hash: with enough buckets the features are the same."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = ["soft and warm", "soft, not warm", "not for me", "warm warm warm"]
    counts = ngrams.counts_of(texts, NgramPolicy(low=1, high=3))
    ours = ngrams.weighed(counts, ngrams.inverse_frequency(counts))
    theirs = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True, min_df=2).fit_transform(texts)
    np.testing.assert_allclose((ours @ ours.T).toarray(), (theirs @ theirs.T).toarray(), atol=1e-9)
