"""The health watch counts what the journal says and judges it against what was usual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from bandit.health import HealthConfig, Judgement, judge
from bandit.health_intervals import Interval, IntervalCollector, Shown, ShownSlot
from bandit.health_statistics import Moments, drift, gini, normalised_entropy, variety
from bandit.joining import JoinEvent
from bandit.rewards import EventReward, RewardPolicy
from service.config import Config

POLICY = RewardPolicy(events={"click": EventReward(base=1.0)}, negative_window_s=10.0, window_s=600.0)
MINUTE = 60_000
GAP = 30 * MINUTE


def _collector(**changes: Any) -> IntervalCollector:
    settings: dict[str, Any] = {
        "interval_ms": MINUTE,
        "min_slots": 1,
        "session_gap_ms": GAP,
        "negative_ms": 10_000,
        **changes,
    }
    return IntervalCollector(**settings)


def _slot(item_id: str, branch: str = "greedy", *, is_placed: bool = False) -> ShownSlot:
    return ShownSlot(
        item_id=item_id,
        is_explored=branch != "greedy",
        is_uniform=branch == "uniform",
        is_placed=is_placed,
        genres=("drama", "crime"),
    )


def _shown(event_id: str, slots: Sequence[ShownSlot], *, user_key: str = "", device: str = "tv") -> Shown:
    return Shown(event_id=event_id, user_key=user_key, policy=POLICY, slots=slots, values={"device": device})


def _event(event_id: str, slot: int, event_type: str = "click") -> JoinEvent:
    return JoinEvent(
        client_id=f"{event_id}{slot}",
        event_type=event_type,
        event_id=event_id,
        user_key="",
        item_id=None,
        slot=slot,
        value=1.0,
    )


def test_outcomes_count_in_the_branch_and_the_interval_of_their_decision() -> None:
    collector = _collector()
    slots = [_slot("a"), _slot("b", "shortlist"), _slot("c", "uniform"), _slot("d", is_placed=True)]
    assert collector.add_decision((59_000, 0, 0), _shown("e", slots)) == []
    # The click comes in the next minute, and belongs to the first.
    assert collector.add_event((61_000, 0, 0), _event("e", 0), is_reward=True, is_feedback=False) == []
    # A second reward of a slot is late, as it is for the learner.
    again = JoinEvent(client_id="again", event_type="click", event_id="e", user_key="", item_id=None, slot=0, value=1.0)
    collector.add_event((62_000, 0, 0), again, is_reward=True, is_feedback=False)
    assert collector.advance((70_000, 0, 0)) == []
    (closed,) = collector.advance((70_001, 0, 0))
    assert (closed.from_ms, closed.until_ms, closed.n_decisions) == (0, MINUTE, 1)
    assert closed.greedy == Moments(1.0, 1.0, 1.0)
    assert closed.explore == Moments(2.0, 0.0, 0.0)
    assert closed.control == Moments(1.0, 0.0, 0.0)
    assert closed.items == {"a": 1}
    assert closed.genres == {"drama": 0.5, "crime": 0.5}
    (later,) = collector.open_intervals()
    assert (later.n_rewards, later.last_reward_ms) == (2, 62_000)


def test_a_quiet_interval_lasts_until_enough_outcomes_are_known() -> None:
    collector = _collector(min_slots=3)
    for number in range(2):
        assert collector.add_decision((number * MINUTE, 0, 0), _shown(f"e{number}", [_slot("a")])) == []
    collector.add_decision((9 * MINUTE, 0, 0), _shown("e9", [_slot("b")]))
    (closed,) = collector.advance((20 * MINUTE, 0, 0))
    assert (closed.from_ms, closed.until_ms, closed.greedy.n) == (0, 10 * MINUTE, 3.0)


def test_a_session_is_as_long_as_its_slates_and_unknown_when_it_may_have_begun_before() -> None:
    collector = _collector()
    collector.add_decision((0, 0, 0), _shown("cut", [_slot("a")], user_key="u"))
    start = 2 * GAP
    closed = []
    for number in range(3):
        shown = _shown(f"e{number}", [_slot("a")], user_key="u")
        closed += collector.add_decision((start + number * MINUTE, 0, 0), shown)
    closed += collector.advance((start + 2 * MINUTE + GAP, 0, 0))
    closed += collector.advance((start + 10 * GAP, 0, 0))
    sessions = [i.sessions for i in (*closed, *collector.open_intervals()) if i.sessions.n]
    assert sessions == [Moments(1.0, 3.0, 9.0)]


def test_features_are_counted_once_a_visit() -> None:
    collector = _collector()
    for number in range(3):
        collector.add_decision((number, 0, 0), _shown(f"e{number}", [_slot("a")], user_key="u"))
    collector.add_decision((4, 0, 0), _shown("anonymous", [_slot("a")], device="phone"))
    assert collector.open_intervals()[0].bins == {"device": {"tv": 1, "phone": 1}}


def test_a_collector_that_resumes_counts_what_was_not_closed_and_nothing_twice() -> None:
    entries = [(number * 7_000, _shown(f"e{number}", [_slot("a"), _slot("b", "uniform")])) for number in range(60)]
    whole = _collector(min_slots=30)
    expected = [closed for at_ms, shown in entries for closed in whole.add_decision((at_ms, 0, 0), shown)]
    for stop in range(0, 60, 7):
        first = _collector(min_slots=30)
        found = [closed for at_ms, shown in entries[:stop] for closed in first.add_decision((at_ms, 0, 0), shown)]
        unfinished = msgspec.msgpack.decode(msgspec.msgpack.encode(first.unfinished), type=Interval | None)
        second = _collector(min_slots=30, from_ms=first.resume_ms, unfinished=unfinished)
        for at_ms, shown in entries:
            if at_ms >= first.resume_ms:
                found += second.add_decision((at_ms, 0, 0), shown)
        assert found == expected


def _judge(intervals: Sequence[Interval], **changes: Any) -> Judgement:
    config = HealthConfig(genre="genre", drift=["device"], window=5, reference=40, silence_s=120.0)
    settings: dict[str, Any] = {
        "open_intervals": [],
        "now_ms": intervals[-1].until_ms,
        "n_genres": 4,
        "is_harmful": lambda event_type: event_type == "skip",
        **changes,
    }
    return judge(config, intervals, **settings)


def _intervals(n: int, **changes: Any) -> list[Interval]:
    """Return ordinary intervals, a little different from each other."""
    made = []
    for number in range(n):
        settings: dict[str, Any] = {
            "n_decisions": 100,
            "n_rewards": 10,
            "last_reward_ms": number * MINUTE + 1,
            "greedy": Moments(400.0, 40.0 + number % 3, 40.0 + number % 3),
            "sessions": Moments(50.0, 200.0 + number % 5, 1_000.0),
            "feedback": {"skip": 5 + number % 2, "like": 5},
            "genres": {"a": 200.0, "b": 200.0, "c": 100.0},
            "variety": Moments(1.0, 60.0 + number % 4, (60.0 + number % 4) ** 2),
            "bins": {"device": {"tv": 50, "phone": 50}},
            "weight_norms": {"m": 2.0},
            **changes,
        }
        made.append(Interval(from_ms=number * MINUTE, until_ms=(number + 1) * MINUTE, **settings))
    return made


def _with_end(**changes: Any) -> list[Interval]:
    return [*_intervals(40), *_intervals(45, **changes)[40:]]


def test_ordinary_intervals_are_found_healthy_and_measured() -> None:
    judgement = _judge(_intervals(45))
    assert judgement.findings == []
    assert judgement.values["reward_greedy"] == pytest.approx(0.1, abs=0.01)
    assert judgement.values["genre_entropy"] > 0.7


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"sessions": Moments(50.0, 75.0, 150.0)}, "session_length"),
        ({"feedback": {"skip": 60, "like": 5}}, "feedback:skip"),
        ({"genres": {"a": 500.0, "b": 1.0}}, "genre_collapse"),
        ({"genres": {"a": 320.0, "b": 150.0, "c": 30.0}}, "genre_collapse"),
        ({"variety": Moments(1.0, 5.0, 25.0)}, "item_variety"),
        ({"bins": {"device": {"tv": 95, "phone": 5}}}, "feature_drift:device"),
        ({"weight_norms": {"m": 9.0}}, "weight_norm:m"),
        ({"weight_norms": {"m": float("nan")}}, "weight_norm:m"),
        ({"n_rewards": 0, "last_reward_ms": 0}, "reward_silence"),
        ({"greedy": Moments(400.0, 4.0, 4.0)}, "reward_fall"),
    ],
)
def test_what_is_not_as_usual_is_found_and_nothing_else(changes: dict[str, Any], name: str) -> None:
    findings = _judge(_with_end(**changes)).findings
    assert [found.name for found in findings] == [name]
    assert findings[0].reason


@pytest.mark.parametrize(
    "changes",
    [
        {"sessions": Moments(50.0, 400.0, 4_000.0)},
        {"feedback": {"skip": 0, "like": 50}},
        {"greedy": Moments(400.0, 200.0, 200.0)},
        {"variety": Moments(1.0, 99.0, 99.0**2)},
        {"n_decisions": 1, "n_rewards": 0, "last_reward_ms": 0, "feedback": {}},
    ],
    ids=["longer sessions", "fewer skips, more likes", "more reward", "more variety", "silence among few decisions"],
)
def test_a_change_for_the_better_or_among_too_few_is_no_finding(changes: dict[str, Any]) -> None:
    assert _judge(_with_end(**changes)).findings == []


def test_statistics_of_diversity_and_drift_at_known_values() -> None:
    assert normalised_entropy([1.0] * 8, n_values=8) == pytest.approx(1.0)
    assert normalised_entropy([5.0, 5.0], n_values=4) == 0.5
    assert normalised_entropy([7.0], n_values=8) == normalised_entropy([], n_values=8) == 0.0
    assert (gini([1.0] * 4), gini([0.0, 0.0, 0.0, 4.0]), gini([])) == (0.0, 0.75, 0.0)
    # One item of two in a sample of one; both in nearly every large one.
    assert variety([500.0, 500.0], sample=1) == pytest.approx(1.0, abs=1e-3)
    assert variety([500.0, 500.0], sample=100) == pytest.approx(2.0)
    assert variety([50.0], sample=100) is None
    moved = drift({"a": 500.0, "b": 500.0}, {"a": 800.0, "b": 200.0})
    assert moved is not None
    # (.8 - .5) ln(.8 / .5) + (.2 - .5) ln(.2 / .5), but for half a count a bin.
    assert moved.psi == pytest.approx(0.4159, abs=0.002)
    assert drift({}, {"a": 1.0}) is None


@pytest.mark.parametrize(
    ("health", "words"),
    [
        ({"genre": "nothing"}, "which is no feature of item"),
        ({"drift": ["genre"]}, "which is no feature of context or user"),
        ({"drift": ["raw"]}, "neither categories nor buckets"),
        ({"window": 0}, "window must be at least 1"),
        ({"entropy_drop": 1.5}, "entropy_drop must be in"),
        ({"silence_s": 0}, "silence_s must be positive"),
        ({"nonsense": 1}, "unknown field"),
    ],
)
def test_a_watch_that_cannot_be_kept_is_refused_with_the_key(health: dict[str, Any], words: str) -> None:
    features = [
        {"namespace": "item", "name": "genre", "source": "genres", "kind": "multi"},
        {"namespace": "context", "name": "raw", "source": "raw", "kind": "numeric"},
    ]
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.convert({"features": {"features": features}, "health": health}, Config)
