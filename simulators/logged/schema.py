"""The one schema of a logged bandit data set: single actions with their true propensities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bandit.support import Float64Array

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LoggedBandit:
    """Rows of a log in time order, or a part of them.

    Attributes:
        contexts: float64 [n, d].
        actions: int64 [n], from 0 below `n_actions`.
        rewards: float64 [n].
        propensities: float64 [n] in (0, 1], of the logged action at its position.
        positions: int64 [n], from 0 below `n_positions`.
        clusters: int64 [n], the user of each row; the row itself where the log names no users.
        n_actions: How many actions there are.
        n_positions: How many positions there are.

    Raises:
        ValueError: on construction, naming the column, the value and the row.
    """

    contexts: Float64Array
    actions: Int64Array
    rewards: Float64Array
    propensities: Float64Array
    positions: Int64Array
    clusters: Int64Array
    n_actions: int
    n_positions: int

    def __post_init__(self) -> None:
        """Check every column."""
        n = len(self.actions)
        for name in ("contexts", "rewards", "propensities", "positions", "clusters"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name} must have {n} rows, got {len(getattr(self, name))}")
        for name, values, bound in (
            ("action", self.actions, self.n_actions),
            ("position", self.positions, self.n_positions),
        ):
            _refuse(name, values, (values < 0) | (values >= bound), f"in [0, {bound})")
        # NaN compares false, so that a missing propensity is refused as well.
        _refuse("propensity", self.propensities, ~((self.propensities > 0) & (self.propensities <= 1)), "in (0, 1]")
        _refuse("reward", self.rewards, ~np.isfinite(self.rewards), "finite")

    def weights(self, target_pmf: Float64Array) -> Float64Array:
        """Return float64 [n], pi / mu of the logged actions.

        Args:
            target_pmf: float64 [n_actions, n_positions], of a target policy that looks at no context.
        """
        weights: Float64Array = target_pmf[self.actions, self.positions] / self.propensities
        return weights


def _refuse(name: str, values: npt.NDArray[np.generic], wrong: npt.NDArray[np.bool_], expected: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"{name} must be {expected}, got {values[row]} (row {row})")
