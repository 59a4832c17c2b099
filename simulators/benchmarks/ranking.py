"""`hone bench ranking`: the scorer beside VW's own predict, and the slate draw with every rule on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from vowpal_wabbit_next import CBLabel, Example, Workspace

from bandit.columns import Columns
from bandit.exploration import Epsilon
from bandit.policy import ActionFeatures, ModelSpec, WeightTable, row_features
from bandit.slate import ActionSet, SlateWalk, draw_slate
from bandit.vw_format import Encoded, ExamplePool, predict_costs
from service.audit_simulation import EVERY_RULE
from simulators.benchmarks.explorers import bench_explorers

_N_CANDIDATES = 1_000
_N_SLOTS = 10
_N_ITEMS = 1_000_000
_N_CONTEXT, _N_ITEM_FEATURES = 10, 15
_ROUNDS = 60
_NOW_MS = 1_795_000_000_000


def bench_ranking(say: Callable[[str], None]) -> dict[str, Any]:
    """Measure scoring and drawing, rounds of one interleaved with rounds of the other where a ratio is formed."""
    say("building a catalogue of a million items")
    scoring = _scoring()
    say("drawing slates")
    slate = _slate()
    say("asking VW's explorers")
    return {"scoring": scoring, "slate": slate, "explorers": bench_explorers()}


def _scoring() -> dict[str, Any]:
    rng = np.random.default_rng(7)
    spec = ModelSpec(bits=22, learning_rate=0.02, interactions=(("context", "item"),), schema_version="bench")
    table = WeightTable(spec)
    table.weights[:] = rng.normal(0.0, 0.01, size=len(table.weights)).astype(np.float32)
    # 15 features an item: its id, and values of vocabularies from 2 to 20,000, as catalogues have them.
    vocabularies = np.geomspace(2, 20_000, _N_ITEM_FEATURES - 1).astype(np.int64)
    codes = [rng.integers(0, size, _N_ITEMS) for size in vocabularies]
    books = [rng.integers(0, 2**32, size, dtype=np.uint32) for size in (*vocabularies, _N_ITEMS)]
    indices = np.column_stack([book[code] for book, code in zip(books, [*codes, np.arange(_N_ITEMS)], strict=True)])
    values = np.ones(indices.shape, dtype=np.float32)
    context = Encoded(
        names=(),
        indices=rng.integers(0, 2**32, _N_CONTEXT, dtype=np.uint32),
        values=np.ones(_N_CONTEXT, dtype=np.float32),
    )
    shared = {"context": context}
    reference = Workspace(spec.arguments())
    reference.weights()[:, 0, 0] = table.weights
    ours_ms, vw_ms, largest_gap = [], [], 0.0
    for _ in range(_ROUNDS):
        rows = rng.choice(_N_ITEMS, _N_CANDIDATES, replace=False)
        started = time.perf_counter()
        scores = table.score(shared, {"item": ActionFeatures(indices=indices[rows], values=values[rows])})
        ours_ms.append((time.perf_counter() - started) * 1e3)
        examples = _examples(shared, ActionFeatures(indices=indices[rows], values=values[rows]))
        started = time.perf_counter()
        costs = predict_costs(reference, examples)
        vw_ms.append((time.perf_counter() - started) * 1e3)
        expected = np.zeros(_N_CANDIDATES)
        for action, cost in costs:
            expected[action] = -cost
        largest_gap = max(largest_gap, float(np.abs(expected - scores).max()))
    ratios = np.asarray(ours_ms) / np.asarray(vw_ms)
    return {
        "n_items": _N_ITEMS,
        "n_candidates": _N_CANDIDATES,
        "features": f"{_N_CONTEXT} context x {_N_ITEM_FEATURES} item",
        "table_ms_p50": round(float(np.median(ours_ms)), 3),
        "vw_predict_parsed_ms_p50": round(float(np.median(vw_ms)), 3),
        "ratio_p50": round(float(np.median(ratios)), 3),
        "largest_gap": largest_gap,
    }


def _examples(shared: dict[str, Encoded], items: ActionFeatures) -> list[Example]:
    """Parsed examples as VW would be given them: only its predict is timed."""
    pool = ExamplePool()
    actions = [
        pool.fill_action(row, {"item": row_features(items, row)}, label=CBLabel()) for row in range(_N_CANDIDATES)
    ]
    return [pool.fill_shared(shared), *actions]


def _slate() -> dict[str, Any]:
    rng = np.random.default_rng(8)
    n = _N_CANDIDATES
    tags = np.uint64(1) << rng.integers(0, 20, (2, n)).astype(np.uint64)
    columns: Columns = {
        "creator": rng.integers(0, 200, n).astype(np.int32),
        "genres": tags[0] | tags[1],
        "available_at_unix_ms": _NOW_MS - rng.integers(0, 10**11, n),
        "affinity": rng.random(n).astype(np.float32),
        "n_seen": rng.integers(0, 3, n).astype(np.int32),
        "discovery": rng.random(n) < 0.2,
        "sponsored": np.where(np.arange(n) == 7, 0, -1).astype(np.int32),
        "pinned_slot": np.where(np.arange(n) == 9, 3, -1).astype(np.int32),
    }
    actions = ActionSet(
        ids=[f"item-{i:06d}" for i in range(n)], scores=rng.normal(size=n).astype(np.float32), columns=columns
    )
    timings: dict[str, Any] = {"n_candidates": n, "n_slots": _N_SLOTS, "n_rules": len(EVERY_RULE)}
    for name, rules in (("all_rules", EVERY_RULE), ("no_rules", ())):
        took_ms = []
        for _ in range(5 * _ROUNDS):
            uniforms = rng.random(_N_SLOTS)
            started = time.perf_counter()
            walk = SlateWalk(
                actions=actions,
                exploration=Epsilon(),
                rules=rules,
                now_ms=_NOW_MS,
                n_slots=_N_SLOTS,
                discovery_positions=(2, 5),
            )
            draw_slate(walk, uniforms)
            took_ms.append((time.perf_counter() - started) * 1e3)
        timings[f"{name}_ms_p50"] = round(float(np.median(took_ms)), 3)
        timings[f"{name}_ms_p10"] = round(float(np.percentile(took_ms, 10)), 3)
    return timings
