"""Learning: at full rate from the chosen action alone, the same before and after a restart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vowpal_wabbit_next import CBLabel, Example, SimpleLabel, Workspace

from bandit._native import WeightSet
from bandit.learner import MIN_LEARNING_PROPENSITY, Learner
from bandit.policy import ModelSpec, WeightTable
from bandit.vw_format import INTERACTION_PRIME, Encoded, ExamplePool, encode, predict_then_learn_cost

SPEC = ModelSpec(
    bits=14, learning_rate=0.05, interactions=(("user", "item"), ("context", "dynamic")), schema_version="v"
)
Outcome = tuple[dict[str, Encoded], dict[str, Encoded], float, float]


def _outcomes(n: int, seed: int) -> list[Outcome]:
    rng = np.random.default_rng(seed)
    return [
        (
            {
                "context": encode("context", {f"hour={rng.integers(24)}": 1.0}),
                "user": encode("user", {f"likes={rng.integers(9)}": float(rng.normal()), "age": 0.4}),
                "position": encode("position", {f"slot={rng.integers(5)}": 1.0}),
            },
            {
                "item": encode("item", {f"id={rng.integers(20)}": 1.0}),
                "dynamic": encode("dynamic", {"affinity": float(rng.normal())}),
            },
            float(rng.integers(-1, 2)),
            float(rng.choice([0.02, 0.3, 0.9, 1.0])),
        )
        for _ in range(n)
    ]


def _learn(learner: Learner, outcomes: list[Outcome]) -> None:
    for shared, action, reward, propensity in outcomes:
        learner.learn(shared, action, reward=reward, propensity=propensity)


def _state(learner: Learner) -> np.ndarray:
    """Weights and adaptive state; the fourth column is scratch."""
    return learner._workspace.weights()[:, 0, :3].copy()


@settings(deadline=None, derandomize=True, max_examples=25)
@given(seed=st.integers(0, 10**6), cuts=st.sets(st.integers(0, 40), min_size=1, max_size=3))
def test_learning_on_after_a_restart_equals_never_stopping(seed: int, cuts: set[int]) -> None:
    outcomes = _outcomes(40, seed)
    undisturbed = Learner(SPEC)
    _learn(undisturbed, outcomes)
    restarted = Learner(SPEC)
    done = 0
    for cut in sorted(cuts):
        _learn(restarted, outcomes[done:cut])
        restarted = Learner(SPEC, restarted.serialize())
        done = cut
    _learn(restarted, outcomes[done:])
    assert _state(undisturbed).any(axis=0).all()
    assert (_state(restarted) == _state(undisturbed)).all()


def test_one_action_learns_as_plain_regression_on_costs_weighted_by_one_over_the_propensity() -> None:
    learner = Learner(SPEC)
    plain = Workspace(["--power_t", "0", "-l", "0.05", "-b", "14", "-q", "UI", "-q", "CD", "--quiet"])
    for shared, action, reward, propensity in _outcomes(60, seed=3):
        learner.learn(shared, action, reward=reward, propensity=propensity)
        example = Example()
        example.set_label(SimpleLabel(label=-reward, weight=1.0 / max(propensity, MIN_LEARNING_PROPENSITY)))
        for letter, encoded in zip("CUPID", (*shared.values(), *action.values()), strict=True):
            example[ord(letter)].push_many_features(encoded.indices.astype(np.uint64), encoded.values)
        plain.learn_one(example)
    ours, theirs = _state(learner)[:, 0], plain.weights()[:, 0, 0]
    assert np.count_nonzero(ours) > 100
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_many_actions_in_the_example_would_learn_a_greedy_pick_at_a_fraction_of_the_rate() -> None:
    shared, action, _, _ = _outcomes(1, seed=0)[0]
    learner = Learner(SPEC)
    learner.learn(shared, action, reward=1.0, propensity=0.9)
    pool, workspace = ExamplePool(), Workspace(SPEC.arguments())
    examples = [pool.fill_shared(shared), pool.fill_action(0, action, label=CBLabel(label=(-1.0, 0.9)))]
    examples += [
        pool.fill_action(other, {"item": encode("item", {f"other={other}": 1.0})}, label=CBLabel())
        for other in range(1, 20)
    ]
    predict_then_learn_cost(workspace, examples)
    full = np.linalg.norm(_state(learner)[:, 0])
    shrunk = np.linalg.norm(workspace.weights()[:, 0, 0])
    assert 0.0 < shrunk < full / 5


def test_small_propensities_are_clipped_so_that_no_weight_exceeds_twenty() -> None:
    shared, action, _, _ = _outcomes(1, seed=0)[0]
    states = []
    for propensity in (1e-9, MIN_LEARNING_PROPENSITY, 0.5):
        learner = Learner(SPEC)
        learner.learn(shared, action, reward=1.0, propensity=propensity)
        states.append(_state(learner))
    assert (states[0] == states[1]).all()
    assert not (states[1] == states[2]).all()


@settings(deadline=None, derandomize=True, max_examples=25)
@given(seed=st.integers(0, 10**6), batches=st.lists(st.integers(0, 6), min_size=1, max_size=6))
def test_applied_changes_add_up_to_the_learners_weights(seed: int, batches: list[int]) -> None:
    learner, table = Learner(SPEC), WeightTable(SPEC)
    outcomes = _outcomes(sum(batches), seed)
    for version, size in enumerate(batches, start=1):
        _learn(learner, outcomes[:size])
        outcomes = outcomes[size:]
        change = learner.change()
        assert (np.diff(change.indices.astype(np.int64)) > 0).all()
        table.apply(change.indices, change.values, version=version)
        learner.forget_change()
        assert len(learner.change().indices) == 0
    assert (table.weights == _state(learner)[:, 0]).all()
    everything = learner.all_weights()
    assert (table.weights[everything.indices] == everything.values).all()
    assert np.count_nonzero(table.weights) == len(everything.indices)


def test_a_change_is_kept_until_it_is_forgotten_and_does_not_follow_later_learning() -> None:
    learner = Learner(SPEC)
    first, second = _outcomes(2, seed=1)
    _learn(learner, [first])
    change = learner.change()
    kept = change.values.copy()
    _learn(learner, [second])
    assert (change.values == kept).all()
    assert set(change.indices.tolist()) < set(learner.change().indices.tolist())


def test_the_progressive_loss_is_counted_before_the_update() -> None:
    learner = Learner(SPEC)
    shared, action, _, _ = _outcomes(1, seed=0)[0]
    learner.learn(shared, action, reward=0.5, propensity=1.0)
    assert (learner.n_learned, learner.loss_sum) == (1, 0.25)
    learner.learn(shared, action, reward=0.5, propensity=1.0)
    assert learner.n_learned == 2
    assert 0.25 < learner.loss_sum < 0.5


@pytest.mark.parametrize("bits", [13, 15])
def test_a_model_of_another_size_is_refused(bits: int) -> None:
    other = Learner(ModelSpec(bits=bits, learning_rate=0.1, interactions=(), schema_version="v"))
    with pytest.raises(ValueError, match=f"must have {1 << SPEC.bits} weights.*'{SPEC.bits}' vs '{bits}'"):
        Learner(SPEC, other.serialize())


@settings(deadline=None, derandomize=True, max_examples=50)
@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(0, 4), min_size=1, max_size=5), bits=st.integers(2, 22))
def test_a_set_of_weights_holds_those_of_what_was_added_since_it_was_cleared(
    seed: int, sizes: list[int], bits: int
) -> None:
    rng = np.random.default_rng(seed)
    found = WeightSet(bits=bits, prime=int(INTERACTION_PRIME))
    for _ in range(2):
        expected: set[int] = set()
        for n_pairs in sizes:
            features = [_indices(rng) for _ in range(3)]
            pairs = [(_indices(rng), _indices(rng)) for _ in range(n_pairs)]
            found.add(features, pairs)
            crossed = [np.bitwise_xor.outer(one * INTERACTION_PRIME, other).ravel() for one, other in pairs]
            expected |= set((np.concatenate([*features, *crossed]) & np.uint32((1 << bits) - 1)).tolist())
            assert found.positions().tolist() == sorted(expected)
        found.clear()
        assert found.positions().tolist() == []


def _indices(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(1 << 32, size=rng.integers(5), dtype=np.uint32)
