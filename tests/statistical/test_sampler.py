"""Proof obligations of the sampler (SCIENCE notes, section 1).

Seeds are fixed and each test's false-alarm rate is 1e-4. Every test is also run on samplers that are wrong in a known
way, its negative controls, and must reject them.

The world has 6 items and 3 slots, and no two neighbours of one creator: an item that is closed in slot 1 is open
again in slot 2, so the masks are not nested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from bandit.exploration import Epsilon
from bandit.randomness import build_generator
from bandit.rules import Discovery, MaxPer, Rule
from bandit.slate import ActionSet, SlateWalk, draw_slate
from bandit.slot import SlotDraw

ALPHA = 1e-4
N = 200_000
N_SLOTS = 3
CREATORS = np.array([0, 0, 1, 1, 0, 2], dtype=np.int32)
SCORES = np.array([0.9, 0.9, 0.7, 0.1, 0.4, 0.6], dtype=np.float32)
LOGGING = Epsilon(rate=0.6, uniform_share=0.4, shortlist=3, temperature=0.3)
STALE = Epsilon(rate=0.45, uniform_share=0.4, shortlist=3, temperature=0.3)
RULES: tuple[Rule, ...] = (MaxPer(column="creator", limit=1, window=2),)


def _walk(
    exploration: Epsilon,
    history: Sequence[int] = (),
    *,
    rules: tuple[Rule, ...] = RULES,
    positions: tuple[int, ...] = (),
) -> SlateWalk:
    actions = ActionSet(
        ids=["a", "b", "c", "d", "e", "f"],
        scores=SCORES,
        columns={"creator": CREATORS, "discovery": np.array([0, 0, 0, 1, 1, 1], dtype=np.bool_)},
    )
    walk = SlateWalk(
        actions=actions, exploration=exploration, rules=rules, now_ms=0, n_slots=N_SLOTS, discovery_positions=positions
    )
    for action in history:
        walk.place(action)
    return walk


@dataclass(frozen=True)
class Slot:
    """One slot after one history: the feasible actions, their pmf, and which of them tie for best."""

    feasible: np.ndarray
    pmf: np.ndarray
    greedy: np.ndarray


@cache
def _pmf(exploration: Epsilon, history: tuple[int, ...], rules: tuple[Rule, ...] = RULES) -> Slot:
    here = _walk(exploration, history, rules=rules).pmf()
    assert here is not None
    feasible = np.flatnonzero(here.view.allowed)
    return Slot(feasible=feasible, pmf=here.pmf[feasible], greedy=np.isin(feasible, here.view.greedy))


@dataclass(frozen=True)
class Log:
    """What a sampler placed and what it wrote down; every array is [n, 3]."""

    actions: np.ndarray
    propensities: np.ndarray
    cumulative_before: np.ndarray
    n_feasible: np.ndarray


@dataclass(frozen=True)
class SlotLog:
    """One slot's draws after one history: places among the feasible actions, and what is logged of them."""

    places: np.ndarray
    propensities: np.ndarray
    cumulative_before: np.ndarray
    n_feasible: int


DrawSlot = Callable[[tuple[int, ...], np.ndarray, np.random.Generator, np.ndarray], SlotLog]
"""Of (history, uniforms [m], rng, Gumbel noise [m, 6]): draws slot len(history) for m decisions with that history."""


def _sample(draw_slot: DrawSlot, *, seed: int) -> Log:
    rng = np.random.default_rng(seed)
    return _run(draw_slot, rng.random((N, N_SLOTS)), rng)


def _run(draw_slot: DrawSlot, uniforms: np.ndarray, rng: np.random.Generator) -> Log:
    """Run a sampler on one decision for each row of uniforms [n, 3], all those with one history at once."""
    n = len(uniforms)
    gumbels = rng.gumbel(size=(n, 6))
    log = Log(
        actions=np.zeros((n, N_SLOTS), dtype=np.int64),
        propensities=np.zeros((n, N_SLOTS)),
        cumulative_before=np.zeros((n, N_SLOTS)),
        n_feasible=np.zeros((n, N_SLOTS), dtype=np.int64),
    )
    for slot in range(N_SLOTS):
        _, first, group = np.unique(_code(log.actions[:, :slot]), return_index=True, return_inverse=True)
        for number, row in enumerate(first):
            rows = np.flatnonzero(group == number)
            so_far = tuple(log.actions[row, :slot].tolist())
            drawn = draw_slot(so_far, uniforms[rows, slot], rng, gumbels[rows])
            log.actions[rows, slot] = _pmf(LOGGING, so_far).feasible[drawn.places]
            log.propensities[rows, slot] = drawn.propensities
            log.cumulative_before[rows, slot] = drawn.cumulative_before
            log.n_feasible[rows, slot] = drawn.n_feasible
    return log


def _code(slates: np.ndarray) -> np.ndarray:
    """Return one number for each row of items."""
    return slates @ 6 ** np.arange(slates.shape[1])


def _inverse_cdf(pmf: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    return np.minimum(np.searchsorted(np.cumsum(pmf), uniforms, side="right"), len(pmf) - 1)


def _logged(places: np.ndarray, pmf: np.ndarray) -> SlotLog:
    cdf = np.cumsum(pmf)
    return SlotLog(places, pmf[places], (cdf - pmf)[places], len(pmf))


def exact(history: tuple[int, ...], uniforms: np.ndarray, rng: np.random.Generator, gumbels: np.ndarray) -> SlotLog:
    """Draw as `draw_slate` does (a test below compares them), with pmfs cached by history."""
    pmf = _pmf(LOGGING, history).pmf
    return _logged(_inverse_cdf(pmf, uniforms), pmf)


# --- samplers that are wrong -----------------------------------------------------------------------------------------


def branch_logged(
    history: tuple[int, ...], uniforms: np.ndarray, rng: np.random.Generator, gumbels: np.ndarray
) -> SlotLog:
    """Draw from the mixture and log the probability that the branch taken gives the action."""
    here = _pmf(LOGGING, history)
    right = exact(history, uniforms, rng, gumbels)
    parts = np.array(_parts(here, history))
    offsets = uniforms - right.cumulative_before
    branches = (offsets[:, None] >= parts.cumsum(axis=0).T[right.places]).sum(axis=1).clip(max=2)
    of_branch = parts / parts.sum(axis=1, keepdims=True)
    return SlotLog(right.places, of_branch[branches, right.places], right.cumulative_before, right.n_feasible)


def denominator_before_masking(
    history: tuple[int, ...], uniforms: np.ndarray, rng: np.random.Generator, gumbels: np.ndarray
) -> SlotLog:
    """Draw from the masked pmf and log the one that was made before the masks."""
    here = _pmf(LOGGING, history)
    unmasked = _pmf(LOGGING, history, ())
    pmf = unmasked.pmf[np.searchsorted(unmasked.feasible, here.feasible)]
    return _logged(_inverse_cdf(here.pmf, uniforms), pmf)


def one_gumbel_vector(
    history: tuple[int, ...], uniforms: np.ndarray, rng: np.random.Generator, gumbels: np.ndarray
) -> SlotLog:
    """Draw every slot with the same Gumbel noise, the way of top-k sampling."""
    here = _pmf(LOGGING, history)
    places = np.argmax(np.log(here.pmf) + gumbels[:, here.feasible], axis=1)
    return _logged(places, here.pmf)


def stale_rate(
    history: tuple[int, ...], uniforms: np.ndarray, rng: np.random.Generator, gumbels: np.ndarray
) -> SlotLog:
    """Draw with the exploration rate of before and log the new one."""
    return _logged(_inverse_cdf(_pmf(STALE, history).pmf, uniforms), _pmf(LOGGING, history).pmf)


WRONG = [branch_logged, denominator_before_masking, one_gumbel_vector, stale_rate]


def _parts(here: Slot, history: tuple[int, ...]) -> list[np.ndarray]:
    """Return the greedy, uniform and shortlist parts of the mixture, written out again."""
    eps, lam, n = LOGGING.rate, LOGGING.uniform_share, len(here.feasible)
    scores = SCORES[here.feasible].astype(np.float64)
    greedy = (1 - eps) * here.greedy / here.greedy.sum()
    uniform = np.full(n, eps * lam / n)
    weights = np.zeros(n)
    best = np.argsort(-scores, kind="stable")[: LOGGING.shortlist]
    weights[best] = np.exp(scores[best] / LOGGING.temperature)
    return [greedy, uniform, eps * (1 - lam) * weights / weights.sum()]


# --- the tests, as p-values ------------------------------------------------------------------------------------------


def _slates_p(log: Log) -> float:
    """Chi-square of slate counts against the products of the logged propensities; the rest is one more cell."""
    _, group, counts = np.unique(_code(log.actions), return_inverse=True, return_counts=True)
    products = log.propensities.prod(axis=1)
    expected = np.bincount(group, weights=products) / counts * len(products)
    missing = len(products) - expected.sum()
    common = expected >= 5.0
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum() + max(missing, 0.0))
    if wanted[-1] < 5.0:
        observed, wanted = observed[:-1], wanted[:-1]
    return float(stats.chi2.sf(((observed - wanted) ** 2 / wanted).sum(), len(observed) - 1))


def _pit_p(log: Log, *, seed: int = 5) -> float:
    """Kolmogorov-Smirnov of U = F(a-) + V p(a) of every slot, the smallest p-value times the number of tests."""
    v = np.random.default_rng(seed).random(log.actions.shape)
    u = log.cumulative_before + v * log.propensities
    p_values = []
    for slot in range(N_SLOTS):
        p_values.append(stats.kstest(u[:, slot], "uniform").pvalue)
        for first in range(6) if slot else ():
            rows = log.actions[:, slot - 1] == first
            p_values.append(stats.kstest(u[rows, slot], "uniform").pvalue)
    return min(1.0, min(p_values) * len(p_values))


def _mean_one_p(values: np.ndarray) -> float:
    """Two-sided normal test that the mean is 1; the weights are bounded by the floor."""
    error = values.std() / np.sqrt(len(values))
    return float(2 * stats.norm.sf(abs(values.mean() - 1.0) / error)) if error else float(values.mean() == 1.0)


def _uniform_mean_p(log: Log) -> float:
    """Mean of 1 / (p_k |A_k|), over slots and after each item of the slot before."""
    values = 1.0 / (log.propensities * log.n_feasible)
    p_values = [_mean_one_p(values[:, slot]) for slot in range(N_SLOTS)]
    for slot in (1, 2):
        for first in np.unique(log.actions[:, slot - 1]):
            p_values.append(_mean_one_p(values[log.actions[:, slot - 1] == first, slot]))
    return min(1.0, min(p_values) * len(p_values))


TARGETS = {
    "greedy": Epsilon(rate=0.0),
    "uniform": Epsilon(rate=1.0, uniform_share=1.0),
    "cooler": Epsilon(rate=0.8, uniform_share=0.1, shortlist=2, temperature=0.1),
    "less exploration": Epsilon(rate=0.2, uniform_share=0.4, shortlist=3, temperature=0.3),
}


def _weights_p(log: Log, target: Epsilon) -> float:
    """Mean importance weight of whole slates under a target policy."""
    _, first, group = np.unique(_code(log.actions), return_index=True, return_inverse=True)
    target_product = np.array([_slate_propensity(target, tuple(log.actions[row].tolist())) for row in first])
    return _mean_one_p(target_product[group] / log.propensities.prod(axis=1))


def _slate_propensity(exploration: Epsilon, slate: tuple[int, ...]) -> float:
    product = 1.0
    for slot, action in enumerate(slate):
        here = _pmf(exploration, slate[:slot])
        product *= float(here.pmf[here.feasible.tolist().index(action)])
    return product


# --- what is sampled is what is logged -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log() -> Log:
    return _sample(exact, seed=20_261_122)


@cache
def _wrong_log(sampler: DrawSlot) -> Log:
    return _sample(sampler, seed=7)


def _draws(n: int) -> list[list[SlotDraw]]:
    return [
        draw_slate(
            _walk(LOGGING),
            build_generator(salt=b"s", purpose="slot", surface="home", event_id=f"e{number}").random(N_SLOTS),
        )
        for number in range(n)
    ]


@pytest.fixture(scope="module")
def draws() -> list[list[SlotDraw]]:
    return _draws(20_000)


def _log_of(draws: list[list[SlotDraw]]) -> Log:
    return Log(
        actions=np.array([[d.action for d in slate] for slate in draws]),
        propensities=np.array([[d.propensity for d in slate] for slate in draws]),
        cumulative_before=np.array([[d.cumulative_before for d in slate] for slate in draws]),
        n_feasible=np.array([[d.here.view.n_allowed for d in slate] for slate in draws]),
    )


def test_the_masks_of_this_world_are_not_nested() -> None:
    assert 1 not in _pmf(LOGGING, (0,)).feasible
    assert 1 in _pmf(LOGGING, (0, 2)).feasible


def test_the_propensities_of_all_slates_sum_to_one() -> None:
    slates = [(a, b, c) for a in range(6) for b in range(6) for c in range(6)]
    total = 0.0
    for slate in slates:
        feasible = all(
            slate[k] in _pmf(LOGGING, slate[:k]).feasible for k in range(N_SLOTS) if len(set(slate[:k])) == k
        )
        total += _slate_propensity(LOGGING, slate) if feasible and len(set(slate)) == N_SLOTS else 0.0
    assert total == pytest.approx(1.0, abs=1e-12)


def test_sampling_by_cached_pmfs_is_drawing_slates(draws: list[list[SlotDraw]]) -> None:
    drawn = _log_of(draws)
    uniforms = np.array([[draw.uniform for draw in slate] for slate in draws])
    cached = _run(exact, uniforms, np.random.default_rng(0))
    assert (cached.actions == drawn.actions).all()
    assert (cached.propensities == drawn.propensities).all()
    assert (cached.n_feasible == drawn.n_feasible).all()
    assert cached.cumulative_before == pytest.approx(drawn.cumulative_before, abs=1e-15)


def test_slates_come_as_often_as_their_propensities_say(log: Log, draws: list[list[SlotDraw]]) -> None:
    assert _slates_p(log) > ALPHA / 2
    assert _slates_p(_log_of(draws)) > ALPHA / 2


@pytest.mark.parametrize("wrong", WRONG)
def test_control_slate_counts_reject_wrong_samplers(wrong: DrawSlot) -> None:
    assert _slates_p(_wrong_log(wrong)) < ALPHA


def test_the_randomised_probability_integral_transform_is_uniform(log: Log, draws: list[list[SlotDraw]]) -> None:
    assert _pit_p(log) > ALPHA / 2
    assert _pit_p(_log_of(draws)) > ALPHA / 2


@pytest.mark.parametrize("wrong", WRONG)
def test_control_the_transform_rejects_wrong_samplers(wrong: DrawSlot) -> None:
    assert _pit_p(_wrong_log(wrong)) < ALPHA


def test_one_over_propensity_and_feasible_count_averages_one(log: Log, draws: list[list[SlotDraw]]) -> None:
    assert _uniform_mean_p(log) > ALPHA / 2
    assert _uniform_mean_p(_log_of(draws)) > ALPHA / 2


@pytest.mark.parametrize("wrong", WRONG)
def test_control_the_uniform_mean_rejects_wrong_samplers(wrong: DrawSlot) -> None:
    assert _uniform_mean_p(_wrong_log(wrong)) < ALPHA


@pytest.mark.parametrize("target", TARGETS)
def test_importance_weights_average_one(log: Log, target: str) -> None:
    assert _weights_p(log, TARGETS[target]) > ALPHA / len(TARGETS)


@pytest.mark.parametrize("wrong", WRONG)
def test_control_importance_weights_reject_wrong_samplers(wrong: DrawSlot) -> None:
    assert min(_weights_p(_wrong_log(wrong), target) for target in TARGETS.values()) < ALPHA / len(TARGETS)


# --- branches --------------------------------------------------------------------------------------------------------

BRANCHES = ("greedy", "uniform", "shortlist")


def _branches_p(rows: list[tuple[tuple[int, ...], int, str]]) -> float:
    """Chi-square of (history, action, branch) counts against the parts of the mixture."""
    observed, wanted = [], []
    counts, of_history = Counter(rows), Counter(history for history, _, _ in rows)
    for history, n in of_history.items():
        here = _pmf(LOGGING, history)
        for branch, part in zip(BRANCHES, _parts(here, history), strict=True):
            for action, mass in zip(here.feasible.tolist(), part.tolist(), strict=True):
                if mass == 0.0:
                    assert (history, action, branch) not in counts
                else:
                    observed.append(counts[history, action, branch])
                    wanted.append(n * mass)
    cells = np.array(wanted) >= 5.0
    statistic = ((np.array(observed) - np.array(wanted)) ** 2 / np.array(wanted))[cells].sum()
    return float(stats.chi2.sf(statistic, int(cells.sum()) - len(of_history)))


def _branch_rows(draws: list[list[SlotDraw]]) -> list[tuple[tuple[int, ...], int, str]]:
    # The first two slots have few histories, so that most cells are well filled.
    return [
        (tuple(d.action for d in slate[:slot]), slate[slot].action, slate[slot].branch)
        for slate in draws
        for slot in range(2)
    ]


def test_parts_of_the_mixture_add_up_to_the_pmf() -> None:
    for history in [(), (0,), (3,), (0, 2), (5, 1)]:
        here = _pmf(LOGGING, history)
        assert sum(_parts(here, history)) == pytest.approx(here.pmf, abs=1e-12)


def test_branches_have_the_joint_law_of_the_mixture(draws: list[list[SlotDraw]]) -> None:
    assert _branches_p(_branch_rows(draws)) > ALPHA


def test_control_branches_drawn_beside_the_action_are_rejected(draws: list[list[SlotDraw]]) -> None:
    rng = np.random.default_rng(3)
    shares = np.array([1 - LOGGING.rate, LOGGING.rate * LOGGING.uniform_share])
    coins = [BRANCHES[place] for place in np.searchsorted(shares.cumsum(), rng.random(2 * len(draws)))]
    beside = []
    for (history, action, _), coin in zip(_branch_rows(draws), coins, strict=True):
        # Right marginals; where the branch could not have given the action, the uniform one could.
        here = _pmf(LOGGING, history)
        part = _parts(here, history)[BRANCHES.index(coin)]
        possible = part[here.feasible.tolist().index(action)] > 0.0
        beside.append((history, action, coin if possible else "uniform"))
    assert _branches_p(beside) < ALPHA


# --- discovery positions ---------------------------------------------------------------------------------------------

SHARE = 0.4
N_POSITION_SLOTS = 4
N_POSITIONS = 20_000


@pytest.fixture(scope="module")
def positions() -> list[tuple[tuple[int, ...], float]]:
    return [
        Discovery(share=SHARE).draw_positions(
            N_POSITION_SLOTS, build_generator(salt=b"s", purpose="discovery", surface="home", event_id=f"e{number}")
        )
        for number in range(N_POSITIONS)
    ]


def _law_of_positions(share: float) -> dict[tuple[int, ...], float]:
    whole = int(share * N_POSITION_SLOTS)
    fraction = share * N_POSITION_SLOTS - whole
    law = {}
    for size, of_size in ((whole, 1 - fraction), (whole + 1, fraction)):
        sets = list(combinations(range(N_POSITION_SLOTS), size))
        law |= dict.fromkeys(sets, of_size / len(sets))
    return law


def _positions_p(positions: list[tuple[tuple[int, ...], float]]) -> float:
    """Chi-square of the sets' counts against the logged probabilities of the sets."""
    counts, logged = Counter(chosen for chosen, _ in positions), dict(positions)
    wanted = {chosen: len(positions) * logged[chosen] for chosen in counts}
    statistic = sum((counts[chosen] - wanted[chosen]) ** 2 / wanted[chosen] for chosen in counts)
    return float(stats.chi2.sf(statistic, len(counts) - 1))


def test_discovery_sets_come_as_often_as_logged_and_the_logged_law_is_exact(
    positions: list[tuple[tuple[int, ...], float]],
) -> None:
    assert dict(positions) == pytest.approx(_law_of_positions(SHARE))
    assert _positions_p(positions) > ALPHA


def test_discovery_weights_of_another_share_average_one(positions: list[tuple[tuple[int, ...], float]]) -> None:
    target = _law_of_positions(0.3)
    weights = np.array([target.get(chosen, 0.0) / probability for chosen, probability in positions])
    assert _mean_one_p(weights) > ALPHA


def test_control_a_law_that_forgets_the_coin_is_rejected(positions: list[tuple[tuple[int, ...], float]]) -> None:
    fraction = SHARE * N_POSITION_SLOTS % 1.0
    forgetful = [(chosen, p / (fraction if len(chosen) == 2 else 1 - fraction) / 2) for chosen, p in positions]
    assert _positions_p(forgetful) < ALPHA
    target = _law_of_positions(0.3)
    assert _mean_one_p(np.array([target.get(chosen, 0.0) / p for chosen, p in forgetful])) < ALPHA


def test_slots_reserved_for_discovery_are_sampled_as_logged() -> None:
    rules = (Discovery(share=0.5), *RULES)
    rng = np.random.default_rng(11)
    slates = [
        draw_slate(_walk(LOGGING, rules=rules, positions=(1,)), uniforms) for uniforms in rng.random((5_000, N_SLOTS))
    ]
    assert all(slate[1].here.is_discovery and slate[1].action >= 3 for slate in slates)
    assert _slates_p(_log_of(slates)) > ALPHA / 2
    assert _uniform_mean_p(_log_of(slates)) > ALPHA / 2
