"""How a slate is looked at and clicked: three click models with exact marginals.

All say who looks at which slot; whoever looks at an item clicks with its attraction, independently. So the probability
of a click in a slot is the one of looking at it times the attraction of what is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class ClickModel(Protocol):
    """A way of looking at a slate, from the top."""

    def examination(self, attraction: Float64Array) -> Float64Array:
        """Return float64 [n_slots]: the exact probability that each slot is looked at.

        Args:
            attraction: float64 [n_slots], probability that the item of a slot is clicked by who looks at it.
        """

    def browse(self, attraction: Float64Array, look: Float64Array, like: Float64Array) -> tuple[BoolArray, BoolArray]:
        """Return which slots were looked at and which of them clicked.

        Args:
            attraction: float64 [n_slots].
            look: float64 [n_slots] uniforms that decide whether it is looked at.
            like: float64 [n_slots] uniforms that decide whether what is looked at is clicked.
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

    def examination(self, attraction: Float64Array) -> Float64Array:
        """Return decay^slot."""
        return np.asarray(self.decay ** np.arange(len(attraction)), dtype=np.float64)

    def browse(self, attraction: Float64Array, look: Float64Array, like: Float64Array) -> tuple[BoolArray, BoolArray]:
        """Decide every slot by itself."""
        examined = look < self.examination(attraction)
        return examined, examined & (like < attraction)


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

    def examination(self, attraction: Float64Array) -> Float64Array:
        """Multiply along the slate."""
        going_on = self.persistence - attraction[:-1] * (self.persistence - self.after_click)
        return np.concatenate([np.ones(min(1, len(attraction))), np.cumprod(going_on)])

    def browse(self, attraction: Float64Array, look: Float64Array, like: Float64Array) -> tuple[BoolArray, BoolArray]:
        """Go down the slate until somebody stops."""
        liked = like < attraction
        goes_on = look < np.where(liked, self.after_click, self.persistence)
        examined = np.concatenate([np.ones(min(1, len(look)), dtype=np.bool_), np.logical_and.accumulate(goes_on[:-1])])
        return examined, examined & liked


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

    def examination(self, attraction: Float64Array) -> Float64Array:
        """Return the probability of no click above."""
        return DependentClick(self.persistence, 0.0).examination(attraction)

    def browse(self, attraction: Float64Array, look: Float64Array, like: Float64Array) -> tuple[BoolArray, BoolArray]:
        """Go down the slate until the first click."""
        return DependentClick(self.persistence, 0.0).browse(attraction, look, like)


def _check(name: str, value: float) -> None:
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} must be in (0, 1], got {value}")
