"""Counting of items: sums that do not depend on order, duplicates, restarts or the clock's direction."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.item_counts import NEGLIGIBLE, Counts, ItemCounter, decay
from bandit.joining import JoinEvent, Position
from bandit.rewards import EventReward, RewardPolicy

HALF_LIFE_MS = 10_000.0
POLICY = RewardPolicy(
    events={"click": EventReward(base=1.0), "skip": EventReward(base=-0.5)}, negative_window_s=1.0, window_s=20.0
)
PROPERTY = settings(deadline=None, derandomize=True, max_examples=200)


def _counter() -> ItemCounter:
    return ItemCounter(half_life_ms=HALF_LIFE_MS, window_ms=20_000)


def _decide(counter: ItemCounter, position: Position, event_id: str, items: list[str], at_ms: int) -> None:
    counter.add_decision(
        position, event_id=event_id, shown_at_ms=at_ms, item_ids=items, worth=POLICY.reward, window_ms=20_000
    )


def _event(event_id: str | None, slot: int | None = 0, event_type: str = "click", client_id: str = "c") -> JoinEvent:
    return JoinEvent(
        client_id=client_id,
        event_type=event_type,
        event_id=event_id,
        user_key="",
        item_id=None,
        slot=slot,
        value=1.0,
    )


def _at(counter: ItemCounter, item_id: str, now_ms: int) -> tuple[float, float, float]:
    counts = counter._counts.get(item_id, Counts())
    kept = decay(now_ms - counts.at_ms, HALF_LIFE_MS)
    return counts.n_impressions * kept, counts.n_clicks * kept, counts.n_rewards * kept


def test_a_count_halves_in_a_half_life() -> None:
    counter = _counter()
    _decide(counter, (1_000, 0, 0), "e", ["a", "b"], 1_000)
    counter.add_event((2_000, 0, 0), _event("e", slot=1))
    assert _at(counter, "a", 11_000) == (0.5, 0.0, 0.0)
    assert _at(counter, "b", 21_000) == (0.25, 0.25, 0.25)


def test_a_slot_is_clicked_once_and_earns_all_that_it_earns() -> None:
    counter = _counter()
    _decide(counter, (0, 0, 0), "e", ["a"], 0)
    for n, event_type in enumerate(["click", "click", "skip"]):
        counter.add_event((n, 0, n), _event("e", event_type=event_type, client_id=f"c{n}"))
    assert _at(counter, "a", 0) == (1.0, 1.0, 1.5)


@pytest.mark.parametrize(
    "event",
    [
        _event("e", slot=7),
        _event("e", slot=None),
        _event("e", event_type="view"),
        _event("other"),
        _event(None),
    ],
)
def test_an_event_that_fits_nothing_counts_nothing(event: JoinEvent) -> None:
    counter = _counter()
    _decide(counter, (0, 0, 0), "e", ["a", "b"], 0)
    counter.add_event((1, 0, 0), event)
    assert _at(counter, "a", 0) == (1.0, 0.0, 0.0)


def test_an_event_counts_inside_the_window_only_on_either_side_of_its_decision() -> None:
    for gap_ms, expected in ((19_999, 1.0), (20_000, 0.0)):
        after, before = _counter(), _counter()
        _decide(after, (100_000, 0, 0), "e", ["a"], 100_000)
        after.add_event((100_000 + gap_ms, 0, 0), _event("e"))
        before.add_event((100_000 - gap_ms, 0, 0), _event("e"))
        _decide(before, (100_000, 0, 0), "e", ["a"], 100_000)
        assert _at(after, "a", 100_000)[1] == _at(before, "a", 100_000)[1] == expected


def test_what_nobody_can_join_any_more_is_forgotten() -> None:
    counter = _counter()
    counter.add_event((0, 0, 0), _event("never"))
    _decide(counter, (1, 0, 0), "e", ["a"], 1)
    assert counter.oldest_open() == (0, 0, 0)
    counter.advance(20_000)
    assert counter.oldest_open() == (1, 0, 0)
    counter.advance(20_001)
    assert counter.oldest_open() is None
    assert not counter._early
    assert not counter._shown


def test_items_that_were_not_shown_for_ages_are_forgotten() -> None:
    counter = _counter()
    _decide(counter, (0, 0, 0), "e", ["a"], 0)
    last_ms = int(HALF_LIFE_MS * 29)
    assert [item_id for item_id, _ in counter.items(last_ms)] == ["a"]
    assert decay(HALF_LIFE_MS * 31, HALF_LIFE_MS) < NEGLIGIBLE
    assert list(counter.items(int(HALF_LIFE_MS * 31))) == []


def test_only_what_changed_is_taken() -> None:
    counter = _counter()
    _decide(counter, (0, 0, 0), "e", ["a", "b"], 0)
    assert [item_id for item_id, _ in counter.take_changed()] == ["a", "b"]
    counter.add_event((1, 0, 0), _event("e", slot=1))
    counter.add_event((2, 0, 0), _event("e", slot=1))
    assert [item_id for item_id, _ in counter.take_changed()] == ["b"]
    assert counter.take_changed() == []


STORY = st.lists(
    st.tuples(
        st.integers(0, 15_000),
        st.sampled_from(["decide", "event", "event"]),
        st.integers(0, 5),
        st.integers(0, 2),
        st.sampled_from(["click", "skip"]),
        st.integers(-3_000, 3_000),
    ),
    max_size=30,
)


def _entries(story: list[Any]) -> list[tuple[Position, Any]]:
    entries: list[tuple[Position, Any]] = []
    at_ms, decided = 10_000, set()
    for step_ms, kind, n, m, event_type, skew_ms in story:
        at_ms += step_ms
        position = (at_ms, 0, len(entries))
        if kind == "decide" and n not in decided:
            decided.add(n)
            entries.append((position, ("decide", f"e{n}", [f"i{n % 3}", f"i{m + 3}"], at_ms + skew_ms)))
        elif kind == "event":
            entries.append((position, _event(f"e{n}", slot=m, event_type=event_type, client_id=f"c{skew_ms % 2}")))
    return entries


def _feed(counter: ItemCounter, entries: list[tuple[Position, Any]]) -> None:
    for position, entry in entries:
        if isinstance(entry, JoinEvent):
            counter.add_event(position, entry)
        else:
            _decide(counter, position, *entry[1:])


@PROPERTY
@given(STORY)
def test_counts_are_the_plain_sums_over_all_facts(story: list[Any]) -> None:
    entries = _entries(story)
    counter = _counter()
    _feed(counter, entries)
    expected: dict[str, list[float]] = {}
    decisions = {entry[1]: (position, entry) for position, entry in entries if not isinstance(entry, JoinEvent)}
    now_ms = 100_000
    for _, (_, _, items, at_ms) in decisions.values():
        for item_id in items:
            expected.setdefault(item_id, [0.0, 0.0, 0.0])[0] += decay(now_ms - at_ms, HALF_LIFE_MS)
    seen, clicked = set(), set()
    for position, event in entries:
        if not isinstance(event, JoinEvent) or event.event_id not in decisions:
            continue
        decided, (_, event_id, items, at_ms) = decisions[event.event_id]
        key = (event_id, event.slot, event.event_type, event.client_id)
        if event.slot >= len(items) or abs(position[0] - decided[0]) >= 20_000 or key in seen:
            continue
        seen.add(key)
        reward = POLICY.reward(event.event_type, event.value)
        sums = expected[items[event.slot]]
        weight = decay(now_ms - at_ms, HALF_LIFE_MS)
        sums[2] += reward * weight
        if reward > 0 and (event_id, event.slot) not in clicked:
            clicked.add((event_id, event.slot))
            sums[1] += weight
    for item_id, sums in expected.items():
        assert _at(counter, item_id, now_ms) == pytest.approx(sums, rel=1e-9, abs=1e-9)


@PROPERTY
@given(STORY, st.integers(0, 30), st.randoms(use_true_random=False))
def test_a_restart_from_counts_and_a_reread_of_what_is_open_changes_no_bit(
    story: list[Any], cut: int, rng: random.Random
) -> None:
    entries = _entries(story)
    cut = min(cut, len(entries))
    whole, first, second = _counter(), _counter(), _counter()
    _feed(whole, entries)
    _feed(first, entries[:cut])
    oldest = first.oldest_open()
    _feed(second, [e for e in entries[:cut] if oldest is not None and e[0] >= oldest])
    second.restore(
        {item_id: Counts(c.n_impressions, c.n_clicks, c.n_rewards, c.at_ms) for item_id, c in first._counts.items()}
    )
    _feed(second, entries[cut:])
    assert second._counts == whole._counts
