"""What showing does to liking: users tire of what they see again, and popular items are liked for being popular."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fatigue:
    """A user's attraction to an item is multiplied by `factor` for every showing, which is forgotten with time.

    Attributes:
        factor: In (0, 1]; 1 switches it off.
        half_life_s: A showing counts half after so long, in seconds.
    """

    factor: float = 1.0
    half_life_s: float = 86_400.0


@dataclass(frozen=True, slots=True)
class PopularityFeedback:
    """The most clicked item gains `logit`, the others in proportion to their clicks.

    Attributes:
        logit: Added to the log odds of attraction; 0 switches it off.
        half_life_s: A click counts half after so long, in seconds.
    """

    logit: float = 0.0
    half_life_s: float = 86_400.0


class ShownMemory:
    """What each user was shown, decayed."""

    def __init__(self, fatigue: Fatigue) -> None:
        self._fatigue = fatigue
        # (decayed showings, ms of the last one) by item number, by user.
        self._shown: defaultdict[int, dict[int, tuple[float, int]]] = defaultdict(dict)

    def tire(self, attraction: Float64Array, user: int, *, first: int, now_ms: int) -> None:
        """Lower the attraction [n_live] of what the user was shown, in place; `first` is the number of its row 0."""
        if self._fatigue.factor == 1.0 or user not in self._shown:
            return
        shown = self._shown[user]
        for number in [number for number in shown if number < first]:
            del shown[number]
        for number, (count, at_ms) in shown.items():
            attraction[number - first] *= self._fatigue.factor ** (count * self._decay(now_ms - at_ms))

    def add(self, user: int, numbers: Sequence[int], *, now_ms: int) -> None:
        """Count a slate."""
        if self._fatigue.factor == 1.0:
            return
        shown = self._shown[user]
        for number in numbers:
            count, at_ms = shown.get(number, (0.0, now_ms))
            shown[number] = (1.0 + count * self._decay(now_ms - at_ms), now_ms)

    def _decay(self, elapsed_ms: int) -> float:
        return math.exp2(-elapsed_ms / (1000.0 * self._fatigue.half_life_s))


class ClickedMemory:
    """How often each item was clicked, decayed."""

    def __init__(self, feedback: PopularityFeedback) -> None:
        self._feedback = feedback
        # Counts as of `_at_ms`; the factor of all is kept apart.
        self._counts = np.zeros(1024)
        self._at_ms = 0

    def boost(self, first: int, n: int) -> Float64Array | float:
        """Return what is added to the log odds of items `first` to `first + n`: float64 [n], or 0."""
        if self._feedback.logit == 0.0:
            return 0.0
        self._reach(first + n)
        counts = self._counts[first : first + n]
        most = float(counts.max(initial=0.0))
        return self._feedback.logit * counts / most if most > 0.0 else 0.0

    def add(self, numbers: Sequence[int], *, now_ms: int) -> None:
        """Count clicks."""
        if self._feedback.logit == 0.0 or not numbers:
            return
        self._reach(max(numbers) + 1)
        self._counts *= math.exp2(-(now_ms - self._at_ms) / (1000.0 * self._feedback.half_life_s))
        self._at_ms = now_ms
        np.add.at(self._counts, list(numbers), 1.0)

    def _reach(self, n: int) -> None:
        while n > len(self._counts):
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
