"""What a simulated world promises: randomness by user and item, exact marginals, an optimum that is one."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from scipy import stats

from simulators.worlds.churn import Churn
from simulators.worlds.clicks import Cascade, ClickModel, DependentClick, PositionBased
from simulators.worlds.delays import ClickDelay
from simulators.worlds.feedback_effects import Fatigue, PopularityFeedback
from simulators.worlds.named import clustered_world, synthetic_world
from simulators.worlds.tastes import ClusterTasteSpec
from simulators.worlds.visits import Crowd, Visit, visits
from simulators.worlds.world import World, WorldSpec

CLICK_MODELS = [PositionBased(0.8), Cascade(), Cascade(0.7), DependentClick(0.9, 0.4)]
# Of one test; it is shared out among the comparisons in it.
ALPHA = 1e-4


def of_user(crowd: Crowd, user: int, n: int) -> list[Visit]:
    return list(itertools.islice((v for v in visits(crowd, seed=5, n_slots=3) if v.user == user), n))


def test_the_visits_of_a_user_do_not_depend_on_who_else_comes() -> None:
    alone, crowded = of_user(Crowd(n_users=8), 7, 4), of_user(Crowd(n_users=300), 7, 4)
    assert [(v.elapsed_ms, v.number) for v in alone] == [(v.elapsed_ms, v.number) for v in crowded]
    assert all(np.array_equal(a.uniforms, b.uniforms) for a, b in zip(alone, crowded, strict=True))
    others = of_user(Crowd(n_users=300), 6, 4)
    assert not np.array_equal(others[0].uniforms, alone[0].uniforms)


def test_visits_come_in_order_of_time() -> None:
    times = [v.elapsed_ms for v in itertools.islice(visits(Crowd(n_users=50), seed=1, n_slots=1), 500)]
    assert times == sorted(times)


def test_users_and_items_are_the_same_in_whatever_order_they_are_asked_for() -> None:
    one, other = ClusterTasteSpec().build(3), ClusterTasteSpec().build(3)
    for user in range(50):
        one.context(user)
    one.item(1_000, available_at_unix_ms=0)
    late = one.log_odds(49, first=600, n=20, elapsed_ms=0)
    assert np.array_equal(late, other.log_odds(49, first=600, n=20, elapsed_ms=0))
    assert not np.array_equal(late, ClusterTasteSpec().build(4).log_odds(49, first=600, n=20, elapsed_ms=0))


def test_runs_of_a_world_with_a_seed_meet_the_same_items_and_other_visits() -> None:
    spec = WorldSpec(seed=9)
    one, other = spec.build(1), spec.build(2)
    assert one.item(3, start_ms=0) == other.item(3, start_ms=0)
    first, second = next(one.visits()), next(other.visits())
    assert (first.elapsed_ms, first.user) != (second.elapsed_ms, second.user)


@pytest.mark.parametrize("clicks", CLICK_MODELS, ids=str)
def test_no_slate_beats_the_best_one(clicks: ClickModel) -> None:
    world = WorldSpec(clicks=clicks, churn=Churn(n_live=6), n_slots=3).build(1)
    rng = np.random.default_rng(0)
    for _ in range(20):
        attraction = rng.random(6)
        places, optimal = world.best(attraction)
        every = [float(world.expected(attraction[list(slate)]).sum()) for slate in itertools.permutations(range(6), 3)]
        assert optimal == pytest.approx(max(every), abs=1e-12)
        assert float(world.expected(attraction[places]).sum()) == optimal


def marginals_p(clicks: ClickModel, claimed: ClickModel, *, n: int = 20_000) -> float:
    """Return the smallest p value of clicks and looks by slot against what a model claims, by exact binomial tests."""
    rng = np.random.default_rng(7)
    attraction = np.array([0.5, 0.2, 0.6, 0.3])
    found = [clicks.browse(attraction, *rng.random((2, 4))) for _ in range(n)]
    examined, clicked = (np.array(side).sum(axis=0) for side in zip(*found, strict=True))
    looks = claimed.examination(attraction)
    tests = [*zip(examined, looks, strict=True), *zip(clicked, looks * attraction, strict=True)]
    return min(float(stats.binomtest(int(k), n, float(min(p, 1.0))).pvalue) for k, p in tests) * len(tests)


@pytest.mark.parametrize("clicks", CLICK_MODELS, ids=str)
def test_clicks_have_the_stated_marginals(clicks: ClickModel) -> None:
    assert marginals_p(clicks, clicks) > ALPHA


@pytest.mark.parametrize(
    ("clicks", "claimed"),
    [(Cascade(), Cascade(0.95)), (DependentClick(0.9, 0.4), Cascade(0.9)), (PositionBased(0.8), PositionBased(0.83))],
    ids=str,
)
def test_the_marginals_of_another_model_are_told_apart(clicks: ClickModel, claimed: ClickModel) -> None:
    assert marginals_p(clicks, claimed) < ALPHA


def test_an_oracle_earns_the_optimal_value() -> None:
    """Clicks of 2,000 best slates against the optimum, by a z test at 1e-4; the second-best slates fail it."""

    def z_of(shift: int) -> float:
        world = clustered_world().build(4)
        earned, promised, variance = 0.0, 0.0, 0.0
        for visit in itertools.islice(world.visits(), 2_000):
            attraction = world.attraction(visit)
            places = np.argsort(-attraction)[shift : shift + world.spec.n_slots]
            earned += world.respond(visit, places.tolist(), attraction).n_clicked
            best, optimal = world.best(attraction)
            promised += optimal
            # Position-based: slots are clicked independently.
            expected = world.expected(attraction[best])
            variance += float((expected * (1.0 - expected)).sum())
        return (earned - promised) / variance**0.5

    assert abs(z_of(0)) < 3.89
    assert z_of(3) < -3.89


def test_delays_have_the_stated_quantiles() -> None:
    delay = ClickDelay(median_s=4.0, spread=1.0)
    assert delay.delay_ms(0.5) == 4_000
    assert delay.p95_s == pytest.approx(4.0 * np.exp(1.6448536), rel=1e-3)


def test_items_are_there_from_birth_for_as_long_as_others_are_born() -> None:
    churn = Churn(n_live=3, every_s=0.7)
    for number in range(3, 12):
        born_ms = churn.born_ms(number)
        assert churn.first_live(born_ms) + churn.n_live - 1 == number
        assert churn.first_live(born_ms - 1) + churn.n_live - 1 == number - 1
    assert Churn(n_live=3).first_live(10**12) == 0


def one_visit(world: World, *, elapsed_ms: int = 0) -> Visit:
    return Visit(user=1, number=0, elapsed_ms=elapsed_ms, uniforms=[[0.0] * world.spec.n_slots] * 4)


def test_a_user_tires_of_what_was_shown_and_forgets() -> None:
    world = WorldSpec(fatigue=Fatigue(factor=0.5, half_life_s=10.0), n_slots=1).build(1)
    fresh = world.attraction(one_visit(world))
    world.respond(one_visit(world), [3], fresh)
    tired = world.attraction(one_visit(world))
    assert tired[3] == pytest.approx(0.5 * fresh[3])
    assert np.array_equal(np.delete(tired, 3), np.delete(fresh, 3))
    later = world.attraction(one_visit(world, elapsed_ms=10_000))
    assert later[3] == pytest.approx(0.5**0.5 * fresh[3])


def test_what_is_clicked_is_liked_more_by_others() -> None:
    world = WorldSpec(popularity=PopularityFeedback(logit=1.0), n_slots=1).build(1)
    fresh = world.attraction(one_visit(world))
    assert world.respond(one_visit(world), [3], fresh).n_clicked == 1
    popular = world.attraction(one_visit(world))
    assert popular[3] > fresh[3]
    assert np.array_equal(np.delete(popular, 3), np.delete(fresh, 3))


def test_tastes_drift_and_come_back_and_seasons_take_a_day() -> None:
    drifting = ClusterTasteSpec(drift_period_s=1_000.0).build(1)
    at = [drifting.log_odds(0, first=0, n=20, elapsed_ms=ms) for ms in (0, 250_000, 1_000_000)]
    assert np.allclose(at[0], at[2])
    assert not np.allclose(at[0], at[1])
    seasonal = ClusterTasteSpec(season=1.0).build(1)
    at = [seasonal.log_odds(0, first=0, n=20, elapsed_ms=ms) for ms in (0, 43_200_000, 86_400_000)]
    assert np.allclose(at[0], at[2])
    assert not np.allclose(at[0], at[1])


def test_what_has_gone_is_clicked_by_nobody() -> None:
    world = WorldSpec(churn=Churn(n_live=5, every_s=1.0), n_slots=2).build(1)
    visit = one_visit(world, elapsed_ms=3_000)
    response = world.respond(visit, [0, 4], world.attraction(visit))
    assert [(reaction.slot, reaction.event_type) for reaction in response.reactions] == [(0, "skip"), (1, "click")]
    assert response.expected[0] == 0.0


def test_a_world_goes_to_another_process() -> None:
    spec = synthetic_world()
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize(
    "make",
    [
        lambda: WorldSpec(n_slots=0),
        lambda: WorldSpec(n_slots=5, churn=Churn(n_live=4)),
        lambda: WorldSpec(skip_share=1.1),
        lambda: PositionBased(0.0),
        lambda: DependentClick(0.5, 0.6),
        lambda: Crowd(n_users=0),
        lambda: Churn(n_live=5, every_s=0.0),
        lambda: ClickDelay(median_s=-1.0),
    ],
)
def test_what_no_world_can_be_is_refused(make: object) -> None:
    with pytest.raises(ValueError, match="got"):
        make()  # type: ignore[operator]
