"""Sessions and showings, derived from recent interactions and impressions."""

from __future__ import annotations

from service.messages import Impression, Interaction
from service.sessions import Session, Showings, current_session, distinct_interactions, showings

GAP_MS = 1_000


def _did(at_ms: int, event_type: str = "click", *, client_id: str = "", item_id: str = "i") -> Interaction:
    return Interaction(
        item_id=item_id, event_type=event_type, reward=None, at_unix_ms=at_ms, client_id=client_id or f"c{at_ms}"
    )


def _saw(at_ms: int, item_id: str = "i", event_id: str | None = None) -> Impression:
    return Impression(item_id=item_id, event_id=event_id or f"e{at_ms}", shown_at_unix_ms=at_ms)


def _session(recent: list[Interaction], shown: list[Impression], now_ms: int) -> Session:
    return current_session(recent, shown, now_ms=now_ms, gap_ms=GAP_MS)


def test_a_user_who_did_nothing_has_no_session() -> None:
    assert _session([], [], 5_000) == Session(None, 0, 0, None)


def test_a_session_goes_back_to_the_last_silence() -> None:
    recent = [_did(1_000), _did(5_000, "view"), _did(6_500, "like")]
    shown = [_saw(4_500, "a", "e1"), _saw(4_500, "b", "e1"), _saw(5_800)]
    assert _session(recent, shown, 7_000) == Session(4_500, 2, 2, "like")


def test_a_session_ends_after_the_gap_and_not_before() -> None:
    assert _session([_did(4_000)], [], 5_000) == Session(4_000, 1, 0, "click")
    assert _session([_did(4_000)], [], 5_001) == Session(None, 0, 0, None)


def test_a_clock_that_is_ahead_is_no_silence() -> None:
    assert _session([_did(9_000)], [_saw(4_900)], 5_000) == Session(4_900, 1, 1, "click")


def test_an_event_that_was_accepted_again_counts_where_it_stood_first() -> None:
    again = [_did(1, client_id="c"), _did(2, "like", client_id="c"), _did(3, client_id="c"), _did(4, client_id="d")]
    assert distinct_interactions(again) == [again[0], again[1], again[3]]


def test_showings_count_within_the_window() -> None:
    shown = [_saw(999, "a"), _saw(1_000, "a"), _saw(1_500, "a"), _saw(1_200, "b")]
    assert showings(shown, now_ms=2_000, window_ms=1_000) == Showings(
        n_seen={"a": 2, "b": 1}, last_shown_at_ms={"a": 1_500, "b": 1_200}
    )
