"""How long after a slate was shown its clicks are reported."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtri


@dataclass(frozen=True, slots=True)
class ClickDelay:
    """Log-normal: exp(log(median_s) + spread z).

    Attributes:
        median_s: Half of the reports come earlier, in seconds.
        spread: Standard deviation of the logarithm; at 1 the 95th percentile is five medians.
    """

    median_s: float = 5.0
    spread: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no delay.

        Raises:
            ValueError: median or spread is not finite and positive (a spread may be 0).
        """
        if not 0.0 < self.median_s < math.inf or not 0.0 <= self.spread < math.inf:
            raise ValueError(f"a delay needs median_s > 0 and spread >= 0, got {self.median_s} and {self.spread}")

    def delay_ms(self, uniform: float) -> int:
        """Return the delay at a quantile in (0, 1)."""
        return int(1000.0 * self.median_s * math.exp(self.spread * float(ndtri(min(max(uniform, 1e-9), 1.0 - 1e-9)))))

    @property
    def p95_s(self) -> float:
        """Return the 95th percentile, in seconds: what a negative window should not fall below."""
        return self.delay_ms(0.95) / 1000.0
