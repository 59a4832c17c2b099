"""How a slate is looked at and clicked: three click models with exact marginals.

All say who looks at which slot; whoever looks at an item clicks with its attraction, independently. So the probability
of a click in a slot is the one of looking at it times the attraction of what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

# A slate has a few slots: lists of them are quicker to go through than arrays.
Looks = tuple[list[bool], list[bool]]


class ClickModel(Protocol):
    """A way of looking at a slate, from the top."""

    def examination(self, attraction: Sequence[float]) -> Sequence[float]:
        """Return the exact probability that each slot is looked at.

        Args:
            attraction: Of each slot, probability that its item is clicked by who looks at it.
        """

    def browse(self, attraction: Sequence[float], look: Sequence[float], like: Sequence[float]) -> Looks:
        """Return which slots were looked at and which of them clicked.

        Args:
            attraction: Of each slot.
            look: Of each slot, the uniform that decides whether it is looked at.
            like: Of each slot, the uniform that decides whether what is looked at is clicked.
        """


@dataclass(frozen=True, slots=True)
class PositionBased:
    """Every slot is looked at by itself, with a probability that falls with the slot: P = decay^slot.

    Attributes:
        decay: In (0, 1].

    Source: Richardson, Dominowska, Ragno (2007); Craswell et al. (2008).
    """

    decay: float = 0.85

    def __post_init__(self) -> None:
        """Refuse what is no probability.

        Raises:
            ValueError: decay is outside (0, 1].
        """
        _check("decay", self.decay)

    def examination(self, attraction: Sequence[float]) -> Sequence[float]:
        """Return decay^slot."""
        return _falling(self.decay, len(attraction))

    def browse(self, attraction: Sequence[float], look: Sequence[float], like: Sequence[float]) -> Looks:
        """Decide every slot by itself."""
        examined = [coin < seen for coin, seen in zip(look, self.examination(attraction), strict=True)]
        return examined, _clicked(examined, attraction, like)


@dataclass(frozen=True, slots=True)
class DependentClick:
    """From the top: the next slot is looked at with one probability after a click, another after none.

    P(look at k + 1) = P(look at k) (a_k after_click + (1 - a_k) persistence)

    Attributes:
        persistence: Probability of going on after no click, in (0, 1].
        after_click: Probability of going on after a click, in [0, persistence].

    Source: Guo, Liu, Wang (2009), with one continuation probability for all slots and with abandonment.
    """

    persistence: float = 0.95
    after_click: float = 0.6

    def __post_init__(self) -> None:
        """Refuse what is no probability, and clicks that make people go on more than none.

        The best slate would then not be the one in order of attraction.

        Raises:
            ValueError: one of them is.
        """
        _check("persistence", self.persistence)
        if not 0.0 <= self.after_click <= self.persistence:
            raise ValueError(f"after_click must be in [0, persistence = {self.persistence}], got {self.after_click}")

    def examination(self, attraction: Sequence[float]) -> Sequence[float]:
        """Multiply along the slate."""
        seen, examined = 1.0, []
        for clicked in attraction:
            examined.append(seen)
            seen *= self.persistence - clicked * (self.persistence - self.after_click)
        return examined

    def browse(self, attraction: Sequence[float], look: Sequence[float], like: Sequence[float]) -> Looks:
        """Go down the slate until somebody stops."""
        is_there, examined = True, []
        for clicked, coin, liking in zip(attraction, look, like, strict=True):
            examined.append(is_there)
            is_there = is_there and coin < (self.after_click if liking < clicked else self.persistence)
        return examined, _clicked(examined, attraction, like)


@dataclass(frozen=True, slots=True)
class Cascade:
    """From the top until the first click; who found nothing looks on with a probability.

    Attributes:
        persistence: Probability of going on after no click, in (0, 1]; 1 is the model as published.

    Source: Craswell et al. (2008).
    """

    persistence: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no probability.

        Raises:
            ValueError: persistence is outside (0, 1].
        """
        _check("persistence", self.persistence)

    def examination(self, attraction: Sequence[float]) -> Sequence[float]:
        """Return the probability of no click above."""
        return DependentClick(self.persistence, 0.0).examination(attraction)

    def browse(self, attraction: Sequence[float], look: Sequence[float], like: Sequence[float]) -> Looks:
        """Go down the slate until the first click."""
        return DependentClick(self.persistence, 0.0).browse(attraction, look, like)


@lru_cache(maxsize=64)
def _falling(decay: float, n_slots: int) -> tuple[float, ...]:
    """Return decay^slot for every slot."""
    powers: list[float] = (decay ** np.arange(n_slots)).tolist()
    return tuple(powers)


def _clicked(examined: Sequence[bool], attraction: Sequence[float], like: Sequence[float]) -> list[bool]:
    """Return what of the slots that are looked at is clicked."""
    slots = zip(examined, attraction, like, strict=True)
    return [looked and liking < clicked for looked, clicked, liking in slots]


def _check(name: str, value: float) -> None:
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} must be in (0, 1], got {value}")
