"""Impression fatigue: what a user was shown too often and never took up."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.config import ConfigError, Fatigue, load_config
from service.feature_records import tired_of
from service.messages import Impression, Interaction, UserProfile
from service.ports import UserState

NOW_MS = 1_000_000_000
SHOWN = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 200_000)), max_size=20)


def _state(shown: list[tuple[str, int]], *, liked: str = "", skipped: str = "", consumed: str = "") -> UserState:
    rewards = [*((item, 1.0) for item in liked), *((item, -1.0) for item in skipped)]
    return UserState(
        profile=UserProfile(),
        recent=[
            Interaction(item_id=item, event_type="e", reward=reward, at_unix_ms=NOW_MS, client_id=f"c{item}")
            for item, reward in rewards
        ],
        consumed=frozenset(consumed),
        impressions=tuple(
            Impression(item_id=item, event_id=f"e{n}", shown_at_unix_ms=NOW_MS - age_ms)
            for n, (item, age_ms) in enumerate(shown)
        ),
    )


@given(SHOWN, st.integers(1, 4), st.sets(st.sampled_from("abc")))
def test_items_shown_often_within_the_window_without_a_positive_event_are_tired_of(
    shown: list[tuple[str, int]], max_shown: int, consumed: set[str]
) -> None:
    fatigue = Fatigue(max_shown=max_shown, window_s=100.0)
    expected = {
        item
        for item in "abc"
        if sum(name == item and age_ms <= 100_000 for name, age_ms in shown) >= max_shown and item not in consumed
    }
    assert tired_of(_state(shown, consumed="".join(consumed)), fatigue, now_ms=NOW_MS) == expected


def test_a_click_lifts_it_and_a_skip_does_not() -> None:
    shown = [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert tired_of(_state(shown, liked="a", skipped="b"), Fatigue(max_shown=2), now_ms=NOW_MS) == {"b"}


def test_a_window_longer_than_the_store_remembers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hone.toml"
    path.write_text("[models.default]\n[surfaces.s]\nfatigue = { max_shown = 3, window_s = 90000.0 }\n")
    with pytest.raises(ConfigError, match=r"surface 's': fatigue.window_s is 90000 s"):
        load_config(path)
