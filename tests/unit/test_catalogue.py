"""The catalogue: rows, columns, regions and the order of ids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from retrieval import catalogue as module
from retrieval.catalogue import FOREVER_MS, NO_CODE, UNKNOWN_AGE, Catalogue
from retrieval.items import Item

IDS = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=6)
COUNTRIES = ["DE", "FR", "US", "JP"]


def _in_rank_order(catalogue: Catalogue) -> list[str]:
    rows = np.array([row for row, item_id in enumerate(catalogue.item_ids) if item_id is not None], dtype=np.int32)
    order = np.argsort(catalogue.rank_of(rows), kind="stable")
    assert len(np.unique(catalogue.rank_of(rows))) == len(rows), "ranks must be distinct"
    return [catalogue.item_ids[row] or "" for row in rows[order]]


def _by_bytes(item_ids: list[str]) -> list[str]:
    return sorted(item_ids, key=lambda item_id: item_id.encode())


class CatalogueMachine(RuleBasedStateMachine):
    """Any sequence of upserts and deletes against a plain dictionary."""

    @initialize(step_bits=st.sampled_from([2, 3, 8, 40]))
    def start(self, step_bits: int) -> None:
        # Small steps exhaust the gaps between ranks within a few inserts.
        self._saved = (module._RANK_STEP, module._RANK_NUDGE, module._MAX_RANK)
        module._RANK_STEP, module._RANK_NUDGE = 1 << step_bits, max(1, 1 << (step_bits - 2))
        module._MAX_RANK = 1 << max(step_bits + 2, 10)
        self.catalogue = Catalogue(capacity=2)
        self.model: dict[str, Item] = {}
        self.rows: dict[str, int] = {}

    def teardown(self) -> None:
        if hasattr(self, "_saved"):
            module._RANK_STEP, module._RANK_NUDGE, module._MAX_RANK = self._saved

    @rule(
        item_id=IDS,
        min_age=st.none() | st.integers(0, 18),
        creator=st.none() | st.sampled_from(["a", "b", "c"]),
        regions=st.none() | st.lists(st.sampled_from(COUNTRIES), unique=True),
        listed=st.booleans(),
        available=st.none() | st.integers(-(10**12), 10**13),
        expires=st.none() | st.integers(0, 10**13),
    )
    def upsert(self, item_id, min_age, creator, regions, listed, available, expires) -> None:
        item = Item(
            id=item_id,
            min_age=min_age,
            creator=creator,
            regions=regions,
            listed=listed,
            available_at_unix_ms=available,
            expires_at_unix_ms=expires,
        )
        n_rows = len(self.catalogue.item_ids)
        has_free = n_rows > len(self.model)
        row = self.catalogue.upsert(item)
        if item_id in self.model:
            assert row == self.rows[item_id], "a row is stable until its item is deleted"
        elif has_free:
            assert len(self.catalogue.item_ids) == n_rows, "a freed row is used before a new one"
        self.model[item_id], self.rows[item_id] = item, row

    @precondition(lambda self: self.model)
    @rule(choice=st.integers(0, 1_000))
    def delete(self, choice: int) -> None:
        item_id = sorted(self.model)[choice % len(self.model)]
        assert self.catalogue.delete(item_id) == self.rows.pop(item_id)
        del self.model[item_id]

    @rule(item_id=IDS)
    def delete_unknown(self, item_id: str) -> None:
        if item_id not in self.model:
            assert self.catalogue.delete(item_id) is None

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "catalogue"):
            return
        catalogue = self.catalogue
        assert len(catalogue) == len(self.model)
        assert _in_rank_order(catalogue) == _by_bytes(list(self.model))
        free = set(range(len(catalogue.item_ids))) - set(self.rows.values())
        assert all(catalogue.item_ids[row] is None and not catalogue.listed[row] for row in free)
        for item_id, item in self.model.items():
            row = self.rows[item_id]
            assert (catalogue.row(item_id), catalogue.item(item_id), catalogue.item_ids[row]) == (row, item, item_id)
            assert catalogue.listed[row] == item.listed
            assert catalogue.min_age[row] == (UNKNOWN_AGE if item.min_age is None else item.min_age)
            assert catalogue.available_at_unix_ms[row] == (item.available_at_unix_ms or 0)
            expires = FOREVER_MS if item.expires_at_unix_ms is None else item.expires_at_unix_ms
            assert catalogue.expires_at_unix_ms[row] == expires
            for country in (*COUNTRIES, "ZZ", None):
                allowed = item.regions is None or country in item.regions
                assert catalogue.allowed_in(country)[row] == allowed, (item_id, country)
        codes = {item_id: catalogue.creator[row] for item_id, row in self.rows.items()}
        for one, a in self.model.items():
            assert (codes[one] == NO_CODE) == (a.creator is None)
            for other, b in self.model.items():
                if a.creator and b.creator:
                    assert (codes[one] == codes[other]) == (a.creator == b.creator)


TestCatalogue = CatalogueMachine.TestCase
TestCatalogue.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@given(st.permutations(range(64)))
def test_ranks_follow_byte_order_whatever_the_order_of_arrival(arrival: list[int]) -> None:
    catalogue = Catalogue(capacity=1)
    for n in arrival:
        catalogue.upsert(Item(id=f"i{n}"))
    assert _in_rank_order(catalogue) == _by_bytes([f"i{n}" for n in range(64)])


@pytest.mark.parametrize("direction", [1, -1])
def test_a_gap_that_is_used_up_makes_room_for_everyone(direction: int) -> None:
    catalogue = Catalogue()
    for item_id in ("a", "z"):
        catalogue.upsert(Item(id=item_id))
    ids = [f"m{n:04}" for n in range(300)][::direction]
    before = catalogue.rank.copy()
    for item_id in ids:
        # Halving 40 bits of room 300 times: the gap runs out again and again when ids come in descending order.
        catalogue.upsert(Item(id=item_id))
    assert _in_rank_order(catalogue) == ["a", *sorted(ids), "z"]
    if direction == -1:
        assert not np.array_equal(catalogue.rank[:2], before[:2]), (
            "the ranks were never spread, the test proves nothing"
        )


def test_ranks_never_leave_int64(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ten million items put in order would count past 2^63 at the plain step; here a hundred do.
    monkeypatch.setattr(module, "_RANK_STEP", 1 << 57)
    for ids in ([f"{n:03}" for n in range(100)], [f"{n:03}" for n in range(99, -1, -1)]):
        catalogue = Catalogue()
        for item_id in ids:
            catalogue.upsert(Item(id=item_id))
        assert _in_rank_order(catalogue) == sorted(ids)


def test_byte_order_is_not_utf16_order() -> None:
    catalogue = Catalogue()
    for item_id in ("\U0001f3ac", "\uff5e", "z", "é"):
        catalogue.upsert(Item(id=item_id))
    assert _in_rank_order(catalogue) == ["z", "é", "\uff5e", "\U0001f3ac"]


def test_an_unknown_country_sees_what_is_shown_everywhere() -> None:
    catalogue = Catalogue()
    rows = [catalogue.upsert(Item(id=i, regions=r)) for i, r in (("w", None), ("de", ["DE"]), ("no", []), ("w2", None))]
    for country, expected in (
        ("DE", [True, True, False, True]),
        ("FR", [True, False, False, True]),
        (None, [True, False, False, True]),
    ):
        assert catalogue.allowed_in(country)[rows].tolist() == expected


def test_a_country_named_later_does_not_open_regional_items() -> None:
    catalogue = Catalogue()
    german = catalogue.upsert(Item(id="de", regions=["DE"]))
    world = catalogue.upsert(Item(id="w"))
    catalogue.upsert(Item(id="fr", regions=["FR"]))
    assert catalogue.allowed_in("FR")[[german, world]].tolist() == [False, True]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_age", 32_768),
        ("min_age", -1),
        ("available_at_unix_ms", 2**63),
        ("available_at_unix_ms", -(2**63) - 1),
        ("expires_at_unix_ms", 2**70),
    ],
)
def test_a_number_that_fits_no_column_changes_nothing(field: str, value: int) -> None:
    catalogue = Catalogue()
    catalogue.upsert(Item(id="b", min_age=12))
    for item_id in ("a", "b"):
        with pytest.raises(ValueError, match=field):
            catalogue.upsert(Item(id=item_id, **{field: value}))
    assert len(catalogue) == 1
    assert catalogue.item("b") == Item(id="b", min_age=12)
    assert catalogue.row("a") is None
    assert catalogue.upsert(Item(id="a")) == 1
