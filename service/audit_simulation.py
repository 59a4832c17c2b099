"""Decisions of random worlds through the production slate and log code, for `hone audit --simulate`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bandit.columns import Columns
from bandit.exploration import Epsilon, Exploration, Softmax, SquareCB
from bandit.randomness import build_generator, draw_uniforms
from bandit.rules import (
    Discovery,
    Diversity,
    Freshness,
    MaxPer,
    Pinned,
    Prior,
    Rule,
    SeenDemotion,
    Sponsored,
)
from bandit.slate import ActionSet, SlateWalk, draw_slate
from service.decision_record import pack_actions, record_slot, seal
from service.messages import Decision, Versions, encode, journal_decoder
from service.numerics import numerics_fingerprint

_NOW_MS = 1_795_000_000_000
_SURFACE = "simulated"
_EXPLORATIONS: tuple[Exploration, ...] = (
    Epsilon(rate=0.1),
    Epsilon(rate=0.5, shortlist=5, uniform_share=0.5),
    Epsilon(rate=0.2, temperature=0.1),
    Softmax(shortlist=10, uniform_share=0.1),
    SquareCB(gamma=50.0, shortlist=8, uniform_share=0.1),
)
EVERY_RULE: tuple[Rule, ...] = (
    MaxPer(column="creator", limit=1, window=3),
    MaxPer(column="genres", limit=2, window=4),
    Freshness(boost=0.2, half_life_days=30.0),
    Prior(weight=0.1),
    SeenDemotion(penalty=0.05),
    Diversity(weight=0.2, column="genres"),
    Sponsored(slots=[1]),
    Pinned(),
    Discovery(share=0.25),
)


def simulate_decisions(n: int, *, seed: int, first: int = 0) -> Iterator[Decision]:
    """Yield decisions `first` to `first + n` of a seeded simulation, each as read back from its stored form.

    Every decision has its own candidates, policy and subset of the rules, in an order of its own.
    """
    versions = Versions(
        model=1,
        index="",
        catalogue="0-0",
        config="",
        schema="",
        item_stats="0-0",
        salt=1,
        numerics=numerics_fingerprint(),
    )
    for index in range(first, first + n):
        rng = np.random.default_rng([seed, index])
        stored = encode(_decide(f"simulated-{index}", rng, salt=seed.to_bytes(8, "little"), versions=versions))
        decision = journal_decoder.decode(stored)
        assert isinstance(decision, Decision)
        yield decision


def _decide(event_id: str, rng: np.random.Generator, *, salt: bytes, versions: Versions) -> Decision:
    actions = _actions(int(rng.integers(1, 40)), rng)
    n_slots = int(rng.integers(1, 8))
    rules = [rule for rule in EVERY_RULE if rng.random() < 0.5]
    rng.shuffle(rules)
    exploration = _EXPLORATIONS[int(rng.integers(len(_EXPLORATIONS)))]
    positions: tuple[int, ...] = ()
    probability = 1.0
    for rule in rules:
        if isinstance(rule, Discovery):
            coins = build_generator(salt=salt, purpose="discovery", surface=_SURFACE, event_id=event_id)
            positions, probability = rule.draw_positions(n_slots, coins)
    walk = SlateWalk(
        actions=actions,
        exploration=exploration,
        rules=rules,
        now_ms=_NOW_MS,
        n_slots=n_slots,
        discovery_positions=positions,
    )
    uniforms = draw_uniforms(n_slots, salt=salt, purpose="slot", surface=_SURFACE, event_id=event_id)
    n = len(actions.ids)
    decision = Decision(
        event_id=event_id,
        decided_at_unix_ms=_NOW_MS,
        surface=_SURFACE,
        model=_SURFACE,
        user_id=None,
        user_key="",
        digest="",
        context={},
        seed_item_id=None,
        recent_ids=[],
        features={},
        versions=versions,
        exploration=exploration,
        rules=rules,
        discovery_positions=list(positions),
        discovery_probability=probability,
        candidates=pack_actions(actions, sources=np.zeros(n, dtype=np.uint8), source_names=[_SURFACE]),
        slots=[record_slot(draw, actions, features={}) for draw in draw_slate(walk, uniforms)],
        n_requested=n_slots,
        degraded=[],
        latency_ms={},
    )
    return seal(decision)


def _actions(n: int, rng: np.random.Generator) -> ActionSet:
    """Candidates with ties, missing values and few categories, so that every rule bites."""
    scores = np.round(rng.normal(size=n), 1).astype(np.float32)
    pinned = np.where(rng.random(n) < 0.05, rng.integers(0, 8, n), -1)
    columns: Columns = {
        "creator": rng.integers(-1, 6, n).astype(np.int32),
        "genres": (np.uint64(1) << rng.integers(0, 6, n).astype(np.uint64)) * (rng.random(n) < 0.9),
        "available_at_unix_ms": np.where(rng.random(n) < 0.8, _NOW_MS - rng.integers(0, 10**10, n), 0),
        "affinity": np.where(rng.random(n) < 0.8, rng.normal(size=n), np.nan).astype(np.float32),
        "n_seen": rng.integers(0, 5, n).astype(np.int32),
        "discovery": rng.random(n) < 0.3,
        "sponsored": np.where(rng.random(n) < 0.1, np.arange(n), -1).astype(np.int32),
        "pinned_slot": pinned.astype(np.int32),
    }
    return ActionSet(ids=[f"item-{i:03d}" for i in range(n)], scores=scores, columns=columns)
