"""Rules that add to the score: functions of the columns, the time of the decision and the slots before."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from bandit.columns import OTHER_TAG, Columns, Float64Array, TagArray

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
        available = columns[self.column].astype(np.float64)
        age_days = np.maximum(now_ms - available, 0.0) / _MS_PER_DAY
        boost: Float64Array = self.boost * np.exp2(-age_days / self.half_life_days)
        boost[available == 0.0] = 0.0
        return boost


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
        boost: Float64Array = self.weight * columns[self.column].astype(np.float64)
        boost[~np.isfinite(boost)] = 0.0
        return boost


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

    def start(self, columns: Columns) -> DiversityWalk:
        """Return the rule at work on one slate."""
        return DiversityWalk(self.weight, columns[self.column] & ~OTHER_TAG)


class DiversityWalk:
    """`Diversity` on the candidates of one slate.

    Attributes:
        boost: float64 [n], for the next slot.
    """

    def __init__(self, weight: float, tags: TagArray) -> None:
        self._weight = weight
        self._tags = tags
        # Counts are small and so exact as floats, whose division needs no conversion of the array.
        self._n_tags = np.bitwise_count(tags).astype(np.float64)
        self._likeness = np.zeros(len(tags))
        self.boost: Float64Array = np.zeros(len(tags))

    def place(self, action: int) -> None:
        """Take note of a placed candidate."""
        n_tags = self._n_tags[action]
        if n_tags == 0.0:
            return
        shared = np.bitwise_count(self._tags & self._tags[action]).astype(np.float64)
        # |A or B| = |A| + |B| - |A and B|
        either = self._n_tags + n_tags
        either -= shared
        shared /= either
        np.maximum(self._likeness, shared, out=self._likeness)
        self.boost = self._likeness * -self._weight


Boost = Freshness | Prior | SeenDemotion
