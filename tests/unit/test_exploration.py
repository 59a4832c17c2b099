"""The pmf of one slot: its formula, its floor, what it is invariant to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.exploration import Epsilon
from bandit.slot import SlotView, build_pmf, view_slot

PROPERTY = settings(deadline=None, derandomize=True, max_examples=120)

explorations = st.builds(
    Epsilon,
    rate=st.floats(0.0, 1.0),
    uniform_share=st.floats(0.0, 1.0),
    shortlist=st.integers(1, 12),
    temperature=st.none() | st.floats(0.01, 100.0),
)
tied_scores = st.lists(st.sampled_from([-1.5, 0.0, 0.25, 1.0, 3.0]), min_size=1, max_size=12)
any_scores = tied_scores | st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=12)


def _view(scores: list[float], allowed: list[bool] | None = None, *, shortlist: int = 50) -> SlotView:
    values = np.array(scores, dtype=np.float64)
    mask = np.ones(len(scores), dtype=np.bool_) if allowed is None else np.array(allowed)
    return view_slot(values, mask, shortlist=shortlist)


def _pmf(scores: list[float], exploration: Epsilon) -> np.ndarray:
    view = _view(scores, shortlist=exploration.shortlist)
    return build_pmf(view, exploration.mixture(view))


def _by_hand(scores: list[float], exploration: Epsilon) -> list[float]:
    """Follow the formula term by term, with Python's own numbers and sorting."""
    n, best = len(scores), max(scores)
    greedy = [a for a in range(n) if scores[a] == best]
    shortlist = sorted(range(n), key=lambda a: (-scores[a], a))[: exploration.shortlist]
    tau = exploration.temperature
    if tau is None:
        tau = _quantile([scores[a] for a in shortlist], 0.75) - _quantile([scores[a] for a in shortlist], 0.25)
    weight = {a: math.exp((scores[a] - best) / tau) if tau > 0 else 1.0 for a in shortlist}
    eps, lam = exploration.rate, exploration.uniform_share
    return [
        (1 - eps) * (a in greedy) / len(greedy)
        + eps * ((1 - lam) * weight.get(a, 0.0) / sum(weight.values()) + lam / n)
        for a in range(n)
    ]


def _quantile(values: list[float], q: float) -> float:
    ordered, place = sorted(values), q * (len(values) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


@PROPERTY
@given(scores=tied_scores, exploration=explorations)
def test_pmf_follows_the_formula(scores: list[float], exploration: Epsilon) -> None:
    assert _pmf(scores, exploration) == pytest.approx(_by_hand(scores, exploration), rel=1e-9, abs=1e-13)


@PROPERTY
@given(scores=any_scores, exploration=explorations)
def test_pmf_sums_to_one_and_keeps_the_floor(scores: list[float], exploration: Epsilon) -> None:
    pmf = _pmf(scores, exploration)
    assert pmf.dtype == np.float64
    assert abs(math.fsum(pmf) - 1.0) < 1e-12
    assert (pmf >= exploration.rate * exploration.uniform_share / len(scores)).all()


@PROPERTY
@given(scores=tied_scores, rate=st.floats(0.0, 1.0), share=st.floats(0.0, 1.0), tau=st.none() | st.floats(0.1, 10.0))
def test_equal_scores_get_equal_probabilities(scores: list[float], rate: float, share: float, tau: float) -> None:
    exploration = Epsilon(rate=rate, uniform_share=share, shortlist=50, temperature=tau)
    pmf = _pmf(scores, exploration)
    for score in set(scores):
        assert len(set(pmf[np.array(scores) == score].tolist())) == 1


@PROPERTY
@given(scores=tied_scores)
def test_ties_share_the_greedy_mass_equally(scores: list[float]) -> None:
    pmf = _pmf(scores, Epsilon(rate=0.0))
    greedy = np.array(scores) == max(scores)
    assert pmf.tolist() == np.where(greedy, 1.0 / greedy.sum(), 0.0).tolist()


@PROPERTY
@given(
    scores=st.lists(st.integers(-500, 500), min_size=1, max_size=12, unique=True),
    exploration=explorations,
    seed=st.integers(0, 99),
)
def test_renaming_actions_permutes_the_pmf(scores: list[int], exploration: Epsilon, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(scores))
    renamed = _pmf([scores[a] for a in order], exploration)
    assert renamed == pytest.approx(_pmf(scores, exploration)[order], abs=1e-15)


@PROPERTY
@given(
    scores=tied_scores,
    exploration=explorations,
    shift=st.sampled_from([-8.0, 0.5, 64.0]),
    scale=st.sampled_from([0.25, 1.0, 16.0]),
)
def test_without_a_temperature_the_unit_of_the_score_does_not_matter(
    scores: list[float], exploration: Epsilon, shift: float, scale: float
) -> None:
    unitless = Epsilon(rate=exploration.rate, uniform_share=exploration.uniform_share, shortlist=exploration.shortlist)
    moved = _pmf([score * scale + shift for score in scores], unitless)
    assert moved == pytest.approx(_pmf(scores, unitless), abs=1e-12)


@PROPERTY
@given(scores=any_scores, exploration=explorations)
def test_a_better_action_is_never_less_likely(scores: list[float], exploration: Epsilon) -> None:
    pmf = _pmf(scores, exploration)
    for a in range(len(scores)):
        for b in range(len(scores)):
            assert not (scores[a] > scores[b] and pmf[a] < pmf[b])


@PROPERTY
@given(scored=st.lists(st.tuples(st.sampled_from([-1.5, -0.0, 0.0, 1.0]), st.booleans()), min_size=1, max_size=12))
def test_a_view_holds_the_tied_best_and_the_shortlist_of_what_is_allowed(scored: list[tuple[float, bool]]) -> None:
    scores, allowed = [score for score, _ in scored], [True, *(yes for _, yes in scored[1:])]
    ranked = sorted((a for a in range(len(scores)) if allowed[a]), key=lambda a: (-scores[a], a))
    for shortlist in range(len(scores) + 2):
        view = _view(scores, allowed, shortlist=shortlist)
        assert view.top.tolist() == ranked[:shortlist]
        assert view.greedy.tolist() == [a for a in ranked if scores[a] == scores[ranked[0]]]
        assert view.n_allowed == len(ranked)


@PROPERTY
@given(
    n=st.integers(1, 300),
    n_values=st.sampled_from([1, 3, 50, 10**9]),
    shortlist=st.sampled_from([0, 1, 5, 50]),
    seed=st.integers(0, 99),
)
def test_a_view_of_many_actions_is_as_sorting_them_all_says(n: int, n_values: int, shortlist: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(size=n) * n_values) / n_values
    allowed = rng.random(n) < 0.8
    allowed[rng.integers(n)] = True
    ranked = sorted(np.flatnonzero(allowed).tolist(), key=lambda a: (-scores[a], a))
    view = view_slot(scores, allowed, shortlist=shortlist)
    assert view.top.tolist() == ranked[:shortlist]
    assert view.top_scores.tolist() == scores[ranked[:shortlist]].tolist()
    assert view.greedy.tolist() == [a for a in ranked if scores[a] == scores[ranked[0]]]


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_score_that_is_no_number_is_refused_where_it_may_be_shown(at: int) -> None:
    scores = [0.5, 0.25, 3.0, 1.0, -1.5, 0.0]
    scores[at] = math.nan
    with pytest.raises(ValueError, match="scores must be numbers, got NaN"):
        _view(scores, shortlist=3)
    allowed = [action != at for action in range(len(scores))]
    assert at not in _view(scores, allowed, shortlist=3).top


@PROPERTY
@given(
    scored=st.lists(st.tuples(st.sampled_from([-1.5, 0.0, 0.25, 1.0]), st.booleans()), min_size=1, max_size=12),
    exploration=explorations,
)
def test_what_is_not_allowed_has_no_probability_and_no_influence(
    scored: list[tuple[float, bool]], exploration: Epsilon
) -> None:
    scores, allowed = [score for score, _ in scored], np.array([True, *(yes for _, yes in scored[1:])])
    view = _view(scores, allowed.tolist(), shortlist=exploration.shortlist)
    pmf = build_pmf(view, exploration.mixture(view))
    assert not pmf[~allowed].any()
    assert pmf[allowed] == pytest.approx(_pmf(np.array(scores)[allowed].tolist(), exploration), abs=1e-15)


def test_only_the_shortlist_and_the_floor_explore() -> None:
    pmf = _pmf([4.0, 3.0, 2.0, 1.0], Epsilon(rate=0.4, uniform_share=0.5, shortlist=2))
    assert pmf[2] == pmf[3] == pytest.approx(0.4 * 0.5 / 4)
    assert pmf[1] > pmf[2]


def test_a_shortlist_whose_middle_half_ties_is_explored_uniformly() -> None:
    pmf = _pmf([9.0, 1.0, 1.0, 1.0, 1.0], Epsilon(rate=1.0, uniform_share=0.0))
    assert pmf.tolist() == pytest.approx([0.2] * 5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": -0.1},
        {"rate": 1.0 + 1e-9},
        {"rate": math.nan},
        {"uniform_share": 2.0},
        {"shortlist": 0},
        {"temperature": 0.0},
        {"temperature": math.inf},
    ],
)
def test_parameters_out_of_range_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Epsilon(**wrong)
