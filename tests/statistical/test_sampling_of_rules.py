"""Slates as the production code draws them, sampled, against the oracle's enumeration: every policy and set of rules.

The false-alarm rate of a whole run is 1e-4. The control draws from another policy than the one that is enumerated.
"""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from bandit.exploration import Exploration
from bandit.rules import Rule
from bandit.slate import draw_slate
from tests.statistical.test_enumeration import N_SLOTS, POLICIES, RULES, enumerate_slates, walk_of

ALPHA = 1e-4
SETS = [*(chosen for size in range(4) for chosen in itertools.combinations(RULES, size)), RULES, RULES[::-1]]
_ENOUGH = 5.0


def _p_value(drawn: Exploration, enumerated: Exploration, rules: tuple[Rule, ...], *, n: int, seed: int) -> float:
    """Return the chi-square p-value of n drawn slates; slates that are expected too rarely make one bin."""
    uniforms = np.random.default_rng(seed).random((n, N_SLOTS))
    seen = Counter(tuple(d.action for d in draw_slate(walk_of(drawn, rules), row)) for row in uniforms)
    expected = {slate: p * n for slate, p in enumerate_slates(enumerated, rules).items()}
    # A slate that the enumeration does not know has no place in any bin.
    if not seen.keys() <= expected.keys():
        return 0.0
    bins = [(seen[slate], e) for slate, e in expected.items() if e >= _ENOUGH]
    rest = (n - sum(b[0] for b in bins), n - sum(b[1] for b in bins))
    if rest[1] >= _ENOUGH:
        bins.append(rest)
    observed, wanted = np.array(bins, dtype=np.float64).T
    if len(bins) < 2:
        return 1.0
    return float(stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)


@pytest.mark.parametrize("name", POLICIES)
def test_slates_under_all_rules_at_once_are_drawn_as_enumerated(name: str) -> None:
    p_value = _p_value(POLICIES[name], POLICIES[name], RULES, n=1_500, seed=20261122)
    assert p_value > ALPHA / len(POLICIES)


def test_slates_of_another_policy_are_told_apart() -> None:
    assert _p_value(POLICIES["epsilon, warm"], POLICIES["epsilon"], (), n=1_500, seed=20261122) < 1e-12


@pytest.mark.long
@pytest.mark.parametrize("name", POLICIES)
def test_slates_under_every_set_of_rules_are_drawn_as_enumerated(name: str) -> None:
    policy = POLICIES[name]
    p_values = [_p_value(policy, policy, rules, n=3_000, seed=number) for number, rules in enumerate(SETS)]
    assert min(p_values) > ALPHA / (len(SETS) * len(POLICIES))
    # Together they are uniform up to the grain of chi-square: far too many small ones would show here.
    assert stats.binomtest(sum(p < 0.05 for p in p_values), len(p_values), 0.05, alternative="greater").pvalue > ALPHA
