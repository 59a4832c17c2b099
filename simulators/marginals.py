"""Marginal probabilities of an item at a position, over all that may stand before it and over the discovery coin.

They are sums over every prefix of a slate, so they are known for short slates of few candidates only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from bandit.exploration import VwExplorer
from bandit.rules import Discovery, Rule
from bandit.support import Float64Array
from service.decision_record import walk_of
from service.messages import Decision

# Prefixes of one decision that are still listed.
MAX_PREFIXES = 200
_MAX_KEPT = 256


def position_marginals(decided: Decision, *, max_prefixes: int = MAX_PREFIXES) -> Float64Array | None:
    """Return float64 [slots requested, n candidates], P(item at slot) under the decision's own policy.

    None when more prefixes than `max_prefixes` would have to be listed, or when the policy asks a VW explorer, whose
    word is known along the logged slate only.
    """
    if isinstance(decided.exploration, VwExplorer):
        return None
    n, n_slots = len(decided.candidates.ids), decided.n_requested
    coins = discovery_coins(decided.rules, n_slots)
    if len(coins) * sum(math.perm(n, slot) for slot in range(min(n_slots, n))) > max_prefixes:
        return None
    found = np.zeros((n_slots, n))
    for positions, mass in coins:
        _add(msgspec.structs.replace(decided, discovery_positions=list(positions)), found, prefix=(), mass=mass)
    return found


class Marginals:
    """Marginals of decisions, kept for those that are drawn from the same again."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Float64Array | None] = {}

    def of(self, decided: Decision) -> Float64Array | None:
        """Return what `position_marginals` does."""
        # Time is read by rules alone.
        at_ms = decided.decided_at_unix_ms if decided.rules else 0
        drawn_from = (decided.candidates, decided.exploration, decided.rules, decided.n_requested, at_ms)
        key = msgspec.msgpack.encode(drawn_from)
        if key not in self._kept:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            self._kept[key] = position_marginals(decided)
        return self._kept[key]


def discovery_coins(rules: Sequence[Rule], n_slots: int) -> list[tuple[tuple[int, ...], float]]:
    """Return every set of reserved positions that the rules may draw, with its probability."""
    reserving = [rule for rule in rules if isinstance(rule, Discovery)]
    counts = reserving[-1].count_pmf(n_slots) if reserving else {0: 1.0}
    return [
        (positions, mass / math.comb(n_slots, count))
        for count, mass in counts.items()
        for positions in itertools.combinations(range(n_slots), count)
    ]


def _add(decided: Decision, found: Float64Array, *, prefix: tuple[int, ...], mass: float) -> None:
    """Add the mass of everything that may stand in the slot after a prefix, and after that."""
    walk = walk_of(decided)
    for action in prefix:
        walk.place(action)
    here = walk.pmf()
    if here is None:
        return
    found[len(prefix)] += mass * here.pmf
    if len(prefix) + 1 < len(found):
        for action in _drawable(here.pmf):
            _add(decided, found, prefix=(*prefix, action), mass=mass * float(here.pmf[action]))


def _drawable(pmf: Float64Array) -> Iterator[int]:
    yield from np.flatnonzero(pmf).tolist()
