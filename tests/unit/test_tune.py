"""What `hone tune` tries, values and judges; the rate it sets live; and that worlds with a known answer get it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from bandit.exploration import Epsilon, Softmax, SquareCB, VwExplorer
from bandit.rules import Discovery, MaxPer, Prior
from service.adapters.memory_store import MemoryChangeLog, MemoryJournal
from service.adapters.memory_streams import MemoryStore
from service.cli import app
from service.cli.configuration import on_config_writer
from service.config import SurfaceConfig
from service.config_writer import ConfigWriter
from service.inspect_features import archive_folder
from service.messages import ConfigOverride
from service.training_rows import JoinedDecision
from simulators.closed_loop import run_loop
from simulators.logged_world import LoggedWorld, better_world
from simulators.loop_config import SURFACE, build_config
from simulators.tune.apply import apply_choice, command_for, live_changes
from simulators.tune.candidates import Candidate, Grid, discovery_share_of, expand
from simulators.tune.curves import Curves, Plan, simulate
from simulators.tune.judge import Evidence, Gain, Limits, Verdict, judge, paired_gain, pareto_front
from simulators.tune.live import Branches, Terms, began_at, choose_rate, n_changes, weigh
from simulators.tune.log_values import build_slates, value_of
from simulators.tune.study import LINEAR_WITHIN, linearity_of
from simulators.tune_commands import tune_live
from simulators.worlds.churn import Churn
from simulators.worlds.clicks import PositionBased
from simulators.worlds.named import QUICK_SETTINGS
from simulators.worlds.tastes import ClusterTasteSpec
from simulators.worlds.visits import Crowd
from simulators.worlds.world import WorldSpec

NOW = Candidate(Epsilon(rate=0.1))
RULES = [MaxPer(column="creator", limit=2, window=10), Discovery(share=0.2), Prior(column="affinity", weight=0.1)]


def rate(value: float) -> Candidate:
    return Candidate(Epsilon(rate=value))


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


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


def test_values_of_other_rates_are_near_the_truth_and_inside_their_bounds() -> None:
    world = better_world(seed=1)
    candidates = [Candidate(world.exploration), *(Candidate(replaced(world.exploration, r)) for r in (0.0, 0.6))]
    decisions = logged(world, 1_500, seed=2)
    slates = build_slates(decisions, set(), candidates)
    now = world.value(world.scores)
    for one in candidates[1:]:
        found = value_of(slates, one, rewards_in=(0.0, 1.0), confidence=1 - 1e-4)
        truth = world.value(world.scores, one.exploration)
        assert found.advantage.lower <= truth - now <= found.advantage.upper
        assert found.one_slot[0] == pytest.approx(truth, abs=0.05)
        # The negative control: the log's own value is another.
        assert abs(truth - now) > 0.02


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


# --- simulated worlds whose answer is known -----------------------------------------------------------------------

# Whatever is clicked first is shown ever after by a policy that does not explore; one in ten is worth finding.
PAYS = WorldSpec(
    tastes=ClusterTasteSpec(
        n_clusters=1, n_genres=1, base=-2.5, taste=0, own=0, affinity=0, quality=0, hit=3.5, hit_share=0.1
    ),
    churn=Churn(n_live=30),
    # One visit a second: slow enough for a slot without a click to be learned within the run.
    crowd=Crowd(n_users=1_000, gap_s=1_000.0),
    clicks=PositionBased(decay=1.0),
    n_slots=1,
)
# Only what is as good as anything is ever clicked, so that the first click ends the search; to go on only costs.
COSTS = replace(PAYS, tastes=replace(PAYS.tastes, base=-8.0, hit=9.0, hit_share=0.3))
EXPLORES = Candidate(Epsilon(rate=0.3, uniform_share=1.0))
DOES_NOT = Candidate(Epsilon(rate=0.0, uniform_share=1.0))


def recommended(world: WorldSpec, candidates: list[Candidate], pool: Executor, *, n_seeds: int = 4) -> Verdict:
    curves = simulate(candidates, Plan(world, 400, range(n_seeds)), pool=pool)
    return judge(as_evidence(curves), Limits())


def as_evidence(curves: Curves) -> list[Evidence]:
    base, *_ = curves.runs
    return [
        Evidence(
            candidate=one,
            long_run=paired_gain(curves.measure(one, "value"), curves.measure(base, "value"), confidence=0.95),
            price=None,
            refusal=None,
            discovery=math.nan,
            coverage=float(curves.measure(one, "coverage").mean()),
            skip_rate=float(curves.measure(one, "skip_rate").mean()),
        )
        for one in curves.runs
    ]


def test_where_only_exploring_finds_what_is_good_a_rate_above_zero_is_recommended(pool: Executor) -> None:
    found = recommended(PAYS, [DOES_NOT, EXPLORES], pool)
    assert (found.word, found.recommended) == ("better", EXPLORES)


def test_where_exploring_only_costs_none_is_recommended_whichever_way_it_is_asked(pool: Executor) -> None:
    assert recommended(COSTS, [EXPLORES, DOES_NOT], pool).recommended == DOES_NOT
    kept = recommended(COSTS, [DOES_NOT, EXPLORES], pool)
    assert (kept.word, kept.recommended) == ("worse", DOES_NOT)


def test_halving_keeps_the_incumbent_and_gives_every_seed_to_the_best_only(pool: Executor) -> None:
    others = [Candidate(Epsilon(rate=r, uniform_share=1.0)) for r in (0.9, 0.7, 0.3)]
    plan = Plan(PAYS, 60, range(6), "halving")
    curves = simulate([DOES_NOT, *others], plan, pool=pool)
    n_runs = [len(curves.runs[one]) for one in curves.runs]
    assert n_runs[0] == 6
    assert sorted(n_runs) == [2, 2, 6, 6]
    assert len(curves.finished) == 2


# --- the live rate --------------------------------------------------------------------------------------------------

TERMS = Terms(budget=0.05, low=0.02, high=0.3)


def branches(n: int, rate: float, *, greedy: float, explore: float, seed: int, n_slots: int = 3) -> Branches:
    """Slots whose reward is 1 with one probability where they were greedy, and another where they were explored."""
    rng = np.random.default_rng(seed)
    is_greedy = rng.random(n * n_slots) >= rate
    reward = (rng.random(n * n_slots) < np.where(is_greedy, greedy, explore)).astype(np.float64)
    return Branches(np.repeat(np.arange(n), n_slots), is_greedy, reward)


def looked(rate: float, n: int, *, greedy: float = 0.3, explore: float = 0.15, terms: Terms = TERMS):
    slots = branches(n, rate, greedy=greedy, explore=explore, seed=5)
    return choose_rate(weigh(slots, rate=rate, rewards_in=(0.0, 1.0), confidence=terms.of_change(0)), terms)


def test_the_rate_is_raised_to_what_is_shown_to_be_within_the_budget_and_no_further() -> None:
    # What is given up at a rate is half of the rate of the reward: the budget allows 0.1.
    found = looked(0.04, 60_000)
    assert found.word == "raise"
    assert 0.04 < found.rate <= 0.1
    assert looked(0.04, 60_000, explore=0.3).rate == TERMS.high


def test_a_rate_that_is_shown_to_be_over_the_budget_is_lowered() -> None:
    found = looked(0.3, 20_000)
    assert found.word == "lower"
    assert TERMS.low <= found.rate <= 0.1


def test_a_log_that_is_too_short_is_refused_with_how_much_more_it_takes() -> None:
    found = looked(0.08, 500)
    assert found.word == "cannot tell"
    assert not found.changes
    assert "more decisions would tell" in found.reason


def test_nothing_is_seen_without_exploration_or_without_anything_else() -> None:
    for blind in (0.0, 1.0):
        with pytest.raises(ValueError, match="rate must be in"):
            weigh(branches(100, blind, greedy=0.3, explore=0.1, seed=1), rate=blind, rewards_in=(0, 1), confidence=0.95)


def test_no_decisions_and_no_reward_are_refused() -> None:
    assert looked(0.1, 0).word == "cannot tell"
    assert looked(0.1, 1_000, greedy=0.0, explore=0.0).word == "cannot tell"


def test_branches_that_contradict_the_rate_are_refused() -> None:
    # A log of rate 0.5 that says it was 0.05: greedy slots are half of what they must be.
    slots = branches(30_000, 0.5, greedy=0.9, explore=0.9, seed=2)
    found = choose_rate(weigh(slots, rate=0.05, rewards_in=(0.0, 1.0), confidence=0.95), TERMS)
    assert found.word == "cannot tell"
    assert "cannot be right" in found.reason


def test_a_rate_above_the_bounds_comes_down_even_when_it_costs_nothing() -> None:
    found = looked(0.4, 20_000, explore=0.3)
    assert (found.word, found.rate) == ("lower", TERMS.high)


def test_errors_of_all_changes_add_up_to_what_is_allowed() -> None:
    assert sum(1.0 - TERMS.of_change(n) for n in range(10_000)) == pytest.approx(0.05, rel=1e-3)


def test_a_rate_set_by_hand_begins_the_log_anew_and_is_no_change_of_this_mode() -> None:
    key = "surfaces.home.exploration"
    history = [
        ConfigOverride(key=f"{key}.rate", value=0.1, author="a", at_unix_ms=5, reason="hone tune --live: at rate"),
        ConfigOverride(key=key, value={}, author="b", at_unix_ms=9, reason="by hand"),
        ConfigOverride(key="surfaces.other.exploration.rate", value=0.1, author="a", at_unix_ms=20),
        ConfigOverride(key="surfaces.home.rules", value=[], author="a", at_unix_ms=30),
    ]
    assert began_at(history, "home") == 9
    assert n_changes(history, "home") == 1
    assert began_at([], "home") == 0


@pytest.mark.parametrize(
    ("budget", "low", "high"), [(0.0, 0.1, 0.2), (0.1, 0.0, 0.2), (0.1, 0.3, 0.2), (0.1, 0.1, 1.0)]
)
def test_terms_that_cannot_be_met_are_refused(budget: float, low: float, high: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        Terms(budget=budget, low=low, high=high)


# --- the command ------------------------------------------------------------------------------------------------------


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


# --- what is set --------------------------------------------------------------------------------------------------------


async def test_what_is_recommended_is_set_through_the_audit_log() -> None:
    store = MemoryStore(lambda: 1)
    journal = MemoryJournal(store, n_partitions=1)
    declared = build_config(PAYS, exploration=Epsilon(rate=0.1))
    writer = ConfigWriter(declared, log=MemoryChangeLog(store), journal=journal, clock=lambda: 1)
    entries = await apply_choice(writer, SURFACE, rate(0.2), author="ann", reason="hone tune: Better")
    assert [(entry.key, entry.old, entry.new, entry.author) for entry in entries] == [
        ("surfaces.home.exploration.rate", 0.1, 0.2, "ann")
    ]
    assert (await writer.effective()).current.config.surfaces[SURFACE].exploration == Epsilon(rate=0.2)
    assert await apply_choice(writer, SURFACE, rate(0.2), author="ann", reason="again") == []


def test_the_live_rate_is_set_from_an_archive_with_an_audit_entry_and_not_again_without_a_new_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = replace(PAYS, n_slots=2)
    now = Epsilon(rate=0.1, uniform_share=1.0)
    config = build_config(world, exploration=now, settings=QUICK_SETTINGS, data_dir=str(tmp_path))
    run_loop(
        world, exploration=now, n_decisions=300, seed=1, settings=QUICK_SETTINGS, archive_folder=archive_folder(config)
    )
    generous = Terms(budget=0.9, low=0.02, high=0.15)
    for expected in (0, 1):
        with pytest.raises(typer.Exit) as ended:
            tune_live(config, SURFACE, generous, as_json=True)
        assert ended.value.exit_code == expected
        said = json.loads(capsys.readouterr().out)
        assert said["change"]["word"] == ("cannot tell" if expected else "raise")
    (entry,) = on_config_writer(config, lambda writer: writer.history())
    assert entry.key == "surfaces.home.exploration.rate"
    assert 0.1 < entry.value <= 0.15
    assert entry.reason.startswith("hone tune --live: at rate 0.1, 300 decisions")
