"""Business rules that act inside the draw: masks and boosts that are functions of (context, history) only.

Candidates carry the columns that rules read; a rule never looks anything up, so a log that holds the columns and the
rules is enough to recompute every propensity.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]
Columns = dict[str, npt.NDArray[Any]]

# The code of "no value" in a categorical column; it counts towards no limit.
NO_CODE = -1
_MS_PER_DAY = 86_400_000.0


class MaxPer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="max_per"):
    """At most `limit` items with the same value of a column within any `window` consecutive slots.

    Attributes:
        column: A categorical column (int32 codes), for example `creator`.
        limit: How many may share a value.
        window: Length of the window in slots, this slot included.
    """

    column: str
    limit: int = 1
    window: int = 10

    def __post_init__(self) -> None:
        """Refuse limits that no slate could meet.

        Raises:
            ValueError: limit or window is below 1.
        """
        if self.limit < 1 or self.window < 1:
            raise ValueError(f"max_per limit and window must be at least 1, got {self.limit} and {self.window}")

    def start(self, columns: Columns) -> MaxPerWalk:
        """Return the rule at work on one slate."""
        values, codes = np.unique(columns[self.column], return_inverse=True)
        return MaxPerWalk(rule=self, codes=codes, n_codes=len(values), no_code=_position(values, NO_CODE))


@dataclass(frozen=True, slots=True)
class MaxPerWalk:
    """`MaxPer` on the candidates of one slate.

    Attributes:
        rule: The rule.
        codes: int64 [n] in [0, n_codes).
        n_codes: How many values there are.
        no_code: Code of "no value", None when every candidate has one.
    """

    rule: MaxPer
    codes: npt.NDArray[np.int64]
    n_codes: int
    no_code: int | None

    def build_mask(self, history: Sequence[int]) -> BoolArray | None:
        """Return bool [n] of what this slot may hold after `history` (candidate positions), None for everything."""
        recent = Counter(self.codes[action] for action in history[max(0, len(history) - self.rule.window + 1) :])
        full = [code for code, count in recent.items() if count >= self.rule.limit and code != self.no_code]
        if not full:
            return None
        open_codes = np.ones(self.n_codes, dtype=np.bool_)
        open_codes[full] = False
        mask: BoolArray = open_codes[self.codes]
        return mask


def _position(values: npt.NDArray[np.int64], value: int) -> int | None:
    found = np.flatnonzero(values == value)
    return int(found[0]) if len(found) else None


class Freshness(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="freshness"
):
    """Add `boost` * 2^(-age / half-life) to the score of an item.

    Attributes:
        boost: Boost of an item of age zero, in units of the score.
        half_life_days: Age at which the boost has halved, in days.
        column: int64 column of unix milliseconds, 0 for unknown (no boost).
    """

    boost: float
    half_life_days: float
    column: str = "available_at_unix_ms"

    def __post_init__(self) -> None:
        """Refuse a boost or half-life that gives no finite number.

        Raises:
            ValueError: the boost is not finite or the half-life is not positive.
        """
        if not math.isfinite(self.boost) or not 0.0 < self.half_life_days < math.inf:
            raise ValueError(
                f"freshness needs a finite boost and a positive half_life_days, got {self.boost}, {self.half_life_days}"
            )

    def build_boost(self, columns: Columns, now_ms: int) -> Float64Array:
        """Return float64 [n] of boosts at decision time `now_ms`."""
        available = columns[self.column].astype(np.float64)
        age_days = np.maximum(now_ms - available, 0.0) / _MS_PER_DAY
        return np.where(available != 0.0, self.boost * np.exp2(-age_days / self.half_life_days), 0.0)


class Prior(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="prior"):
    """Add `weight` times a numeric column to the score: what is known before the model has learned anything.

    Attributes:
        weight: Factor, in units of the score for each unit of the column.
        column: float column; NaN adds nothing.
    """

    weight: float
    column: str = "affinity"

    def __post_init__(self) -> None:
        """Refuse a weight that is not finite.

        Raises:
            ValueError: it is not.
        """
        if not math.isfinite(self.weight):
            raise ValueError(f"prior weight must be finite, got {self.weight}")

    def build_boost(self, columns: Columns, now_ms: int) -> Float64Array:
        """Return float64 [n]; time does not matter."""
        return self.weight * np.nan_to_num(columns[self.column].astype(np.float64))


class Discovery(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="discovery"
):
    """Reserve a share of the slots for under-explored items.

    The positions are drawn up front and logged as history, because later slots read them. Their number is
    floor(share * n), plus one with the fractional probability.

    Attributes:
        share: Share of the slots, in [0, 1].
        column: bool column that marks the discovery pool.
    """

    share: float
    column: str = "discovery"

    def __post_init__(self) -> None:
        """Refuse a share outside [0, 1].

        Raises:
            ValueError: the share is out of range.
        """
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"discovery share must be in [0, 1], got {self.share}")

    def draw_positions(self, n_slots: int, rng: np.random.Generator) -> tuple[tuple[int, ...], float]:
        """Draw the reserved positions, uniform among all sets of their number.

        Returns:
            The sorted positions and the probability of exactly this set.
        """
        whole, fraction = divmod(self.share * n_slots, 1.0)
        extra = fraction > 0.0 and bool(rng.random() < fraction)
        count = int(whole) + extra
        number_probability = 1.0 if fraction == 0.0 else (fraction if extra else 1.0 - fraction)
        positions = tuple(sorted(rng.permutation(n_slots)[:count].tolist()))
        return positions, number_probability / math.comb(n_slots, count)


Rule = MaxPer | Freshness | Prior | Discovery
