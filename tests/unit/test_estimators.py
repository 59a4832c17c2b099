from __future__ import annotations

import json

import numpy as np
import pytest
from estimators.bandits import ips as vw_ips
from estimators.bandits import snips as vw_snips
from estimators.ccb import pdis_cressieread as vw_pdis
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bandit.estimators import (
    ActionRows,
    clipped_ips,
    direct_method,
    doubly_robust,
    ips,
    marginal_weights,
    mips,
    self_normalised_doubly_robust,
    shrunk_doubly_robust,
    snips,
    switch_doubly_robust,
)
from bandit.slate_estimators import SlateRows, cascade_doubly_robust, iips, rips, slate_ips
from bandit.support import Support
from tests.make_obp_golden import CLIP, GOLDEN, SHRINKAGE, THRESHOLD, action_inputs, slate_inputs

OBP = json.loads(GOLDEN.read_text())
SAME = {"rel": 0.0, "abs": 1e-9}


def action_rows() -> ActionRows:
    inputs = action_inputs()
    rows = np.arange(len(inputs["action"]))
    logged = (rows, inputs["position"], inputs["action"])
    at_position = (rows, inputs["position"])
    return ActionRows(
        inputs["reward"],
        inputs["target"][logged] / inputs["logging"][logged],
        model_logged=inputs["model"][logged],
        model_target=(inputs["target"][at_position] * inputs["model"][at_position]).sum(axis=1),
    )


def embedded_rows() -> ActionRows:
    inputs = action_inputs()
    at_position = (np.arange(len(inputs["action"])), inputs["position"])
    weights = marginal_weights(
        inputs["target"][at_position],
        inputs["logging"][at_position],
        embedding_pmf=inputs["embedding_pmf"],
        embeddings=inputs["embedding"],
    )
    return ActionRows(inputs["reward"], weights)


def slate_rows() -> tuple[SlateRows, dict[str, np.ndarray]]:
    inputs = slate_inputs()
    logged = (*np.indices(inputs["action"].shape), inputs["action"])
    n, n_slots = inputs["reward"].shape
    rows = SlateRows(
        inputs["reward"], inputs["target"][logged] / inputs["logging"][logged], np.ones(n_slots), np.ones(n)
    )
    more = {
        "marginal_weights": inputs["marginal_target"] / inputs["marginal_logging"],
        "model_logged": inputs["model"][logged],
        "model_target": (inputs["target"] * inputs["model"]).sum(axis=2),
    }
    return rows, more


def test_estimators_of_actions_equal_those_of_the_open_bandit_pipeline() -> None:
    rows = action_rows()
    found = [
        ips(rows),
        snips(rows),
        clipped_ips(rows, clip=CLIP),
        direct_method(rows),
        doubly_robust(rows),
        self_normalised_doubly_robust(rows),
        switch_doubly_robust(rows, threshold=THRESHOLD),
        shrunk_doubly_robust(rows, shrinkage=SHRINKAGE),
        mips(embedded_rows()),
    ]
    assert {estimate.name: estimate.value for estimate in found} == pytest.approx(OBP["actions"], **SAME)


def test_estimators_of_slates_equal_those_of_the_open_bandit_pipeline() -> None:
    rows, more = slate_rows()
    model = {name: more[name] for name in ("model_logged", "model_target")}
    found = [cascade_doubly_robust(rows, **model)]
    for normalised in (False, True):
        found += [slate_ips(rows, self_normalised=normalised), rips(rows, self_normalised=normalised)]
        found += [iips(rows, marginal_weights=more["marginal_weights"], self_normalised=normalised)]
    assert {estimate.name: estimate.value for estimate in found} == pytest.approx(OBP["slates"], **SAME)


def test_ips_and_snips_equal_those_of_vw_estimators() -> None:
    inputs, rows = action_inputs(), action_rows()
    logged = (np.arange(len(inputs["action"])), inputs["position"], inputs["action"])
    theirs = {"ips": vw_ips.Estimator(), "snips": vw_snips.Estimator()}
    for p_log, reward, p_pred in zip(inputs["logging"][logged], rows.rewards, inputs["target"][logged], strict=True):
        for estimator in theirs.values():
            estimator.add_example(p_log, reward, p_pred)
    ours = {"ips": ips(rows).value, "snips": snips(rows).value}
    assert ours == pytest.approx({name: estimator.get() for name, estimator in theirs.items()}, **SAME)


def test_rips_sees_the_prefix_weights_of_vw_estimators() -> None:
    """Its values differ (empirical likelihood), the weighted rewards that it sums by slot do not."""
    rows, _ = slate_rows()
    theirs = vw_pdis.Estimator()
    for weights, rewards in zip(rows.weights, rows.rewards, strict=True):
        theirs.add_example([1.0] * len(weights), rewards.tolist(), weights.tolist())
    sums = [float(slot.sumwr) for slot in theirs._impl]
    assert sum(sums) / len(rows.rewards) == pytest.approx(rips(rows).value, **SAME)


def test_sums_over_parts_of_a_log_give_the_value_of_the_whole() -> None:
    rows = action_rows()
    whole = self_normalised_doubly_robust(rows)
    parts = [
        self_normalised_doubly_robust(
            ActionRows(
                rows.rewards[part],
                rows.weights[part],
                model_logged=rows.model_logged[part],
                model_target=rows.model_target[part],
            )
        )
        for part in (slice(0, 100), slice(100, None))
    ]
    assert parts[0].sums() + parts[1].sums() == pytest.approx(whole.sums())
    merged = parts[0].support + parts[1].support
    assert merged.figures() == pytest.approx(whole.support.figures())


def test_unit_position_weights_pick_one_slot() -> None:
    rows, _ = slate_rows()
    only = SlateRows(rows.rewards, rows.weights, np.array([1.0, 0.0, 0.0]), rows.discovery_weights)
    assert rips(only).value == pytest.approx(float((rows.weights[:, 0] * rows.rewards[:, 0]).mean()))


# Support ----------------------------------------------------------------------------------------------------------


def test_equal_weights_are_worth_all_their_rows_and_one_heavy_weight_is_worth_one() -> None:
    assert Support.of(np.ones(500)).ess == pytest.approx(500.0)
    assert Support.of(np.eye(500)[0]).ess == pytest.approx(1.0)


def test_a_log_evaluated_on_its_own_policy_is_never_refused() -> None:
    rounded = np.ones(1000) + np.float64(np.float32(0.1) - 0.1)  # a float32 propensity of 0.1 in the log
    assert Support.of(np.ones(1000)).refusal is None
    assert Support.of(rounded).refusal is None


def test_few_effective_rows_are_refused_with_both_figures() -> None:
    reason = Support.of(np.concatenate([np.full(9_901, 1e-4), np.full(99, 101.0)])).refusal
    assert reason is not None
    assert "effective sample size must be at least 100" in reason
    assert "largest weight 101" in reason


def test_a_mean_weight_far_from_one_is_refused() -> None:
    weights = np.tile([0.0, 1.8], 5_000)  # the mean is 0.9: a tenth of the target policy has no support
    assert "mean weight must be within 3 standard errors of 1, got 0.9000" in (Support.of(weights).refusal or "")
    assert Support.of(weights / 0.9).refusal is None


def test_mean_weight_is_refused_on_both_sides_of_three_standard_errors() -> None:
    noise = np.tile([-1.0, 1.0], 5_000)
    error = float(noise.std(ddof=1) / 100.0)
    for n_errors, refused in ((2.9, False), (-2.9, False), (3.1, True), (-3.1, True)):
        assert (Support.of(1.0 + noise + n_errors * error).refusal is not None) is refused


def test_a_slate_is_refused_for_its_worst_slot() -> None:
    weights = np.column_stack([np.ones(400), np.tile([0.0, 2.0], 200), np.where(np.arange(400) == 1, 100.0, 0.75)])
    rows = SlateRows(np.zeros((400, 3)), weights, np.ones(3), np.ones(400))
    assert rips(rows).refusal is not None
    assert "(slot 2)" in (rips(rows).refusal or "")
    assert rips(rows).support == rips(rows).supports[2]


def test_the_discovery_coin_is_part_of_every_weight() -> None:
    ones = np.ones((400, 2))
    unsupported = np.tile([0.0, 1.0], 200)  # half of the logged position sets never happen under the target share
    rows = SlateRows(ones, ones, np.ones(2), unsupported)
    assert slate_ips(rows).value == pytest.approx(1.0)
    assert all("mean weight" in (estimate.refusal or "") for estimate in (slate_ips(rows), rips(rows)))


def test_clipped_rows_are_counted_from_raw_weights() -> None:
    rows = ActionRows(np.ones(4), np.array([0.5, 1.0, 1.5, 4.0]))
    assert clipped_ips(rows, clip=1.0).support.clipped_share == 0.5
    assert clipped_ips(rows, clip=1.0).support.max_weight == 4.0
    assert ips(rows).support.clipped_share == 0.0


# Properties -------------------------------------------------------------------------------------------------------

_WEIGHTS = arrays(np.float64, 20, elements=st.floats(0.01, 100.0))
_REWARDS = arrays(np.float64, 20, elements=st.floats(0.0, 1.0))


@given(_WEIGHTS, _REWARDS)
def test_self_normalised_values_stay_within_the_rewards(weights: np.ndarray, rewards: np.ndarray) -> None:
    value = snips(ActionRows(rewards, weights)).value
    assert rewards.min() - 1e-9 <= value <= rewards.max() + 1e-9


@given(_WEIGHTS, _REWARDS, st.floats(0.1, 100.0))
def test_clipping_never_raises_the_value_of_rewards_above_zero(
    weights: np.ndarray, rewards: np.ndarray, clip: float
) -> None:
    rows = ActionRows(rewards, weights)
    assert clipped_ips(rows, clip=clip).value <= ips(rows).value + 1e-12


# Refused inputs ---------------------------------------------------------------------------------------------------


def test_wrong_rows_are_named() -> None:
    good = np.ones(3)
    for weights, message in (
        (np.array([1.0, -0.5, 1.0]), r"weights must be at least 0, got -0.5 \(row 1\)"),
        (np.array([1.0, 1.0, np.nan]), r"weights must be finite, got nan \(row 2\)"),
        (np.array([np.inf, 1.0, 1.0]), r"weights must be finite, got inf \(row 0\)"),
        (np.ones(2), r"weights must have shape \(3,\), got \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ActionRows(good, weights)
    with pytest.raises(ValueError, match="must not be empty"):
        ActionRows(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="discovery_weights must have shape"):
        SlateRows(np.ones((3, 2)), np.ones((3, 2)), np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="marginal_weights must be at least 0"):
        iips(SlateRows(np.ones((3, 2)), np.ones((3, 2)), np.ones(2), good), marginal_weights=-np.ones((3, 2)))


def test_estimators_that_need_a_model_say_so() -> None:
    rows = ActionRows(np.ones(3), np.ones(3))
    for estimator in (direct_method, doubly_robust, self_normalised_doubly_robust):
        with pytest.raises(ValueError, match="needs a reward model"):
            estimator(rows)


def test_parameters_out_of_range_are_named() -> None:
    rows = action_rows()
    for call, message in (
        (lambda: clipped_ips(rows, clip=0.0), "clip must be above 0"),
        (lambda: switch_doubly_robust(rows, threshold=-1.0), "threshold must be above 0"),
        (lambda: shrunk_doubly_robust(rows, shrinkage=np.nan), "shrinkage must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_an_embedding_that_was_never_logged_is_refused() -> None:
    with pytest.raises(ValueError, match=r"probability above 0, got 0 \(row 0\)"):
        marginal_weights(
            np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]]), embedding_pmf=np.eye(2), embeddings=np.array([1])
        )
