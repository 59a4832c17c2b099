"""Rules that add to the score: functions of the columns, the time of the decision and the slots before."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from bandit._native import Likeness, finite_product, freshness
from bandit.columns import OTHER_TAG, Columns, Float64Array

_MS_PER_DAY = 86_400_000.0


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
        half_life_ms = self.half_life_days * _MS_PER_DAY
        return freshness(columns[self.column], now_ms=now_ms, boost=self.boost, half_life_ms=half_life_ms)


class Prior(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="prior"):
    """Add `weight` times a numeric column to the score: what is known before the model has learned anything.

    Attributes:
        weight: Factor, in units of the score for each unit of the column.
        column: float column; NaN and infinities add nothing. `campaign_boost` holds the boosts of dated campaigns.
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
        return finite_product(columns[self.column], weight=self.weight)


class SeenDemotion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="seen"):
    """Take `penalty` off the score for each time an item was shown to the user lately, up to `most` times.

    Attributes:
        penalty: In units of the score.
        most: Showings that count.
        column: integer column of showings.
    """

    penalty: float
    most: int = 3
    column: str = "n_seen"

    def __post_init__(self) -> None:
        """Refuse a penalty that is not finite or a bound below 1.

        Raises:
            ValueError: one of them is.
        """
        if not math.isfinite(self.penalty) or self.most < 1:
            raise ValueError(f"seen needs a finite penalty and most >= 1, got {self.penalty}, {self.most}")

    def build_boost(self, columns: Columns, now_ms: int) -> Float64Array:
        """Return float64 [n]; time does not matter."""
        return -self.penalty * np.minimum(columns[self.column], self.most).astype(np.float64)


class Diversity(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="diversity"
):
    """Maximal marginal relevance: take `weight` times the likeness to the most alike item placed before off the score.

    Likeness is the Jaccard index of tags; items without tags are like nothing.

    Attributes:
        weight: In units of the score, at full likeness.
        column: uint64 column of tags, for example `genres`.

    Source: Carbonell and Goldstein (1998), with the score as relevance.
    """

    weight: float
    column: str

    def __post_init__(self) -> None:
        """Refuse a weight that is not finite.

        Raises:
            ValueError: it is not.
        """
        if not math.isfinite(self.weight):
            raise ValueError(f"diversity weight must be finite, got {self.weight}")

    def start(self, columns: Columns) -> Likeness:
        """Return the rule at work on one slate."""
        return Likeness(columns[self.column] & ~OTHER_TAG, weight=self.weight)


Boost = Freshness | Prior | SeenDemotion
