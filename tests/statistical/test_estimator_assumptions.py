"""Each estimator is exact where its assumption holds and wrong where it does not, by summing over every case.

Nothing is drawn, so nothing can be a false alarm. The figures of the failures are those that the documentation of an
estimator warns of.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bandit.estimators import (
    ActionRows,
    Estimate,
    clipped_ips,
    direct_method,
    doubly_robust,
    ips,
    mips,
    self_normalised_doubly_robust,
    shrunk_doubly_robust,
    snips,
    switch_doubly_robust,
)
from bandit.slate_estimators import SlateRows, cascade_doubly_robust, iips, one_slot_deviation, rips, slate_ips
from tests.ope_worlds import ActionWorld, SlateWorld, exact, slate_world

WRONG_MODEL = ActionWorld(model_error=0.2)
WEIGHT_FREE = {
    "ips": ips,
    "snips": snips,
    "dr": doubly_robust,
    "sndr": self_normalised_doubly_robust,
}


def of_actions(world: ActionWorld, estimator: Callable[[ActionRows], Estimate], *, by_cluster: bool = False) -> float:
    rows, probabilities = world.cell_rows(by_cluster=by_cluster)
    return exact(estimator(rows), probabilities)


@pytest.mark.parametrize("name", WEIGHT_FREE)
def test_with_right_weights_the_model_may_be_wrong(name: str) -> None:
    assert of_actions(WRONG_MODEL, WEIGHT_FREE[name]) == pytest.approx(WRONG_MODEL.truth, abs=1e-12)


@pytest.mark.parametrize("name", WEIGHT_FREE)
def test_missing_support_biases_every_weighted_estimator(name: str) -> None:
    rows, probabilities = WRONG_MODEL.cell_rows()
    _, actions, _ = WRONG_MODEL.cells()
    logged = WRONG_MODEL.tables["cluster"][actions] < 2  # the last cluster, where the model errs, was never logged
    kept = ActionRows(
        rows.rewards[logged],
        rows.weights[logged],
        model_logged=rows.model_logged[logged],
        model_target=rows.model_target[logged],
    )
    value = exact(WEIGHT_FREE[name](kept), probabilities[logged] / probabilities[logged].sum())
    assert abs(value - WRONG_MODEL.truth) > 0.005


def test_the_direct_method_is_as_right_as_its_model() -> None:
    assert of_actions(ActionWorld(), direct_method) == pytest.approx(ActionWorld().truth, abs=1e-12)
    wrong = of_actions(WRONG_MODEL, direct_method)
    assert wrong - WRONG_MODEL.truth > 0.02


def test_clipping_is_exact_above_the_largest_weight_and_biased_down_below_it() -> None:
    world = ActionWorld()
    at_most = of_actions(world, lambda rows: clipped_ips(rows, clip=world.largest_weight))
    assert at_most == pytest.approx(world.truth, abs=1e-12)
    assert of_actions(world, lambda rows: clipped_ips(rows, clip=2.0)) < world.truth - 0.02


@pytest.mark.parametrize(
    "estimator",
    [
        lambda rows: switch_doubly_robust(rows, threshold=2.0),
        lambda rows: shrunk_doubly_robust(rows, shrinkage=4.0),
    ],
)
def test_switching_and_shrinking_need_a_right_model_where_weights_are_cut(
    estimator: Callable[[ActionRows], Estimate],
) -> None:
    assert of_actions(ActionWorld(), estimator) == pytest.approx(ActionWorld().truth, abs=1e-12)
    assert abs(of_actions(WRONG_MODEL, estimator) - WRONG_MODEL.truth) > 0.002


def test_switching_above_the_largest_weight_and_endless_shrinkage_are_doubly_robust() -> None:
    rows, _ = WRONG_MODEL.cell_rows()
    terms = doubly_robust(rows).terms
    assert np.array_equal(switch_doubly_robust(rows, threshold=WRONG_MODEL.largest_weight).terms, terms)
    assert np.array_equal(shrunk_doubly_robust(rows, shrinkage=np.inf).terms, terms)
    assert np.array_equal(shrunk_doubly_robust(rows, shrinkage=0.0).terms, direct_method(rows).terms)


def test_marginalised_weights_need_rewards_without_a_direct_effect() -> None:
    no_direct_effect = ActionWorld(direct_effect=0.0)
    right = of_actions(no_direct_effect, mips, by_cluster=True)
    assert right == pytest.approx(no_direct_effect.truth, abs=1e-12)
    wrong = of_actions(ActionWorld(direct_effect=0.15), mips, by_cluster=True)
    assert abs(wrong - ActionWorld(direct_effect=0.15).truth) > 0.02


def test_marginalised_weights_vary_less() -> None:
    world = ActionWorld(direct_effect=0.0)
    (plain, probabilities), (marginal, _) = world.cell_rows(), world.cell_rows(by_cluster=True)
    assert probabilities @ marginal.weights**2 < probabilities @ plain.weights**2


# Slates -----------------------------------------------------------------------------------------------------------


def slate_estimators(
    world: SlateWorld, cells: np.ndarray | slice = slice(None)
) -> dict[str, Callable[[SlateRows], Estimate]]:
    """Estimators of rows that stand for these cells."""
    t = world.tables
    marginal, logged, target = (t[name][cells] for name in ("marginal", "model_logged", "model_target"))
    return {
        "slate_ips": slate_ips,
        "sn_slate_ips": lambda rows: slate_ips(rows, self_normalised=True),
        "rips": rips,
        "sn_rips": lambda rows: rips(rows, self_normalised=True),
        "iips": lambda rows: iips(rows, marginal_weights=marginal),
        "sn_iips": lambda rows: iips(rows, marginal_weights=marginal, self_normalised=True),
        "cascade_dr": lambda rows: cascade_doubly_robust(rows, model_logged=logged, model_target=target),
        "sn_cascade_dr": lambda rows: cascade_doubly_robust(
            rows, model_logged=logged, model_target=target, self_normalised=True
        ),
    }


def of_slates(world: SlateWorld, name: str) -> float:
    rows, probabilities = world.cell_rows()
    estimate = slate_estimators(world)[name](rows)
    assert estimate.name == name
    return exact(estimate, probabilities)


ANY, OWN = ("slate_ips", "sn_slate_ips"), ("iips", "sn_iips")
CASCADE = ("rips", "sn_rips", "cascade_dr", "sn_cascade_dr")


@pytest.mark.parametrize(
    ("attention", "name"),
    [("own", name) for name in ANY + CASCADE + OWN]
    + [("above", name) for name in ANY + CASCADE]
    + [("below", name) for name in ANY],
)
def test_a_slate_estimator_is_exact_under_its_own_assumption(attention: str, name: str) -> None:
    world = slate_world(attention, 0.3)
    assert of_slates(world, name) == pytest.approx(world.truth, abs=1e-12)


@pytest.mark.parametrize(
    ("attention", "name"), [("above", name) for name in OWN] + [("below", name) for name in CASCADE + OWN]
)
def test_a_slate_estimator_is_wrong_when_slots_affect_each_other_as_it_does_not_allow(
    attention: str, name: str
) -> None:
    world = slate_world(attention, 0.3)
    assert abs(of_slates(world, name) - world.truth) > 0.01


def test_independent_weights_are_wrong_when_fed_with_the_conditional_propensities() -> None:
    world = slate_world("own")
    rows, probabilities = world.cell_rows()
    conditional = rows.weights * rows.discovery_weights[:, None]
    wrong = exact(iips(rows, marginal_weights=conditional), probabilities)
    assert abs(wrong - world.truth) > 0.01
    assert of_slates(world, "iips") == pytest.approx(world.truth, abs=1e-12)


@pytest.mark.parametrize("name", ANY + CASCADE)
def test_leaving_out_the_discovery_coin_is_wrong(name: str) -> None:
    world = slate_world("above", 0.3)
    rows, probabilities = world.cell_rows()
    without = SlateRows(rows.rewards, rows.weights, rows.position_weights, np.ones(len(rows.rewards)))
    value = exact(slate_estimators(world)[name](without), probabilities)
    assert abs(value - world.truth) > 0.003


def test_one_slot_deviation_is_the_value_of_logging_before_and_target_at_the_slot() -> None:
    world = slate_world("above")
    t = world.tables
    rows, probabilities = world.cell_rows()
    for slot in range(world.n_slots):
        only = np.eye(world.n_slots)[slot]
        here = SlateRows(rows.rewards, rows.weights, only, np.ones(len(rows.rewards)))
        # Slots after this one sum out of the hybrid's value, so they may stay as they were logged.
        hybrid = probabilities * t["slot"][1, :, slot] / t["slot"][0, :, slot]
        value = exact(one_slot_deviation(here), probabilities)
        assert value == pytest.approx(hybrid @ t["reward"][:, slot], abs=1e-12)
    assert abs(exact(one_slot_deviation(rows), probabilities) - world.truth) > 0.003


def test_a_right_model_takes_variance_away() -> None:
    world = slate_world("above")
    rows, probabilities = world.cell_rows()
    with_model, without = slate_estimators(world)["cascade_dr"](rows).terms, rips(rows).terms
    spread = [probabilities @ (terms - probabilities @ terms) ** 2 for terms in (with_model, without)]
    assert spread[0] < 0.5 * spread[1]
