"""Joining: checked against a brute-force reading of the whole stream, and against being rebuilt in the middle."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.joining import Joined, Joiner, JoinEvent, Position
from bandit.rewards import EventReward, RewardPolicy, aggregate

PENDING_MS = 10_000
END_MS = 10**9
CLICK, LIKE = EventReward(base=1.0), EventReward(base=0.5, per_unit=0.1)
ON_REWARD = RewardPolicy(events={"click": CLICK, "like": LIKE}, negative_window_s=3.0, window_s=10.0, default=-0.25)
AT_CLOSE = RewardPolicy(
    events={"click": CLICK, "like": LIKE}, aggregation="sum", learn="at_close", negative_window_s=4.0, window_s=8.0
)
ONE_WINDOW = RewardPolicy(events={"click": CLICK}, negative_window_s=5.0, window_s=5.0)
# What one event can come to; `reward_late` and `reward_joined` are of events that reached their slot.
EVENT_FATES = (
    "reward_joined",
    "reward_late",
    "event_duplicate",
    "event_not_a_reward",
    "event_not_in_slate",
    "event_not_learnable",
    "event_unattributed",
    "event_unknown_decision",
)


@dataclass(frozen=True)
class Decided:
    event_id: str
    policy: RewardPolicy
    item_ids: tuple[str, ...]
    user_key: str
    learnable: tuple[bool, ...]
    decided_at_ms: int = 0


Entry = Decided | JoinEvent
Stream = list[tuple[Position, Entry]]


def _apply(joiner: Joiner[str], position: Position, entry: Entry) -> list[Joined[str]]:
    if isinstance(entry, JoinEvent):
        return joiner.add_event(position, entry)
    return joiner.add_decision(
        position,
        event_id=entry.event_id,
        policy=entry.policy,
        item_ids=entry.item_ids,
        user_key=entry.user_key,
        learnable=entry.learnable,
        payload=f"payload of {entry.event_id}",
        decided_at_ms=entry.decided_at_ms,
    )


def _run(stream: Stream) -> tuple[list[Joined[str]], Joiner[str]]:
    joiner: Joiner[str] = Joiner(pending_ms=PENDING_MS)
    joined = [one for position, entry in stream for one in _apply(joiner, position, entry)]
    return joined + joiner.advance(END_MS), joiner


def _decided(event_id: str = "d", **changes) -> Decided:
    values = {"policy": ON_REWARD, "item_ids": ("a", "b"), "user_key": "u", "learnable": (True, True)}
    return Decided(event_id=event_id, **{**values, **changes})


def _event(**changes) -> JoinEvent:
    values = {"client_id": "c", "event_type": "click", "event_id": "d", "user_key": "u", "item_id": "a", "slot": None}
    return JoinEvent(**{**values, "value": 1.0, **changes})


def _story(*entries: tuple[int, Entry]) -> tuple[list[tuple[str, int, float, str, int]], Counter[str]]:
    joined, joiner = _run([((ms, 0, sequence), entry) for sequence, (ms, entry) in enumerate(entries)])
    return [(j.event_id, j.slot, j.reward, j.kind, j.at_ms) for j in joined], joiner.counters


# --- the oracle ------------------------------------------------------------------------------------------------------


def _window_ms(policy: RewardPolicy) -> int:
    return max(int(policy.window_s * 1000), int(policy.negative_window_s * 1000) + 1)


def _oracle(stream: Stream) -> dict[str, list[tuple[int, float, str, int]]]:
    """Read the whole stream for every decision: (slot, reward, kind, at ms), in order of time."""
    opened: dict[str, tuple[Position, Decided]] = {}
    for position, entry in stream:
        if isinstance(entry, Decided):
            opened.setdefault(entry.event_id, (position, entry))
    found = {}
    for event_id, (position, decided) in opened.items():
        events = []
        for at, entry in stream:
            if isinstance(entry, JoinEvent) and _names(at, entry, opened) == event_id:
                is_early = at < position
                if is_early and at[0] + PENDING_MS > position[0]:
                    events.append((position[0], entry))
                elif not is_early and at[0] < position[0] + _window_ms(decided.policy):
                    events.append((at[0], entry))
        found[event_id] = _outcomes(position[0], decided, events)
    return found


def _names(at: Position, event: JoinEvent, opened: dict[str, tuple[Position, Decided]]) -> str | None:
    if event.event_id is not None:
        return event.event_id
    fitting = [
        (decided.decided_at_ms, position, event_id)
        for event_id, (position, decided) in opened.items()
        if position < at
        and at[0] < position[0] + _window_ms(decided.policy)
        and decided.user_key == event.user_key != ""
        and event.item_id in decided.item_ids
        and decided.decided_at_ms <= event.accepted_at_ms
    ]
    return max(fitting)[2] if fitting else None


def _outcomes(
    decided_ms: int, decided: Decided, events: list[tuple[int, JoinEvent]]
) -> list[tuple[int, float, str, int]]:
    closes_ms = decided_ms + int(decided.policy.negative_window_s * 1000)
    outcomes: list[tuple[int, float, str, int]] = []
    seen = set()
    collected: dict[int, list[float]] = defaultdict(list)
    for at_ms, event in events:
        worth = decided.policy.reward(event.event_type, event.value)
        slot = event.slot
        if slot is None and event.item_id in decided.item_ids:
            slot = decided.item_ids.index(event.item_id)
        elif slot is None and event.item_id is None and len(decided.item_ids) == 1:
            slot = 0
        elif slot is not None and (
            slot >= len(decided.item_ids) or event.item_id not in (None, decided.item_ids[slot])
        ):
            slot = None
        if worth is None or slot is None or not decided.learnable[slot]:
            continue
        if (slot, event.event_type, event.client_id) in seen:
            continue
        seen.add((slot, event.event_type, event.client_id))
        if at_ms >= closes_ms or (collected[slot] and decided.policy.learn == "on_reward"):
            outcomes.append((slot, worth, "late", at_ms))
            continue
        collected[slot].append(worth)
        if decided.policy.learn == "on_reward":
            outcomes.append((slot, worth, "reward", at_ms))
    for slot, wanted in enumerate(decided.learnable):
        if wanted and not collected[slot]:
            outcomes.append((slot, decided.policy.default, "default", closes_ms))
        elif wanted and decided.policy.learn == "at_close":
            outcomes.append((slot, aggregate(collected[slot], decided.policy.aggregation), "reward", closes_ms))
    return sorted(outcomes)


# --- random streams --------------------------------------------------------------------------------------------------


@st.composite
def _streams(draw: st.DrawFn, *, repeat_decisions: bool) -> Stream:
    """Decisions and events in any order, so that events come early, late, twice, and about nothing."""
    items = st.sampled_from(["a", "b", "c", "d"])
    ids = ["d0", "d1", "d2", "d3"]
    decisions = [
        Decided(
            event_id=event_id,
            policy=draw(st.sampled_from([ON_REWARD, AT_CLOSE, ONE_WINDOW])),
            item_ids=(slate := tuple(draw(st.lists(items, min_size=1, max_size=3, unique=True)))),
            user_key=draw(st.sampled_from(["u", "v", ""])),
            learnable=tuple(draw(st.sampled_from([True, True, False])) for _ in slate),
            # Any order: entries may have waited in a spool.
            decided_at_ms=draw(st.integers(0, 3)),
        )
        for event_id in draw(st.permutations(ids))
    ]
    events = st.builds(
        JoinEvent,
        client_id=st.sampled_from(["x", "y"]),
        event_type=st.sampled_from(["click", "click", "like", "reward", "view"]),
        event_id=st.sampled_from([*ids, "d9", None, None]),
        user_key=st.sampled_from(["u", "v", ""]),
        item_id=items | st.none(),
        slot=st.sampled_from([None, None, 0, 1, 5]),
        value=st.sampled_from([0.0, 1.0, 3.0]),
        accepted_at_ms=st.integers(0, 5),
    )
    entries: list[Entry] = [*decisions, *draw(st.lists(events, max_size=16))]
    partitions = draw(st.sampled_from([1, 2]))
    # Windows are 3 to 10 s; steps of a second make closings and entries fall together often.
    times = draw(st.lists(st.integers(0, 16), min_size=len(entries), max_size=len(entries)))
    placed = [
        ((1000 * second, draw(st.integers(0, partitions - 1)), number), entry)
        for number, (second, entry) in enumerate(zip(times, entries, strict=True))
    ]
    if repeat_decisions:
        for position, entry in placed[: len(ids)]:
            if draw(st.booleans()):
                # The store refuses a repetition for longer than any window; within the window it is ours to refuse.
                late_ms = draw(st.integers(0, _window_ms(entry.policy) // 1000 - 1)) * 1000
                placed.append(((position[0] + late_ms, position[1], len(placed)), entry))
    return sorted(placed, key=lambda pair: pair[0])


@settings(deadline=None, derandomize=True, max_examples=120)
@given(stream=_streams(repeat_decisions=True))
def test_every_stream_joins_as_a_reading_of_the_whole_stream_says(stream: Stream) -> None:
    joined, _ = _run(stream)
    by_decision = defaultdict(list)
    for one in joined:
        by_decision[one.event_id].append((one.slot, one.reward, one.kind, one.at_ms))
    for event_id, outcomes in _oracle(stream).items():
        assert sorted(by_decision.pop(event_id, [])) == outcomes
    assert not by_decision


@settings(deadline=None, derandomize=True, max_examples=60)
@given(stream=_streams(repeat_decisions=True))
def test_every_learnable_slot_is_joined_exactly_once_and_others_never(stream: Stream) -> None:
    joined, joiner = _run(stream)
    learned = Counter((one.event_id, one.slot) for one in joined if one.kind != "late")
    decided = {entry.event_id: entry for _, entry in stream if isinstance(entry, Decided)}
    wanted = {(e, slot) for e, entry in decided.items() for slot, yes in enumerate(entry.learnable) if yes}
    assert learned == Counter(wanted)
    assert joiner.n_open == 0
    assert joiner.oldest_open(0) is None
    assert all(one.payload == f"payload of {one.event_id}" for one in joined)
    assert [one.at_ms for one in joined] == sorted(one.at_ms for one in joined)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(stream=_streams(repeat_decisions=True))
def test_counters_account_for_every_entry_exactly_once(stream: Stream) -> None:
    joined, joiner = _run(stream)
    counters = joiner.counters
    n_decisions = sum(isinstance(entry, Decided) for _, entry in stream)
    assert counters["decision"] + counters["decision_duplicate"] == n_decisions
    assert sum(counters[fate] for fate in EVENT_FATES) == len(stream) - n_decisions
    kinds = Counter(one.kind for one in joined)
    assert kinds == Counter(
        reward=counters["slot_reward"], default=counters["slot_default"], late=counters["reward_late"]
    )
    assert set(counters) <= {*EVENT_FATES, "decision", "decision_duplicate", "slot_reward", "slot_default"}


@settings(deadline=None, derandomize=True, max_examples=150)
@given(stream=_streams(repeat_decisions=False), share=st.floats(0.0, 1.0))
def test_a_joiner_rebuilt_from_the_oldest_open_position_goes_on_identically(stream: Stream, share: float) -> None:
    cut = int(share * len(stream))
    first: Joiner[str] = Joiner(pending_ms=PENDING_MS)
    for position, entry in stream[:cut]:
        _apply(first, position, entry)
    rebuilt: Joiner[str] = Joiner(pending_ms=PENDING_MS)
    for position, entry in stream[:cut]:
        oldest = first.oldest_open(position[1])
        if oldest is not None and position >= oldest:
            _apply(rebuilt, position, entry)
    if cut:
        rebuilt.advance(stream[cut - 1][0][0])
    rest = stream[cut:]
    later = [[_apply(joiner, *one) for one in rest] + [joiner.advance(END_MS)] for joiner in (first, rebuilt)]
    assert later[0] == later[1]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(stream=_streams(repeat_decisions=False))
def test_the_oldest_open_position_is_no_later_than_anything_still_tracked(stream: Stream) -> None:
    joiner: Joiner[str] = Joiner(pending_ms=PENDING_MS)
    decided: dict[str, Position] = {}
    for position, entry in stream:
        _apply(joiner, position, entry)
        if isinstance(entry, Decided):
            decided[entry.event_id] = position
        still = [at for event_id, at in decided.items() if joiner.payload_of(event_id) is not None]
        assert len(still) == joiner.n_open
        for at in still:
            oldest = joiner.oldest_open(at[1])
            assert oldest is not None
            assert oldest <= at


# --- stories ---------------------------------------------------------------------------------------------------------


def test_a_click_is_learned_when_it_comes_and_the_other_slot_when_the_window_closes() -> None:
    joined, counters = _story((0, _decided()), (1_000, _event()))
    assert joined == [("d", 0, 1.0, "reward", 1_000), ("d", 1, -0.25, "default", 3_000)]
    assert counters == Counter(decision=1, reward_joined=1, slot_reward=1, slot_default=1)


def test_a_reward_at_the_very_end_of_the_negative_window_is_late() -> None:
    joined, _ = _story((0, _decided(learnable=(True, False))), (3_000, _event()))
    assert joined == [("d", 0, -0.25, "default", 3_000), ("d", 0, 1.0, "late", 3_000)]


def test_a_reward_after_the_attribution_window_is_of_an_unknown_decision() -> None:
    _, counters = _story((0, _decided()), (10_000, _event()))
    assert counters["event_unknown_decision"] == 1
    assert counters["reward_late"] == 0


def test_rewards_are_summed_when_learning_waits_for_the_close() -> None:
    joined, counters = _story(
        (0, _decided(policy=AT_CLOSE, learnable=(True, False))),
        (1_000, _event(client_id="1")),
        (2_000, _event(client_id="2")),
        (2_500, _event(client_id="2")),
    )
    assert joined == [("d", 0, 2.0, "reward", 4_000)]
    assert (counters["reward_joined"], counters["event_duplicate"]) == (2, 1)


def test_an_event_waits_for_its_own_time_whatever_waited_before_it() -> None:
    first, second = _event(client_id="1"), _event(client_id="2", item_id="b")
    joined, counters = _story((0, first), (9_000, second), (11_000, _decided()))
    assert joined == [("d", 1, 1.0, "reward", 11_000), ("d", 0, -0.25, "default", 14_000)]
    assert counters["event_unknown_decision"] == 1


def test_events_that_waited_are_joined_in_the_order_they_came() -> None:
    like = _event(event_type="like", value=0.0)
    joined, _ = _story((0, like), (1_000, _event()), (2_000, _decided(learnable=(True, False))))
    assert joined == [("d", 0, 0.5, "reward", 2_000), ("d", 0, 1.0, "late", 2_000)]


def test_a_joiner_is_rebuilt_with_the_events_that_came_before_their_decision() -> None:
    joiner: Joiner[str] = Joiner(pending_ms=PENDING_MS)
    _apply(joiner, (1_000, 0, 0), _event())
    _apply(joiner, (2_000, 0, 1), _decided())
    assert joiner.oldest_open(0) == (1_000, 0, 0)


def test_an_event_that_waits_is_reread() -> None:
    joiner: Joiner[str] = Joiner(pending_ms=PENDING_MS)
    _apply(joiner, (1_000, 0, 3), _event())
    assert joiner.oldest_open(0) == (1_000, 0, 3)
    joiner.advance(11_000)
    assert joiner.oldest_open(0) is None


def test_every_partition_is_reread_from_the_time_of_the_oldest_open_decision() -> None:
    joiner: Joiner[str] = Joiner(pending_ms=PENDING_MS)
    _apply(joiner, (2_000, 0, 7), _decided())
    assert joiner.oldest_open(0) == (2_000, 0, 7)
    assert joiner.oldest_open(1) == (2_000, 1, 0)


def test_a_decision_that_came_late_is_reread_with_the_one_made_after_it_that_events_go_to_instead() -> None:
    later, earlier = _decided("later", decided_at_ms=800), _decided("earlier", decided_at_ms=500)
    stream: Stream = [
        ((1_000, 0, 0), later),
        ((3_000, 0, 1), earlier),
        ((3_500, 0, 2), _event(event_id=None, accepted_at_ms=900)),
    ]
    first: Joiner[str] = Joiner(pending_ms=PENDING_MS)
    for position, entry in stream:
        _apply(first, position, entry)
    first.advance(11_500)
    assert (first.payload_of("later"), first.payload_of("earlier")) == (None, "payload of earlier")
    oldest = first.oldest_open(0)
    assert oldest is not None
    rebuilt: Joiner[str] = Joiner(pending_ms=PENDING_MS)
    for position, entry in stream:
        if position >= oldest:
            _apply(rebuilt, position, entry)
    rebuilt.advance(11_500)
    click = _event(event_id="earlier")
    fates = [_apply(joiner, (12_000, 0, 3), click) for joiner in (first, rebuilt)]
    assert fates[0] == fates[1]
    assert [one.kind for one in fates[0]] == ["late"]


def test_an_event_without_decision_goes_to_the_newest_one_that_showed_the_item_to_the_user() -> None:
    joined, counters = _story(
        (0, _decided("old")),
        (1_000, _decided("new")),
        (1_500, _decided("other", user_key="v")),
        (2_000, _event(event_id=None)),
        (2_000, _event(event_id=None, item_id="z", client_id="2")),
    )
    assert [one for one in joined if one[3] == "reward"] == [("new", 0, 1.0, "reward", 2_000)]
    assert counters["event_unattributed"] == 1


def test_an_event_without_decision_goes_to_none_that_was_made_after_it() -> None:
    # The event waited in a spool while its user was shown the item again.
    _, counters = _story((1_000, _decided(decided_at_ms=900)), (1_100, _event(event_id=None, accepted_at_ms=899)))
    assert counters["event_unattributed"] == 1


def test_an_event_without_decision_goes_to_the_last_one_before_it_whichever_came_first_into_the_journal() -> None:
    joined, _ = _story(
        (1_000, _decided("second", decided_at_ms=800)),
        (1_100, _decided("first", decided_at_ms=500)),
        (1_200, _decided("third", decided_at_ms=1_150)),
        (1_300, _event(event_id=None, accepted_at_ms=900)),
    )
    assert [one[0] for one in joined if one[3] == "reward"] == ["second"]


def test_a_closed_decision_attracts_no_event_without_decision() -> None:
    short = _decided("short", policy=ONE_WINDOW)
    joined, counters = _story(
        (0, _decided("long", policy=AT_CLOSE)),
        (1_000, short),
        (7_000, _event(event_id=None)),
        (9_000, _event(event_id=None, client_id="2")),
    )
    assert [one for one in joined if one[3] == "late"] == [("long", 0, 1.0, "late", 7_000)]
    assert (counters["event_unattributed"], counters["event_unknown_decision"]) == (1, 0)


def test_a_decision_whose_windows_are_equal_is_still_there_when_the_negative_one_closes() -> None:
    joined, _ = _story((0, _decided(policy=ONE_WINDOW, learnable=(True, False))), (5_000, _event()))
    assert [one[3] for one in joined] == ["default", "late"]


def test_decisions_of_anonymous_users_attract_no_event() -> None:
    _, counters = _story((0, _decided(user_key="")), (1_000, _event(event_id=None, user_key="")))
    assert counters["event_unattributed"] == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"event_type": "view"}, "event_not_a_reward"),
        ({"item_id": "z"}, "event_not_in_slate"),
        ({"item_id": None}, "event_not_in_slate"),
        ({"item_id": "a", "slot": 1}, "event_not_in_slate"),
        ({"item_id": None, "slot": 2}, "event_not_in_slate"),
        ({"item_id": "b"}, "event_not_learnable"),
        ({"event_id": "nobody"}, "event_unknown_decision"),
    ],
)
def test_an_event_that_cannot_be_joined_is_counted_by_reason(change: dict[str, object], reason: str) -> None:
    joined, counters = _story((0, _decided(learnable=(True, False))), (1_000, _event(**change)))
    assert [one[3] for one in joined] == ["default"]
    assert counters == Counter({"decision": 1, "slot_default": 1, reason: 1})


def test_a_joined_slot_says_how_long_it_took() -> None:
    joined, _ = _run([((500, 0, 0), _decided()), ((1_700, 0, 1), _event())])
    assert [(one.at_ms, one.delay_ms) for one in joined] == [(1_700, 1_200), (3_500, 3_000)]
