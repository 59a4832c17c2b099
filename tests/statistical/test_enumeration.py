"""Every slate of a tiny world, under every policy and every set of rules, against a slow oracle written from the text.

The oracle knows nothing of arrays: it reads the rules one by one, in plain Python, and multiplies fractions of mass.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from bandit.columns import NO_CODE
from bandit.exploration import Epsilon, Exploration, Greedy, Softmax, SquareCB
from bandit.rules import (
    Discovery,
    Diversity,
    Freshness,
    MaxPer,
    Pinned,
    Prior,
    Rule,
    SeenDemotion,
    Sponsored,
)
from bandit.slate import ActionSet, SlateWalk, draw_slate

DAY_MS = 86_400_000
NOW_MS = 1_000 * DAY_MS
N_SLOTS = 3
DISCOVERY_POSITIONS = (1,)

SCORES = [0.5, 0.25, 0.5, 0.0, -0.25, 0.125]
CREATOR = [0, 0, 1, 1, NO_CODE, 2]
GENRES = [0b0011, 0b0010, 0b0100, 0b0010, 0b0000, 0b1000]
AVAILABLE_MS = [NOW_MS - DAY_MS, 0, NOW_MS - 30 * DAY_MS, NOW_MS, NOW_MS - 7 * DAY_MS, NOW_MS - 60 * DAY_MS]
AFFINITY = [0.5, math.nan, -0.5, 1.0, 0.25, 0.0]
N_SEEN = [0, 1, 5, 0, 2, 0]
POOL = [False, False, False, True, False, True]
SPONSORED = [-1, -1, -1, -1, 0, -1]
PINNED = [-1, 2, -1, -1, -1, 7]

POLICIES: dict[str, Exploration] = {
    "greedy": Greedy(),
    "epsilon": Epsilon(rate=0.3, uniform_share=0.25, shortlist=3),
    "epsilon, warm": Epsilon(rate=0.9, uniform_share=0.5, shortlist=2, temperature=0.5),
    "softmax": Softmax(temperature=0.3, shortlist=4, uniform_share=0.1),
    "softmax, own scale": Softmax(shortlist=5, uniform_share=0.0),
    "squarecb": SquareCB(gamma=20.0, shortlist=4, uniform_share=0.1),
}
RULES: tuple[Rule, ...] = (
    MaxPer(column="creator", limit=1, window=2),
    MaxPer(column="genres", limit=1, window=3),
    Freshness(boost=0.2, half_life_days=10.0),
    Prior(weight=0.3),
    SeenDemotion(penalty=0.1, most=3),
    Diversity(weight=0.4, column="genres"),
    Discovery(share=1 / 3),
    Sponsored(slots=[0]),
    Pinned(),
)


def walk_of(policy: Exploration, rules: tuple[Rule, ...]) -> SlateWalk:
    columns = {
        "creator": np.array(CREATOR, dtype=np.int32),
        "genres": np.array(GENRES, dtype=np.uint64),
        "available_at_unix_ms": np.array(AVAILABLE_MS, dtype=np.int64),
        "affinity": np.array(AFFINITY, dtype=np.float32),
        "n_seen": np.array(N_SEEN, dtype=np.int32),
        "discovery": np.array(POOL),
        "sponsored": np.array(SPONSORED, dtype=np.int32),
        "pinned_slot": np.array(PINNED, dtype=np.int32),
    }
    ids = [f"item-{i}" for i in range(len(SCORES))]
    return SlateWalk(
        actions=ActionSet(ids=ids, scores=np.array(SCORES, dtype=np.float32), columns=columns),
        exploration=policy,
        rules=rules,
        now_ms=NOW_MS,
        n_slots=N_SLOTS,
        discovery_positions=DISCOVERY_POSITIONS,
    )


def oracle_pmf(policy: Exploration, rules: tuple[Rule, ...], history: tuple[int, ...]) -> dict[int, float]:
    """The pmf of the next slot by the rules' own words."""
    slot = len(history)
    has = {type(rule) for rule in rules}
    # Placements: the pinned item has slot 2, the sponsored one slot 0; neither is shown anywhere else.
    claims = {**({0: 4} if Sponsored in has else {}), **({2: 1} if Pinned in has else {})}
    if slot in claims:
        return {claims[slot]: 1.0}
    free = [a for a in range(len(SCORES)) if a not in history and a not in claims.values()]
    limits = []
    for rule in rules:
        if isinstance(rule, MaxPer):
            limits.append([a for a in free if not _is_full(rule, history, a)])
        elif isinstance(rule, Discovery) and slot in DISCOVERY_POSITIONS:
            limits.append([a for a in free if POOL[a]])
    while limits and not set(free).intersection(*limits):
        limits.pop()
    allowed = sorted(set(free).intersection(*limits))
    if not allowed:
        return {}
    scores = {a: _boosted(rules, history, a) for a in allowed}
    return _mixture(policy, scores)


def _is_full(rule: MaxPer, history: tuple[int, ...], action: int) -> bool:
    recent = history[max(0, len(history) - rule.window + 1) :]
    if rule.column == "creator":
        return CREATOR[action] != NO_CODE and sum(CREATOR[h] == CREATOR[action] for h in recent) >= rule.limit
    bits = [1 << bit for bit in range(4) if GENRES[action] & (1 << bit)]
    return any(sum(bool(GENRES[h] & bit) for h in recent) >= rule.limit for bit in bits)


def _boosted(rules: tuple[Rule, ...], history: tuple[int, ...], a: int) -> float:
    score = SCORES[a]
    for rule in rules:
        if isinstance(rule, Freshness) and AVAILABLE_MS[a]:
            score += rule.boost * 2.0 ** (-((NOW_MS - AVAILABLE_MS[a]) / DAY_MS) / rule.half_life_days)
        elif isinstance(rule, Prior) and not math.isnan(AFFINITY[a]):
            score += rule.weight * AFFINITY[a]
        elif isinstance(rule, SeenDemotion):
            score -= rule.penalty * min(N_SEEN[a], rule.most)
        elif isinstance(rule, Diversity):
            score -= rule.weight * max((_jaccard(GENRES[a], GENRES[h]) for h in history), default=0.0)
    return score


def _jaccard(one: int, other: int) -> float:
    return (one & other).bit_count() / max((one | other).bit_count(), 1)


def _mixture(policy: Exploration, scores: dict[int, float]) -> dict[int, float]:
    best = max(scores.values())
    tied = [a for a in scores if math.isclose(scores[a], best, abs_tol=1e-12)]
    top = sorted(scores, key=lambda a: (-round(scores[a], 12), a))[: policy.shortlist_size]
    n = len(scores)
    greedy = {a: 1.0 / len(tied) for a in tied}
    if isinstance(policy, Greedy):
        return {a: greedy.get(a, 0.0) for a in scores}
    if isinstance(policy, SquareCB):
        others = {a: 1.0 / (len(top) + policy.gamma * (best - scores[a])) for a in top if a not in tied}
        explored = {a: others.get(a, (1.0 - sum(others.values())) / len(set(top) & set(tied))) for a in top}
    else:
        explored = _softmax({a: scores[a] for a in top}, policy.temperature)
    lam = policy.uniform_share
    mixed = {a: (1 - lam) * explored.get(a, 0.0) + lam / n for a in scores}
    if isinstance(policy, Epsilon):
        return {a: (1 - policy.rate) * greedy.get(a, 0.0) + policy.rate * mixed[a] for a in scores}
    return mixed


def _softmax(scores: dict[int, float], temperature: float | None) -> dict[int, float]:
    tau = temperature
    if tau is None:
        low, high = np.percentile(list(scores.values()), (25, 75))
        tau = float(high - low)
    if tau < 1e-12:
        return dict.fromkeys(scores, 1.0 / len(scores))
    weights = {a: math.exp((score - max(scores.values())) / tau) for a, score in scores.items()}
    return {a: weight / sum(weights.values()) for a, weight in weights.items()}


def enumerate_slates(
    policy: Exploration, rules: tuple[Rule, ...], history: tuple[int, ...] = ()
) -> dict[tuple[int, ...], float]:
    """Every slate with its probability, each node of the tree compared with the oracle."""
    walk = walk_of(policy, rules)
    for action in history:
        walk.place(action)
    here = walk.pmf() if len(history) < N_SLOTS else None
    if here is None:
        if len(history) < N_SLOTS:
            assert oracle_pmf(policy, rules, history) == {}
        return {history: 1.0}
    expected = oracle_pmf(policy, rules, history)
    got = {a: float(p) for a, p in enumerate(here.pmf) if here.view.allowed[a]}
    assert got == pytest.approx(expected, abs=1e-6), (policy, rules, history)
    assert abs(math.fsum(here.pmf) - 1.0) < 1e-12
    assert not here.pmf[~here.view.allowed].any()
    slates: dict[tuple[int, ...], float] = {}
    for action in np.flatnonzero(here.pmf).tolist():
        for slate, probability in enumerate_slates(policy, rules, (*history, action)).items():
            slates[slate] = probability * float(here.pmf[action])
    return slates


@pytest.mark.parametrize("name", POLICIES)
def test_every_slate_under_every_set_of_rules_has_the_probability_of_the_oracle(name: str) -> None:
    policy = POLICIES[name]
    # All sets of up to three rules, and the whole: every pair and triple of rules meets every policy.
    sets = [chosen for size in range(4) for chosen in itertools.combinations(RULES, size)]
    for rules in (*sets, RULES, RULES[::-1]):
        slates = enumerate_slates(policy, rules)
        assert abs(math.fsum(slates.values()) - 1.0) < 1e-12
        assert all(len(set(slate)) == len(slate) for slate in slates)


@pytest.mark.parametrize("name", POLICIES)
def test_a_draw_at_either_end_of_an_actions_stretch_is_that_action(name: str) -> None:
    rules = RULES
    first = walk_of(POLICIES[name], rules)
    draws = draw_slate(first, np.array([0.5, 0.5, 0.5]))
    for draw in draws:
        start, end = draw.cumulative_before, draw.cumulative_before + draw.propensity
        for uniform in (start, np.nextafter(end, 0.0) - 1e-15):
            if not start <= uniform < end:
                continue
            again = walk_of(POLICIES[name], rules)
            uniforms = np.array([0.5] * draw.slot + [uniform])
            assert draw_slate(again, uniforms)[draw.slot].action == draw.action


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule.__struct_config__.tag))
def test_an_oracle_that_forgets_the_rule_disagrees(rule: Rule) -> None:
    policy = POLICIES["epsilon"]
    differs = False
    for history in itertools.chain([()], *(itertools.permutations(range(len(SCORES)), n) for n in (1, 2))):
        walk = walk_of(policy, (rule,))
        for action in history:
            walk.place(action)
        here = walk.pmf()
        assert here is not None
        got = {a: float(p) for a, p in enumerate(here.pmf) if here.view.allowed[a]}
        differs |= got != pytest.approx(oracle_pmf(policy, (), history), abs=1e-6)
    assert differs
