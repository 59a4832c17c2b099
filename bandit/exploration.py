"""Closed-form exploration: how a policy splits the mass of one slot among its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from bandit._native import inverse_gap_mixture, softmax_mixture
from bandit.slot import ALL_GREEDY, Mixture, SlotView


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """Base of the policies; subclasses say how the mass is split."""

    def mixture(self, view: SlotView) -> Mixture:
        """Return the parts of the slot's pmf."""
        raise NotImplementedError

    @property
    def explore_rate(self) -> float | None:
        """Return the declared probability of exploring, None for a policy whose rate follows from the scores."""
        return None

    @property
    def shortlist_size(self) -> int:
        """Return how many of the best actions the policy looks at; 0 for the best alone."""
        raise NotImplementedError

    @property
    def uniform_floor(self) -> float:
        """Return the mass shared by everything allowed; above 0, every allowed action has support."""
        raise NotImplementedError


class Greedy(Policy, frozen=True, kw_only=True, tag="greedy"):
    """Always a best action. Its logs support no other policy."""

    def mixture(self, view: SlotView) -> Mixture:
        """Return all mass on the best."""
        return ALL_GREEDY

    @property
    def explore_rate(self) -> float:
        """Return 0."""
        return 0.0

    @property
    def shortlist_size(self) -> int:
        """Return 0."""
        return 0

    @property
    def uniform_floor(self) -> float:
        """Return 0."""
        return 0.0


class _OnShortlist(Policy, frozen=True, kw_only=True):
    """Base of the policies that mix a pmf over a shortlist with a uniform floor."""

    if TYPE_CHECKING:  # Declared by each policy: a field of the base would change the order in which they are stored.
        shortlist: int
        uniform_share: float

    @property
    def shortlist_size(self) -> int:
        """Return the size of the shortlist."""
        return self.shortlist

    @property
    def uniform_floor(self) -> float:
        """Return the uniform share."""
        return self.uniform_share


class Epsilon(_OnShortlist, frozen=True, kw_only=True, tag="epsilon"):
    """Epsilon-greedy whose exploration is a softmax over a shortlist mixed with a uniform floor.

    p(a) = (1 - rate) [a best] / |best| + rate ((1 - uniform_share) softmax over the shortlist (s / temperature)(a)
    + uniform_share / n). Every allowed action keeps p >= rate * uniform_share / n.

    Attributes:
        rate: Probability of exploring, in [0, 1].
        uniform_share: Share of exploration that is uniform over all that is allowed, in [0, 1].
        shortlist: How many of the best actions the softmax covers.
        temperature: Softmax temperature in units of the score; None takes the interquartile range of the shortlist.

    Source: SCIENCE notes, section 1.
    """

    rate: float = 0.1
    uniform_share: float = 0.25
    shortlist: int = 50
    temperature: float | None = None

    def __post_init__(self) -> None:
        """Refuse parameters outside their ranges.

        Raises:
            ValueError: a parameter is out of range; the message names it.
        """
        _check_share("rate", self.rate)
        _check_share("uniform_share", self.uniform_share)
        _check_shortlist(self.shortlist, self.temperature)

    def mixture(self, view: SlotView) -> Mixture:
        """Return greedy, softmax and uniform parts; the softmax is uniform where the temperature comes out as 0."""
        rate, share = self.rate, self.uniform_share
        return softmax_mixture(view, 1.0 - rate, rate * (1.0 - share), rate * share, self.temperature)

    @property
    def explore_rate(self) -> float:
        """Return the rate."""
        return self.rate

    @property
    def uniform_floor(self) -> float:
        """Return rate times uniform share."""
        return self.rate * self.uniform_share


class Softmax(_OnShortlist, frozen=True, kw_only=True, tag="softmax"):
    """A softmax over a shortlist, mixed with a uniform floor.

    p(a) = (1 - uniform_share) softmax over the shortlist (s / temperature)(a) + uniform_share / n

    Attributes:
        temperature: In units of the score; None takes the interquartile range of the shortlist.
        shortlist: How many of the best actions the softmax covers.
        uniform_share: Mass of the floor, in [0, 1].
    """

    temperature: float | None = None
    shortlist: int = 50
    uniform_share: float = 0.02

    def __post_init__(self) -> None:
        """Refuse parameters outside their ranges.

        Raises:
            ValueError: a parameter is out of range; the message names it.
        """
        _check_share("uniform_share", self.uniform_share)
        _check_shortlist(self.shortlist, self.temperature)

    def mixture(self, view: SlotView) -> Mixture:
        """Return softmax and uniform parts."""
        return softmax_mixture(view, 0.0, 1.0 - self.uniform_share, self.uniform_share, self.temperature)


class SquareCB(_OnShortlist, frozen=True, kw_only=True, tag="squarecb"):
    """Inverse gap weighting over a shortlist, mixed with a uniform floor.

    On a shortlist of m: p(a) = 1 / (m + gamma (s_best - s_a)) for what is not best; the best share the rest equally.
    At catalogue scale it explores far too much, which is why it works on a shortlist.

    Attributes:
        gamma: How fast probability falls with the gap, per unit of the score; larger is greedier.
        shortlist: Size m.
        uniform_share: Mass of the floor, in [0, 1].

    Source: Foster and Rakhlin (2020), Beyond UCB.
    """

    gamma: float = 1000.0
    shortlist: int = 20
    uniform_share: float = 0.02

    def __post_init__(self) -> None:
        """Refuse parameters outside their ranges.

        Raises:
            ValueError: a parameter is out of range; the message names it.
        """
        if not 0.0 <= self.gamma < np.inf:
            raise ValueError(f"exploration gamma must be finite and not negative, got {self.gamma}")
        _check_share("uniform_share", self.uniform_share)
        _check_shortlist(self.shortlist, None)

    def mixture(self, view: SlotView) -> Mixture:
        """Return gap-weighted and uniform parts."""
        return inverse_gap_mixture(view, self.gamma, self.uniform_share)


class VwExplorer(_OnShortlist, frozen=True, kw_only=True, tag="vw"):
    """A VW explorer over a shortlist, mixed with a uniform floor.

    p(a) = (1 - uniform_share) explorer's pmf over the shortlist (a) + uniform_share / n

    The surface's own model ranks and so makes the shortlist. The explorer is a model of its own, learned on every
    action of the shortlists; it does not see boosts, and its pmf is logged with the slot.

    Attributes:
        model: Name of the explorer under `[models]`, one with `arguments`.
        shortlist: How many of the best actions the explorer chooses from, at most 50.
        uniform_share: Mass of the floor, in [0, 1].
    """

    model: str
    shortlist: int = 20
    uniform_share: float = 0.02

    def __post_init__(self) -> None:
        """Refuse parameters outside their ranges.

        Raises:
            ValueError: a parameter is out of range; the message names it.
        """
        _check_share("uniform_share", self.uniform_share)
        _check_shortlist(self.shortlist, None)
        if self.shortlist > 50:
            raise ValueError(f"exploration shortlist of an explorer must be at most 50, got {self.shortlist}")

    def mixture(self, view: SlotView) -> Mixture:
        """Return the explorer's and the uniform part.

        Raises:
            ValueError: the view has no pmf of the explorer, or not one over the shortlist.
        """
        pmf = view.explorer_pmf
        if pmf is None or pmf.shape != view.top.shape or not (pmf >= 0.0).all() or not abs(pmf.sum() - 1.0) < 1e-12:
            raise ValueError(f"the explorer must give a pmf over the {len(view.top)} actions of the shortlist")
        return Mixture(greedy=0.0, shortlist=(1.0 - self.uniform_share) * pmf, uniform=self.uniform_share)


Exploration = Greedy | Epsilon | Softmax | SquareCB | VwExplorer


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"exploration {name} must be in [0, 1], got {value}")


def _check_shortlist(shortlist: int, temperature: float | None) -> None:
    if shortlist < 1:
        raise ValueError(f"exploration shortlist must be at least 1, got {shortlist}")
    if temperature is not None and not 0.0 < temperature < np.inf:
        raise ValueError(f"exploration temperature must be positive and finite, got {temperature}")
