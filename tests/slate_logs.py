"""A world of one context and five items whose every slate under rules and a discovery coin can be listed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from bandit.exploration import Exploration
from bandit.rules import Discovery, Rule
from bandit.slate import ActionSet, SlateWalk
from bandit.slot import SlotDraw, draw_slot
from service.decision_record import pack_actions, record_slot, seal
from service.messages import Decision, Versions

NOW_MS = 1_700_000_000_000
N_SLOTS = 3
ACTIONS = ActionSet(
    ids=[f"i{n}" for n in range(5)],
    scores=np.array([0.5, 0.2, 0.5, 0.1, 0.3], dtype=np.float32),
    columns={
        "creator": np.array([0, 0, 1, 1, -1], dtype=np.int32),
        "discovery": np.array([False, True, False, True, False]),
        "affinity": np.array([0.1, -0.2, 0.0, 0.4, np.nan], dtype=np.float32),
        "available_at_unix_ms": NOW_MS - np.array([0, 1, 2, 3, 4], dtype=np.int64) * 10**8,
        "sponsored": np.array([-1, -1, -1, 0, -1], dtype=np.int32),
        "pinned_slot": np.array([-1, -1, -1, -1, 1], dtype=np.int32),
    },
)


def coins(rules: Sequence[Rule]) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every set of reserved positions with its probability."""
    rule = next((rule for rule in rules if isinstance(rule, Discovery)), None)
    counts = {0: 1.0} if rule is None else rule.count_pmf(N_SLOTS)
    for count, mass in counts.items():
        sets = list(itertools.combinations(range(N_SLOTS), count))
        for positions in sets:
            yield positions, mass / len(sets)


def cells(exploration: Exploration, rules: Sequence[Rule] = ()) -> Iterator[tuple[Decision, float]]:
    """Every decision that a policy can log, with its probability."""
    for positions, mass in coins(rules):
        for draws, conditional in _slates(exploration, rules, positions, ()):
            yield decision_of(draws, exploration, rules, positions=positions, probability=mass), mass * conditional


def _slates(
    exploration: Exploration, rules: Sequence[Rule], positions: Sequence[int], before: tuple[SlotDraw, ...]
) -> Iterator[tuple[tuple[SlotDraw, ...], float]]:
    walk = walk_along(exploration, rules, positions, [draw.action for draw in before])
    here = walk.pmf() if len(before) < N_SLOTS else None
    if here is None:
        yield before, 1.0
        return
    ends = np.cumsum(here.pmf)
    for action in np.flatnonzero(here.pmf).tolist():
        draw = draw_slot(here, len(before), float(ends[action] - here.pmf[action] / 2))
        assert draw.action == action
        for draws, mass in _slates(exploration, rules, positions, (*before, draw)):
            yield draws, mass * draw.propensity


def walk_along(
    exploration: Exploration, rules: Sequence[Rule], positions: Sequence[int], placed: Sequence[int]
) -> SlateWalk:
    walk = SlateWalk(
        actions=ACTIONS,
        exploration=exploration,
        rules=rules,
        now_ms=NOW_MS,
        n_slots=N_SLOTS,
        discovery_positions=positions,
    )
    for action in placed:
        walk.place(action)
    return walk


def decision_of(
    draws: Sequence[SlotDraw],
    exploration: Exploration,
    rules: Sequence[Rule],
    *,
    positions: Sequence[int] = (),
    probability: float = 1.0,
    event_id: str = "e",
    user_key: str = "u",
) -> Decision:
    """The record of drawn slots."""
    decision = Decision(
        event_id=event_id,
        decided_at_unix_ms=NOW_MS,
        surface="home",
        model="m",
        user_id=None,
        user_key=user_key,
        digest="",
        context={},
        seed_item_id=None,
        recent_ids=[],
        features={},
        versions=Versions(model=1, index="", catalogue="", config="", schema="", item_stats="", salt=1, numerics=""),
        exploration=exploration,
        rules=list(rules),
        discovery_positions=list(positions),
        discovery_probability=probability,
        candidates=pack_actions(ACTIONS, sources=np.zeros(5, dtype=np.uint8), source_names=["all"]),
        slots=[record_slot(draw, ACTIONS, features={}) for draw in draws],
        n_requested=N_SLOTS,
        degraded=[],
        latency_ms={},
    )
    return seal(decision)
