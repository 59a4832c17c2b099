"""The vectorised scorer is VW, on ten thousand random models; when it is not, it is switched off and says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import pytest

from bandit.policy import ActionFeatures, ModelSpec, VwReference, WeightTable, touched_weights
from bandit.vw_format import ACTION_NAMESPACES, SHARED_NAMESPACES, Encoded, feature_index
from service.messages import ModelSnapshot
from service.metrics import Metrics
from service.served_model import ServedModel

SEED = 20261122
PAIRS = [(first, second) for first in ("context", "user") for second in ("item", "dynamic")]
# Cases by log2 of the table; a check copies the table, so large ones are few. 10,000 in all.
CASES = {10: 2_400, 11: 1_800, 12: 1_600, 13: 1_400, 14: 1_200, 15: 600, 16: 400, 17: 260, 18: 180}
CASES |= {19: 60, 20: 40, 21: 30, 22: 30}
TOLERANCE = 1e-6
Case = tuple[WeightTable, VwReference, dict[str, Encoded], list[dict[str, Encoded]]]


def _features(rng: np.random.Generator, namespace: str) -> Encoded:
    """Return up to seven features, often none; names repeat, values are floats, ones and rarely negative."""
    n = int(rng.integers(0, 8)) if rng.random() < 0.85 else 0
    indices = np.array([feature_index(namespace, f"f={k}") for k in rng.integers(0, 40, size=n)], dtype=np.uint32)
    values = np.where(rng.random(n) < 0.5, 1.0, rng.normal(size=n)).astype(np.float32)
    values[values == 0.0] = 1.0
    return Encoded(names=(), indices=indices, values=values)


def _stacked(actions: list[dict[str, Encoded]]) -> dict[str, ActionFeatures]:
    return {name: ActionFeatures.stack([action[name] for action in actions]) for name in actions[0]}


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    for bits, n_cases in CASES.items():
        n_specs = min(16, n_cases // 10)
        for _ in range(n_specs):
            chosen = [pair for pair in PAIRS if rng.random() < 0.5]
            rng.shuffle(chosen)
            spec = ModelSpec(bits=bits, learning_rate=0.1, interactions=tuple(chosen), schema_version="v")
            table, reference = WeightTable(spec), VwReference(spec)
            table.weights[:] = np.resize(rng.normal(scale=0.05, size=1 << 16), 1 << bits)
            for _ in range(n_cases // n_specs + (n_cases % n_specs > 0)):
                shared = {name: _features(rng, name) for name in SHARED_NAMESPACES if rng.random() < 0.8}
                used = [name for name in ACTION_NAMESPACES if rng.random() < 0.7] or ["item"]
                n_actions = int(rng.integers(1, 4))
                actions = [{name: _features(rng, name) for name in used} for _ in range(n_actions)]
                # A model of its own: fresh weights wherever these features reach.
                for action in actions:
                    reached = touched_weights(spec, shared, action)
                    table.weights[reached] = rng.normal(scale=0.05, size=len(reached))
                yield table, reference, shared, actions


@pytest.fixture(scope="module")
def differences() -> np.ndarray:
    """Float64 [n, 3]: by case, the largest difference relative to max(1, |score|), collisions, repeated features."""
    found = []
    for table, reference, shared, actions in _cases(np.random.default_rng(SEED)):
        stacked = _stacked(actions)
        scores = table.score(shared, stacked).astype(np.float64)
        expected = reference.score(table.weights, shared, stacked).astype(np.float64)
        gap = (np.abs(scores - expected) / np.maximum(1.0, np.abs(expected))).max()
        positions = touched_weights(table.spec, shared, actions[0])
        parts = [*shared.values(), *actions[0].values()]
        n_repeated = sum(len(e.indices) - len(np.unique(e.indices)) for e in parts)
        found.append((gap, len(positions) - len(np.unique(positions)), n_repeated))
    return np.array(found)


def test_the_table_equals_vw_on_ten_thousand_random_models(
    differences: np.ndarray, record_property: Callable[[str, object], None]
) -> None:
    record_property("n_cases", len(differences))
    record_property("largest_difference", float(differences[:, 0].max()))
    assert len(differences) >= 10_000
    assert differences[:, 0].max() <= TOLERANCE


def test_the_random_models_meet_hash_collisions_and_repeated_features(differences: np.ndarray) -> None:
    assert (differences[:, 1] > differences[:, 2]).sum() > 1_000
    assert (differences[:, 2] > 0).sum() > 1_000


def test_one_wrong_weight_would_be_seen() -> None:
    rng = np.random.default_rng(SEED)
    n_seen, n_cases = 0, 300
    for table, reference, shared, actions in islice(_cases(rng), n_cases):
        stacked = _stacked(actions)
        before = table.weights.copy()
        reached = rng.choice(touched_weights(table.spec, shared, actions[0]))
        table.weights[reached] += 0.01
        moved = np.abs(table.score(shared, stacked) - reference.score(before, shared, stacked)).max()
        table.weights[:] = before
        n_seen += bool(moved > TOLERANCE)
    # Features that collide with opposite values may cancel.
    assert n_seen > 0.98 * n_cases


class Scored:
    """A served model with random weights, and features to score."""

    def __init__(self, *, interactions: tuple[tuple[str, str], ...] = (("user", "item"),)) -> None:
        rng = np.random.default_rng(3)
        spec = ModelSpec(bits=12, learning_rate=0.1, interactions=interactions, schema_version="v")
        self.metrics = Metrics()
        self.model = ServedModel("films", spec, self.metrics)
        weights = rng.normal(size=1 << 12).astype("<f4")
        snapshot = ModelSnapshot(
            epoch=1,
            version=7,
            stream_id="0-0",
            schema_version="v",
            bits=12,
            arguments=spec.arguments(),
            indices=np.arange(1 << 12, dtype="<u4").tobytes(),
            values=weights.tobytes(),
        )
        self.model.serve(self.model.build(snapshot))
        self.shared = {"user": Encoded((), np.array([11, 12], np.uint32), np.ones(2, np.float32))}
        item = Encoded((), np.array([21, 22], np.uint32), np.ones(2, np.float32))
        self.actions = _stacked([{"item": item}])
        self.by_vw = VwReference(spec).score(weights, self.shared, self.actions)

    def alarms(self) -> float:
        value = self.metrics.registry.get_sample_value("hone_scorer_mismatches_total")
        assert value is not None
        return value


def test_a_table_that_agrees_raises_no_alarm() -> None:
    scored = Scored()
    for _ in range(1_001):
        scores = scored.model.score(scored.shared, scored.actions)
    assert scores == pytest.approx(scored.by_vw, abs=1e-6)
    assert scored.alarms() == 0.0
    assert scored.model._trusts_table


def test_a_planted_difference_disables_the_table_raises_the_alarm_and_leaves_scoring_to_vw() -> None:
    scored = Scored()
    honest = scored.model._table.score

    class Planted(WeightTable):
        """Reads one weight that the model does not have."""

        def score(self, shared: object, actions: object) -> np.ndarray:
            self.weights[11] += 0.5
            try:
                return honest(shared, actions)
            finally:
                self.weights[11] -= 0.5

    scored.model._table.__class__ = Planted
    first = scored.model.score(scored.shared, scored.actions)
    assert scored.alarms() == 1.0
    # The very request that found it is already answered by VW, and so is every later one.
    assert first.tolist() == scored.by_vw.tolist()
    for _ in range(5):
        assert scored.model.score(scored.shared, scored.actions).tolist() == scored.by_vw.tolist()
    assert scored.alarms() == 1.0
    assert not scored.model._trusts_table
    assert np.abs(scored.model._table.score(scored.shared, scored.actions) - scored.by_vw).max() > 0.4
