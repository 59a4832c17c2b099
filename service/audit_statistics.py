"""Statistical tests of logged propensities: what exact recomputation cannot see, such as a sampler that cheats.

Each is a running sum, so that any number of decisions needs the same memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from service.joins import PLACED
from service.messages import Decision

# False-alarm rate of each test.
ALPHA = 1e-4
_N_BINS = 1_000
# The mean of 1/(p |A|) rests on the rare uniform draws: with fewer of them than this it is not near normal.
_MIN_UNIFORM_DRAWS = 400.0


@dataclass(slots=True)
class Mean:
    """A running mean that should be 1.

    Attributes:
        n: Values.
        total: Their sum.
        total_squares: The sum of their squares.
    """

    n: int = 0
    total: float = 0.0
    total_squares: float = 0.0

    def add(self, value: float) -> None:
        """Take one value."""
        self.n += 1
        self.total += value
        self.total_squares += value * value

    @property
    def value(self) -> float:
        """Return the mean."""
        return self.total / self.n if self.n else math.nan

    @property
    def z(self) -> float:
        """Return how many standard errors the mean is from 1."""
        if self.n < 2:
            return 0.0
        variance = max(0.0, self.total_squares / self.n - self.value**2) * self.n / (self.n - 1)
        if variance == 0.0:
            return 0.0 if self.value == 1.0 else math.inf
        return (self.value - 1.0) / math.sqrt(variance / self.n)


@dataclass(slots=True)
class AuditStatistics:
    """The tests over a stream of decisions.

    Attributes:
        seed: Of the randomisation of the probability integral transform.
        inverse: Mean of 1 / (p |A|) over slots where everything allowed has support; 1 when propensities are true.
        n_uniform: Expected number of uniform draws among them.
        pit_counts: int64 [bins], histogram of F(a-) + V p(a), uniform when propensities are true.
    """

    seed: int
    inverse: Mean = field(default_factory=Mean)
    n_uniform: float = 0.0
    pit_counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_N_BINS, dtype=np.int64))
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def add(self, decision: Decision) -> None:
        """Take the drawn slots of a decision."""
        drawn = [slot for slot in decision.slots if slot.reason not in PLACED]
        floor = decision.exploration.uniform_floor
        for slot, noise in zip(drawn, self._rng.random(len(drawn)).tolist(), strict=True):
            place = slot.cumulative_before + noise * slot.propensity
            self.pit_counts[min(int(place * _N_BINS), _N_BINS - 1)] += 1
            if floor > 0.0:
                self.n_uniform += floor
                self.inverse.add(1.0 / (slot.propensity * slot.n_feasible))

    @property
    def pit_p(self) -> float:
        """Return the p-value of the chi-square test of the histogram against the uniform distribution."""
        n = int(self.pit_counts.sum())
        # Merge bins until each expects at least 20.
        n_bins = next((bins for bins in (1_000, 200, 100, 50, 20, 10) if n / bins >= 20), 0)
        if not n_bins:
            return 1.0
        return float(stats.chisquare(self.pit_counts.reshape(n_bins, -1).sum(axis=1)).pvalue)

    @property
    def alarms(self) -> list[str]:
        """Return the tests that reject, in words."""
        found = []
        if self.pit_p < ALPHA:
            found.append(f"the draws do not follow the logged propensities (PIT p = {self.pit_p:.2g})")
        if self.n_uniform >= _MIN_UNIFORM_DRAWS and abs(self.inverse.z) > float(stats.norm.isf(ALPHA / 2)):
            found.append(f"mean of 1/(p |A|) is {self.inverse.value:.4f}, {self.inverse.z:+.1f} standard errors from 1")
        return found

    def summary(self) -> dict[str, Any]:
        """Return the figures."""
        return {
            "n_slots": int(self.pit_counts.sum()),
            "pit_p": self.pit_p,
            "mean_inverse": None if not self.inverse.n else self.inverse.value,
            "mean_inverse_z": self.inverse.z if self.n_uniform >= _MIN_UNIFORM_DRAWS else None,
            "alarms": self.alarms,
        }
