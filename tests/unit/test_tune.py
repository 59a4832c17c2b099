"""What `hone tune` tries, what a log says of it, and how it is judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from bandit.exploration import Epsilon, Softmax, SquareCB, VwExplorer
from bandit.rules import Discovery, MaxPer, Prior
from service.cli import app
from service.config import SurfaceConfig
from service.training_rows import JoinedDecision
from simulators.logged_world import LoggedWorld, better_world
from simulators.tune.apply import command_for, live_changes
from simulators.tune.candidates import Candidate, Grid, discovery_share_of, expand, vw_candidate
from simulators.tune.judge import Evidence, Gain, Limits, Verdict, judge, pareto_front
from simulators.tune.log_values import NO_WORD, build_slates, value_of
from simulators.tune.study import LINEAR_WITHIN, linearity_of

NOW = Candidate(Epsilon(rate=0.1))
RULES = [MaxPer(column="creator", limit=2, window=10), Discovery(share=0.2), Prior(column="affinity", weight=0.1)]


def rate(value: float) -> Candidate:
    return Candidate(Epsilon(rate=value))


# --- candidates ----------------------------------------------------------------------------------------------------


def test_the_incumbent_comes_first_and_once_and_the_grid_takes_from_it_what_it_does_not_say() -> None:
    incumbent = Candidate(Epsilon(rate=0.1, shortlist=20, uniform_share=0.5), 0.2)
    found = expand(Grid(kinds=["epsilon"], rates=[0.0, 0.1, 0.3]), incumbent)
    assert found[0] == incumbent
    assert [one.rate for one in found] == [0.1, 0.0, 0.3]
    assert {one.discovery_share for one in found} == {0.2}
    assert {one.exploration.shortlist_size for one in found} == {20}
    assert {one.exploration.uniform_floor for one in found} == {0.05, 0.0, 0.15}


def test_every_combination_of_the_grid_is_tried_under_a_name_of_its_own() -> None:
    grid = Grid(
        rates=[0.1, 0.2], temperatures=[None, 0.1], gammas=[10, 100], shortlists=[10, 50], discovery_shares=[0, 0.1]
    )
    found = expand(grid, NOW)
    assert len(found) == (2 * 2 * 2 + 2 * 2 + 2 * 2) * 2
    assert len({one.name for one in found}) == len(found)


def test_a_surface_that_explores_with_a_vw_model_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be tuned"):
        expand(Grid(), Candidate(VwExplorer(model="e")))


def test_explorers_of_vw_are_tried_with_every_shortlist_and_share_under_their_arguments() -> None:
    grid = Grid(kinds=[], explorers=["--cb_explore_adf --bag 5", "--squarecb --cb_explore_adf"], shortlists=[20, 9])
    assert [one.name for one in expand(replace(grid, discovery_shares=[0, 0.1]), NOW)[1:5]] == [
        "vw --bag 5", "vw --bag 5, discovery 0.1", "vw --bag 5, top 9", "vw --bag 5, top 9, discovery 0.1",
    ]  # fmt: skip
    assert len(set(expand(grid, NOW))) == 5
    with pytest.raises(ValueError, match="must have --cb_explore_adf"):
        expand(replace(grid, explorers=["--bag 5"]), NOW)


def test_another_discovery_share_leaves_the_other_rules_and_their_order_as_they_were() -> None:
    assert Candidate(Epsilon(), 0.2).rules_from(RULES) == RULES
    assert Candidate(Epsilon(), 0.3).rules_from(RULES) == [RULES[0], Discovery(share=0.3), RULES[2]]
    assert Candidate(Epsilon(), 0.0).rules_from(RULES) == [RULES[0], RULES[2]]
    assert Candidate(Epsilon(), 0.3).rules_from(RULES[:1]) == [Discovery(share=0.3), RULES[0]]
    assert discovery_share_of(RULES) == 0.2


@pytest.mark.parametrize(
    ("chosen", "keys"),
    [
        (Candidate(Epsilon(rate=0.1), 0.2), []),
        (Candidate(Epsilon(rate=0.2), 0.2), ["surfaces.home.exploration.rate"]),
        (Candidate(Epsilon(rate=0.2, shortlist=9), 0.2), ["surfaces.home.exploration"]),
        (Candidate(Softmax(), 0.1), ["surfaces.home.exploration", "surfaces.home.rules"]),
    ],
)
def test_only_what_differs_is_set(chosen: Candidate, keys: list[str]) -> None:
    surface = SurfaceConfig(exploration=Epsilon(rate=0.1), rules=RULES)
    assert [key for key, _ in live_changes("home", surface, chosen)] == keys
    assert command_for("home", surface, chosen).count("hone config set") == len(keys)


# --- the log -------------------------------------------------------------------------------------------------------


def logged(world: LoggedWorld, n: int, *, seed: int) -> list[JoinedDecision]:
    """A log of a world as decisions with their rewards."""
    found: dict[str, JoinedDecision] = {}
    for outcome in world.log(n, seed=seed):
        found.setdefault(outcome.event_id, JoinedDecision(outcome.payload, {})).rewards[outcome.slot] = outcome.reward
    return list(found.values())


def value(decisions: Sequence[JoinedDecision], candidates: Sequence[Candidate], which: int):
    slates = build_slates(decisions, set(), candidates)
    return value_of(slates, candidates[which], rewards_in=(0.0, 1.0), confidence=0.95)


def test_the_logged_policy_is_worth_what_the_log_earned_with_weights_of_exactly_one() -> None:
    world = better_world(seed=1)
    decisions = logged(world, 300, seed=2)
    found = value(decisions, [Candidate(world.exploration)], 0)
    assert found.support.max_weight == 1.0
    earned = np.mean([joined.rewards[0] for joined in decisions])
    assert found.value.value == pytest.approx(earned, abs=1e-12)
    assert found.estimate == 0.0


def test_a_log_says_nothing_of_an_explorer_of_vw_and_so_it_is_not_recommended() -> None:
    world = better_world(seed=1)
    candidates = [Candidate(world.exploration), vw_candidate("--cb_explore_adf --bag 5")]
    found = value(logged(world, 200, seed=2), candidates, 1)
    assert found.refusal == found.one_slot_refusal == NO_WORD
    assert found.value.value is None
    gain = Gain(0.3, 0.2, 0.4, 10)
    evidence = [
        Evidence(
            one, gain if n else Gain(0.0, 0.0, 0.0, 10), None, found.one_slot_refusal if n else None, 0.1, 0.1, 0.1
        )
        for n, one in enumerate(candidates)
    ]
    verdict = judge(evidence, Limits())
    assert verdict.recommended == candidates[0]
    assert candidates[1] in verdict.front
    # The control: a candidate of which the log does speak, with the same runs.
    assert judge([evidence[0], replace(evidence[1], refusal=None)], Limits()).recommended == candidates[1]


def test_values_of_other_rates_are_near_the_truth_and_inside_their_bounds() -> None:
    world = better_world(seed=1)
    world = replace(world, scores=world.rewards)
    candidates = [Candidate(world.exploration), *(Candidate(replaced(world.exploration, r)) for r in (0.0, 0.9))]
    decisions = logged(world, 1_500, seed=2)
    slates = build_slates(decisions, set(), candidates)
    now = world.value(world.scores)
    for one in candidates[1:]:
        found = value_of(slates, one, rewards_in=(0.0, 1.0), confidence=1 - 1e-4)
        truth = world.value(world.scores, one.exploration)
        assert found.advantage.lower <= truth - now <= found.advantage.upper
        assert found.one_slot[0] == pytest.approx(truth, abs=0.03)
        # The negative control: the log's own value is no answer.
        assert found.one_slot[0] != pytest.approx(now, abs=0.03)


def replaced(exploration: Epsilon, rate: float) -> Epsilon:
    return Epsilon(rate=rate, uniform_share=exploration.uniform_share, shortlist=exploration.shortlist)


def test_one_slot_values_lie_on_a_line_in_the_rate_and_a_bent_one_is_found() -> None:
    world = replace(better_world(seed=3), n_slots=3, examination=(1.0, 0.8, 0.6))
    candidates = [Candidate(replaced(world.exploration, r)) for r in (0.3, 0.0, 0.1, 0.7)]
    slates = build_slates(logged(world, 200, seed=1), set(), candidates)
    values = {one: value_of(slates, one, rewards_in=(0, 1), confidence=0.95).one_slot[0] for one in candidates}
    line = linearity_of(values)
    assert line is not None
    assert line.n == 4
    assert line.residual <= LINEAR_WITHIN
    bent = linearity_of(values | {candidates[2]: values[candidates[2]] + 1e-6})
    assert bent is not None
    assert not bent.holds


def test_a_candidate_that_the_log_does_not_support_has_no_value() -> None:
    world = better_world(seed=1)
    opposite = Candidate(SquareCB(gamma=0.0, uniform_share=0.0, shortlist=5))
    found = value(logged(world, 60, seed=2), [Candidate(world.exploration), opposite], 1)
    assert found.refusal is not None
    assert "effective sample size" in found.refusal
    assert all(line.value is None for line in found.panel)


def test_skips_count_where_they_were_reported() -> None:
    world = better_world(seed=1)
    decisions = logged(world, 200, seed=2)
    skipped = {(joined.decision.event_id, 0) for joined in decisions[::4]}
    slates = build_slates(decisions, skipped, [Candidate(world.exploration)])
    found = value_of(slates, Candidate(world.exploration), rewards_in=(0, 1), confidence=0.95)
    assert found.skip_rate is not None
    assert found.skip_rate[0] == pytest.approx(0.25)


def test_an_empty_log_is_an_error() -> None:
    with pytest.raises(ValueError, match="no decision"):
        build_slates([], set(), [NOW])


# --- the verdict ---------------------------------------------------------------------------------------------------


def evidence(
    candidate: Candidate,
    gain: tuple[float, float, float] = (0.0, 0.0, 0.0),
    *,
    price: tuple[float, float, float] | None = (0.0, -0.01, 0.01),
    discovery: float = 0.0,
    refusal: str | None = None,
) -> Evidence:
    return Evidence(
        candidate=candidate,
        long_run=Gain(*gain, 10),
        price=None if price is None else Gain(*price, 1_000),
        refusal=refusal,
        discovery=discovery,
        coverage=0.5,
        skip_rate=0.05,
    )


def judged(*others: Evidence) -> Verdict:
    return judge([evidence(NOW), *others], Limits())


def test_what_earns_more_for_sure_at_a_price_within_the_budget_is_better_and_recommended() -> None:
    found = judged(evidence(rate(0.2), (0.05, 0.02, 0.08)))
    assert found.word == "better"
    assert found.recommended == rate(0.2)
    assert found.sentence.startswith("Better: epsilon 0.2 earns more than epsilon 0.1")


def test_what_may_earn_less_is_not_told_and_it_is_said_how_many_more_runs_it_takes() -> None:
    found = judged(evidence(rate(0.2), (0.02, -0.02, 0.06)))
    assert found.word == "cannot tell"
    assert found.recommended == NOW
    # The bound is twice as far away as the estimate: four times the 10 runs in all.
    assert found.more_seeds == 30
    assert found.more_decisions is None
    assert "30 more simulated runs" in found.sentence


def test_of_what_hardly_differs_it_is_said_what_it_takes_to_see_a_difference_of_the_tolerance() -> None:
    found = judged(evidence(rate(0.2), (0.0001, -0.02, 0.02)))
    assert found.more_seeds == 31


def test_a_price_that_may_be_over_the_budget_is_not_told_and_it_is_said_how_much_more_log_it_takes() -> None:
    found = judged(evidence(rate(0.2), (0.05, 0.02, 0.08), price=(-0.03, -0.07, 0.01)))
    assert found.word == "cannot tell"
    assert found.more_decisions == 3_000
    assert "3,000 more logged decisions" in found.sentence


def test_what_earns_less_for_sure_is_worse() -> None:
    found = judged(evidence(rate(0.2), (-0.05, -0.08, -0.02)))
    assert found.word == "worse"
    assert found.recommended == NOW


def test_what_gives_up_more_than_the_budget_for_sure_is_never_recommended() -> None:
    dear = evidence(rate(0.4), (0.30, 0.20, 0.40), price=(-0.2, -0.3, -0.1))
    assert judged(dear).word == "worse"
    assert judged(dear, evidence(rate(0.2), (0.05, 0.02, 0.08))).recommended == rate(0.2)


def test_what_the_log_does_not_support_cannot_be_told() -> None:
    found = judged(evidence(Candidate(Softmax()), (0.5, 0.4, 0.6), refusal="effective sample size"))
    assert found.word == "cannot tell"
    assert "effective sample size" in found.sentence


def test_of_what_is_as_good_as_the_best_the_one_that_discovers_most_is_chosen() -> None:
    best = evidence(rate(0.05), (0.100, 0.05, 0.15), discovery=0.01)
    equal = evidence(rate(0.2), (0.095, 0.05, 0.14), discovery=0.03)
    too_low = evidence(rate(0.4), (0.05, 0.01, 0.09), discovery=0.05)
    assert judged(best, equal, too_low).recommended == rate(0.2)


def test_what_is_shown_to_be_better_goes_before_what_merely_looks_better() -> None:
    found = judged(evidence(rate(0.3), (0.10, -0.05, 0.25)), evidence(rate(0.2), (0.05, 0.02, 0.08)))
    assert (found.word, found.recommended) == ("better", rate(0.2))


def test_the_front_holds_what_nothing_beats_in_everything() -> None:
    points = {rate(0.1): (1.0, 0.0), rate(0.2): (0.5, 0.5), rate(0.3): (0.4, 0.4), rate(0.4): (0.5, 0.5)}
    assert pareto_front(points) == [rate(0.1), rate(0.2), rate(0.4)]
    assert pareto_front({rate(0.1): (1.0, math.nan), rate(0.2): (0.9, math.nan)}) == [rate(0.1)]


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--surface", "nowhere"], "--surface must be one of"),
        (["--kinds", "ucb"], "--kinds must be of"),
        (["--rates", "0,x"], "--rates must be numbers"),
        (["--search", "random"], "--search must be"),
        (["--report", "/nowhere/tune.html"], "does not exist"),
        (["--live", "--bounds", "0.1"], "--bounds must be two rates"),
        (["--live", "--bounds", "0.2,0.1"], "bounds must be"),
    ],
)
def test_options_that_cannot_be_used_are_a_usage_error(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["tune", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
