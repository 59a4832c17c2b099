"""Eligibility against a plain reading of the rules, one item at a time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrieval.catalogue import Catalogue
from retrieval.filters import Viewer, eligible_mask
from retrieval.items import Item

NOW_MS = 1_000_000
COUNTRIES = st.sampled_from(["DE", "FR", "US"])
ITEMS = st.lists(
    st.fixed_dictionaries(
        {
            "min_age": st.none() | st.integers(0, 21),
            "regions": st.none() | st.lists(COUNTRIES, max_size=2),
            "available_at_unix_ms": st.none() | st.integers(NOW_MS - 1, NOW_MS + 1),
            "expires_at_unix_ms": st.none() | st.integers(NOW_MS - 1, NOW_MS + 1),
            "listed": st.booleans(),
        }
    ),
    max_size=12,
)
ANYONE = Viewer(age=None, unknown_item_min_age=0, country=None, hidden_rows=())


def _may_see(item: Item, viewer: Viewer) -> bool:
    needed = viewer.unknown_item_min_age if item.min_age is None else item.min_age
    return (
        item.listed
        and (item.available_at_unix_ms is None or item.available_at_unix_ms <= NOW_MS)
        and (item.expires_at_unix_ms is None or item.expires_at_unix_ms > NOW_MS)
        and (item.regions is None or viewer.country in item.regions)
        and (viewer.age is None or viewer.age >= needed)
    )


def _rows(catalogue: Catalogue, *items: Item) -> np.ndarray:
    return np.array([catalogue.upsert(item) for item in items], dtype=np.int32)


@given(
    ITEMS,
    st.none() | st.integers(0, 21),
    st.integers(0, 21),
    st.none() | COUNTRIES | st.just("ZZ"),
    st.sets(st.integers(0, 11)),
)
def test_the_mask_is_what_a_plain_reading_says(
    fields: list[dict], age: int | None, unknown: int, country: str | None, hidden: set[int]
) -> None:
    catalogue = Catalogue(capacity=2)
    items = [Item(id=f"i{n}", **values) for n, values in enumerate(fields)]
    rows = _rows(catalogue, *items)
    viewer = Viewer(age=age, unknown_item_min_age=unknown, country=country, hidden_rows=hidden)
    mask = eligible_mask(catalogue, rows, viewer, now_ms=NOW_MS)
    assert mask.dtype == np.bool_
    expected = [_may_see(item, viewer) and row not in hidden for item, row in zip(items, rows.tolist(), strict=True)]
    assert mask.tolist() == expected


def test_a_deleted_row_is_not_eligible_until_it_is_used_again() -> None:
    catalogue = Catalogue()
    rows = _rows(catalogue, Item(id="a"), Item(id="b"))
    catalogue.delete("a")
    assert eligible_mask(catalogue, rows, ANYONE, now_ms=NOW_MS).tolist() == [False, True]
    catalogue.upsert(Item(id="c"))
    assert eligible_mask(catalogue, rows, ANYONE, now_ms=NOW_MS).tolist() == [True, True]


def test_a_used_row_keeps_nothing_of_the_item_before() -> None:
    catalogue = Catalogue()
    rows = _rows(catalogue, Item(id="a", min_age=18, regions=["DE"], available_at_unix_ms=2 * NOW_MS))
    catalogue.delete("a")
    assert catalogue.upsert(Item(id="b")) == rows[0]
    child = Viewer(age=6, unknown_item_min_age=0, country="FR", hidden_rows=())
    assert eligible_mask(catalogue, rows, child, now_ms=NOW_MS).tolist() == [True]


def test_no_rows_are_no_mask() -> None:
    assert eligible_mask(Catalogue(), np.zeros(0, dtype=np.int32), ANYONE, now_ms=NOW_MS).tolist() == []


def test_the_mask_is_a_snapshot_and_leaves_the_catalogue_alone() -> None:
    catalogue = Catalogue()
    rows = _rows(catalogue, Item(id="a"), Item(id="b", listed=False))
    viewer = Viewer(age=3, unknown_item_min_age=5, country=None, hidden_rows={0})
    assert eligible_mask(catalogue, rows, viewer, now_ms=NOW_MS).tolist() == [False, False]
    assert eligible_mask(catalogue, rows, ANYONE, now_ms=NOW_MS).tolist() == [True, False]
    assert catalogue.listed[rows].tolist() == [True, False]
