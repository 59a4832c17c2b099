"""Which items there are at a time: a window that moves on as new ones appear and the oldest go."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Churn:
    """Items are numbered by age; at any time `n_live` of them are there.

    Attributes:
        n_live: Items at any time.
        every_s: A new item appears, and the oldest goes, so often, in seconds; infinite for never.
    """

    n_live: int = 100
    every_s: float = math.inf

    def __post_init__(self) -> None:
        """Refuse an empty catalogue and a time that stands still.

        Raises:
            ValueError: one of them is.
        """
        if self.n_live < 1 or not self.every_s > 0.0:
            raise ValueError(f"churn needs n_live >= 1 and every_s > 0, got {self.n_live} and {self.every_s}")

    def first_live(self, elapsed_ms: int) -> int:
        """Return the number of the oldest item that is there; it is how many have gone."""
        return int(elapsed_ms / (1000.0 * self.every_s))

    def born_ms(self, number: int) -> int:
        """Return when an item appears, in milliseconds since the start; 0 for those that are there from the start."""
        if number < self.n_live:
            return 0
        return math.ceil((number - self.n_live + 1) * 1000.0 * self.every_s)
