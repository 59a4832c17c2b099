"""Content features and their hashing."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval import content
from retrieval.content import content_matrix, content_vector, feature_weights
from retrieval.items import Item

VALUES = st.one_of(
    st.text(max_size=8), st.floats(), st.booleans(), st.lists(st.text(min_size=1, max_size=5), max_size=4)
)
ITEMS = st.builds(
    lambda attributes, creator: Item(id="x", attributes=attributes, creator=creator),
    st.dictionaries(st.text(min_size=1, max_size=6), VALUES, max_size=5),
    st.none() | st.text(max_size=5),
)


@given(st.lists(ITEMS, max_size=5), st.integers(1, 300))
def test_rows_have_norm_one_or_no_content(items: list[Item], n_buckets: int) -> None:
    matrix = content_matrix(items, n_buckets)
    assert matrix.shape == (len(items), n_buckets)
    assert matrix.dtype == np.float32
    norms = np.linalg.norm(matrix.toarray(), axis=1)
    for item, norm in zip(items, norms, strict=True):
        assert norm == pytest.approx(1.0 if feature_weights(item) else 0.0, abs=1e-5)


@given(ITEMS)
def test_the_vector_of_an_item_is_its_row_of_any_matrix(item: Item) -> None:
    other = Item(id="y", attributes={"genres": ["Drama"]})
    np.testing.assert_array_equal(content_vector(item, 64), content_matrix([other, item], 64).toarray()[1])


def test_the_title_and_the_id_are_no_features() -> None:
    attributes = {"genres": ["Drama"]}
    one, two = Item(id="a", title="One", attributes=attributes), Item(id="b", title="Two", attributes=attributes)
    np.testing.assert_array_equal(content_vector(one), content_vector(two))


def test_year_is_a_decade_and_creator_a_feature() -> None:
    item = Item(id="a", attributes={"year": 1999.0, "made_year": 2001.0, "dubbed": True}, creator="Agnes Varda")
    assert set(feature_weights(item)) == {"decade=1990", "made_decade=2000", "dubbed=true", "creator=Agnes Varda"}


def test_near_numbers_are_more_alike_than_far_ones() -> None:
    def runtime(minutes: float) -> np.ndarray:
        return content_vector(Item(id="a", attributes={"runtime": minutes}))

    assert runtime(90.0) @ runtime(92.0) > runtime(90.0) @ runtime(110.0) > runtime(90.0) @ runtime(240.0)
    assert runtime(90.0) @ runtime(-90.0) == 0.0


def test_nan_infinity_and_empty_text_give_no_feature() -> None:
    item = Item(id="a", attributes={"x": float("nan"), "y": float("inf"), "z": "", "w": ["", ""]}, creator="")
    assert feature_weights(item) == {}


def test_no_buckets_are_refused() -> None:
    with pytest.raises(ValueError, match="n_buckets must be at least 1, got 0"):
        content_matrix([], 0)


def test_hashing_never_changes() -> None:
    # Stored content maps index these columns.
    row = content_matrix([Item(id="a", attributes={"genres": ["Drama"], "language": "French"})], 2048)
    assert sorted(row.indices.tolist()) == [1222, 1456]


def test_documented_examples_are_true() -> None:
    assert doctest.testmod(content).failed == 0
