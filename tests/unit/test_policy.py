"""The vectorised scorer gives what VW gives; the touched weights are those that learning can change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit._native import score_actions
from bandit.learner import Learner
from bandit.policy import (
    ActionFeatures,
    ModelSpec,
    VwReference,
    WeightTable,
    row_features,
    score_terms,
    touched_weights,
)
from bandit.vw_format import CONSTANT_INDEX, Encoded, encode

PAIRS = [(first, second) for first in ("context", "user") for second in ("item", "dynamic")]
SHARED, ACTION = ("context", "user", "position"), ("item", "dynamic")


@st.composite
def _worlds(draw: st.DrawFn) -> tuple[ModelSpec, dict[str, Encoded], list[dict[str, Encoded]], int]:
    """A model's form, shared features, actions' features, and a seed of weights; small tables collide often."""
    spec = ModelSpec(
        bits=draw(st.sampled_from([6, 10, 18])),
        learning_rate=0.1,
        interactions=tuple(draw(st.lists(st.sampled_from(PAIRS), unique=True))),
        schema_version="v",
    )
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))

    def features(namespace: str, least: int) -> Encoded:
        n = draw(st.integers(least, 6))
        values = rng.normal(size=n) * (rng.random(n) < 0.9)
        return encode(namespace, {f"f{rng.integers(50)}-{k}": float(value) for k, value in enumerate(values)})

    shared = {name: features(name, 0) for name in SHARED if draw(st.booleans())}
    used = [name for name in ACTION if draw(st.booleans())] or ["item"]
    actions = [{name: features(name, 0) for name in used} for _ in range(draw(st.integers(1, 5)))]
    return spec, shared, actions, draw(st.integers(0, 10**6))


def _stacked(actions: list[dict[str, Encoded]]) -> dict[str, ActionFeatures]:
    return {name: ActionFeatures.stack([action[name] for action in actions]) for name in actions[0]}


@settings(deadline=None, derandomize=True, max_examples=100)
@given(world=_worlds())
def test_the_table_scores_as_vw_does(
    world: tuple[ModelSpec, dict[str, Encoded], list[dict[str, Encoded]], int],
) -> None:
    spec, shared, actions, seed = world
    stacked = _stacked(actions)
    table = WeightTable(spec)
    rng = np.random.default_rng(seed)
    table.weights[:] = rng.normal(size=len(table.weights)).astype(np.float32)
    # Rounding is relative to the terms of the sum, which may cancel.
    absolute = WeightTable(spec)
    absolute.weights[:] = np.abs(table.weights)
    size = -absolute.score(
        {name: Encoded(e.names, e.indices, np.abs(e.values)) for name, e in shared.items()},
        {name: ActionFeatures(a.indices, np.abs(a.values)) for name, a in stacked.items()},
    )
    scores = table.score(shared, stacked)
    reference = VwReference(spec).score(table.weights, shared, stacked)
    assert scores.dtype == reference.dtype == np.float32
    assert scores.shape == reference.shape == (len(actions),)
    assert (np.abs(scores - reference) <= 1e-6 * size).all()


@settings(deadline=None, derandomize=True, max_examples=100)
@given(world=_worlds())
def test_the_terms_of_a_score_sum_to_what_the_table_and_vw_give(
    world: tuple[ModelSpec, dict[str, Encoded], list[dict[str, Encoded]], int],
) -> None:
    spec, shared, actions, seed = world
    table = WeightTable(spec)
    table.weights[:] = np.random.default_rng(seed).normal(size=len(table.weights)).astype(np.float32)
    scores = table.score(shared, _stacked(actions))
    reference = VwReference(spec).score(table.weights, shared, _stacked(actions))
    for row, action in enumerate(actions):
        terms = score_terms(spec, shared, action)
        rewards = terms.rewards(table.weights[terms.positions])
        assert len(terms.features) == len(set(terms.features)) == len(terms.values) == len(terms.positions)
        # Rounding is relative to the terms of the sum, which may cancel.
        tolerance = 1e-6 * max(1.0, float(np.abs(rewards).sum()))
        assert rewards.sum() == pytest.approx(float(scores[row]), abs=tolerance)
        assert rewards.sum() == pytest.approx(float(reference[row]), abs=tolerance)


def test_a_term_names_the_features_that_its_weight_belongs_to() -> None:
    spec = ModelSpec(
        bits=18, learning_rate=0.1, interactions=(("user", "item"), ("context", "item")), schema_version="v"
    )
    shared = {"context": encode("context", {"c": 2.0}), "user": encode("user", {"u": 3.0, "v": 0.5})}
    action = {"item": encode("item", {"i": -1.0, "j": 4.0}), "dynamic": encode("dynamic", {"d": 1.0})}
    terms = score_terms(spec, shared, action)
    value_of = {"c": 2.0, "u": 3.0, "v": 0.5, "i": -1.0, "j": 4.0, "d": 1.0}
    pairs = [{"u", "i"}, {"u", "j"}, {"v", "i"}, {"v", "j"}, {"c", "i"}, {"c", "j"}]
    names = [{name for _, name in features} for features in terms.features]
    assert sorted(map(sorted, names)) == sorted(map(sorted, [set(), *({name} for name in value_of), *pairs]))
    for features, value, position in zip(terms.features, terms.values, terms.positions, strict=True):
        assert value == np.prod([value_of[name] for _, name in features])
        # With this one weight alone, an action has a score exactly if the named features are all there.
        table = WeightTable(spec)
        table.weights[position] = 1.0
        assert table.score(shared, _stacked([action])).tolist() == [-value]
        for namespace, name in features:
            less = {
                n: encode(n, {f: value_of[f] for f in e.names if (n, f) != (namespace, name)})
                for n, e in (*shared.items(), *action.items())
            }
            without = table.score({n: less[n] for n in shared}, _stacked([{n: less[n] for n in action}]))
            assert without.tolist() == [0.0]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(world=_worlds(), n_learned=st.integers(1, 4))
def test_touched_weights_cover_every_weight_that_learning_changes(
    world: tuple[ModelSpec, dict[str, Encoded], list[dict[str, Encoded]], int], n_learned: int
) -> None:
    spec, shared, actions, _ = world
    learner = Learner(spec)
    before = _dense(learner)
    for turn in range(n_learned):
        action = actions[turn % len(actions)]
        learner.learn(shared, action, reward=1.0 - 0.3 * turn, propensity=0.5)
        after = _dense(learner)
        changed = set(np.flatnonzero(before != after).tolist())
        touched = touched_weights(spec, shared, action)
        assert changed
        assert changed <= set(touched.tolist())
        n_terms = 1 + sum(len(e.indices) for e in (*shared.values(), *action.values()))
        n_terms += sum(
            len(shared[a].indices) * len(action[b].indices) for a, b in spec.interactions if a in shared and b in action
        )
        assert len(touched) == n_terms
        before = after


def _dense(learner: Learner) -> np.ndarray:
    weights = np.zeros(1 << learner.spec.bits, dtype=np.float32)
    change = learner.all_weights()
    weights[change.indices] = change.values
    return weights


def test_a_score_is_the_expected_reward_so_better_is_up() -> None:
    spec = ModelSpec(bits=18, learning_rate=0.5, interactions=(), schema_version="v")
    learner, table = Learner(spec), WeightTable(spec)
    items = {name: {"item": encode("item", {name: 1.0})} for name in ("good", "bad")}
    for _ in range(50):
        for name, reward in (("good", 1.0), ("bad", -1.0)):
            learner.learn({}, items[name], reward=reward, propensity=1.0)
    change = learner.all_weights()
    table.apply(change.indices, change.values, version=9)
    good, bad = table.score({}, _stacked([items["good"], items["bad"]])).tolist()
    assert good == pytest.approx(1.0, abs=0.1)
    assert bad == pytest.approx(-1.0, abs=0.1)
    assert table.version == 9


def test_interactions_use_the_pair_that_is_declared_and_no_other() -> None:
    features = {name: encode(name, {"x": 1.0}) for name in (*SHARED, *ACTION)}
    shared = {name: features[name] for name in SHARED}
    stacked = {name: ActionFeatures.stack([features[name]]) for name in ACTION}
    for pair in PAIRS:
        spec = ModelSpec(bits=18, learning_rate=0.1, interactions=(pair,), schema_version="v")
        table = WeightTable(spec)
        linear = {CONSTANT_INDEX & (len(table.weights) - 1)}
        linear |= {int(e.indices[0]) & (len(table.weights) - 1) for e in features.values()}
        (crossed,) = set(touched_weights(spec, shared, {n: features[n] for n in ACTION}).tolist()) - linear
        table.weights[crossed] = 1.0
        assert table.score(shared, stacked).tolist() == [-1.0]


def test_padding_changes_no_score() -> None:
    spec = ModelSpec(bits=10, learning_rate=0.1, interactions=(("user", "item"),), schema_version="v")
    table = WeightTable(spec)
    table.weights[:] = 1.0
    user = {"user": encode("user", {"u": 1.0})}
    short, long = encode("item", {"a": 1.0}), encode("item", {"a": 1.0, "b": 2.0, "c": 3.0})
    alone = table.score(user, {"item": ActionFeatures.stack([short])})
    together = table.score(user, {"item": ActionFeatures.stack([short, long])})
    assert together[0] == alone[0] == -4.0
    padded = row_features(ActionFeatures.stack([short, long]), 0)
    assert padded.indices.tolist() == short.indices.tolist()


def test_values_outside_the_table_or_not_finite_are_refused_and_change_nothing() -> None:
    table = WeightTable(ModelSpec(bits=4, learning_rate=0.1, interactions=(), schema_version="v"))
    with pytest.raises(ValueError, match="below 16, got 16"):
        table.apply(np.array([0, 16], dtype=np.uint32), np.ones(2, dtype=np.float32), version=1)
    with pytest.raises(ValueError, match="finite"):
        table.apply(np.array([0], dtype=np.uint32), np.array([np.nan], dtype=np.float32), version=1)
    assert table.version == 0
    assert not table.weights.any()
    table.apply(np.array([], dtype=np.uint32), np.array([], dtype=np.float32), version=2)
    assert table.version == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.ones(3, np.float32)}, "2\\^bits"),
        ({"shared": [(np.zeros(2, np.uint32), np.ones(1, np.float32))]}, r"shared features must agree"),
        ({"actions": [(np.zeros((4, 1), np.uint32), np.ones((4, 2), np.float32), [])]}, r"actions must agree"),
        ({"actions": [(np.zeros(4, np.uint32), np.ones(4, np.float32), [])]}, r"actions must agree"),
        ({"actions": []}, "must have a namespace"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_not_read_past(change: dict[str, Any], message: str) -> None:
    fits: dict[str, Any] = {
        "weights": np.ones(4, np.float32),
        "shared": [(np.zeros(1, np.uint32), np.ones(1, np.float32))],
        "actions": [(np.zeros((4, 1), np.uint32), np.ones((4, 1), np.float32), [])],
    }
    assert score_actions(constant_index=0, prime=1, **fits).tolist() == [-3.0] * 4
    with pytest.raises(ValueError, match=message):
        score_actions(constant_index=0, prime=1, **{**fits, **change})


def test_an_interaction_with_a_namespace_that_is_not_there_is_refused() -> None:
    actions = [(np.zeros((4, 1), np.uint32), np.ones((4, 1), np.float32), [1])]
    with pytest.raises(IndexError):
        score_actions(np.ones(4, np.float32), constant_index=0, prime=1, shared=[], actions=actions)
