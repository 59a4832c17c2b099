"""Rules that reserve slots: for discovery, for sponsors, for what an editor pinned."""

from __future__ import annotations

import math
from collections.abc import Collection

import msgspec
import numpy as np

from bandit._native import Limit, PoolLimit
from bandit.columns import Columns, Int64Array


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

    def start(self, columns: Columns, positions: Collection[int]) -> Limit:
        """Return the rule at work on one slate with these reserved positions."""
        return PoolLimit(columns[self.column].astype(np.bool_), positions=list(positions))

    def draw_positions(self, n_slots: int, rng: np.random.Generator) -> tuple[tuple[int, ...], float]:
        """Draw the reserved positions, uniform among all sets of their number.

        Returns:
            The sorted positions and the probability of exactly this set.
        """
        whole, fraction = divmod(self.share * n_slots, 1.0)
        extra = fraction > 0.0 and bool(rng.random() < fraction)
        count = int(whole) + extra
        positions = tuple(sorted(rng.permutation(n_slots)[:count].tolist()))
        return positions, self.count_pmf(n_slots)[count] / math.comb(n_slots, count)

    def count_pmf(self, n_slots: int) -> dict[int, float]:
        """Return the probability of every number of positions that may be reserved.

        >>> Discovery(share=0.25).count_pmf(10)
        {2: 0.5, 3: 0.5}
        """
        whole, fraction = divmod(self.share * n_slots, 1.0)
        if fraction == 0.0:
            return {int(whole): 1.0}
        return {int(whole): 1.0 - fraction, int(whole) + 1: fraction}

    def positions_probability(self, positions: Collection[int], n_slots: int) -> float:
        """Return the probability with which `draw_positions` gives exactly these positions."""
        return self.count_pmf(n_slots).get(len(positions), 0.0) / math.comb(n_slots, len(positions))


class Sponsored(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="sponsored"
):
    """Give slots to sponsored items, in the sponsors' order: probability 1, labelled, not learned from.

    Sponsored items are shown in these slots only. Without one left, the slot is filled as any other.

    Attributes:
        slots: Positions, from 0.
        column: int32 column: the item's place in the sponsors' order, -1 for items that are not sponsored.
    """

    slots: list[int]
    column: str = "sponsored"

    def claims(self, columns: Columns, n_slots: int, kept: Int64Array) -> dict[int, int]:
        """Return which of the candidates kept back, int64 positions in id order, each claimed slot holds."""
        waiting = kept[columns[self.column][kept].argsort(kind="stable")].tolist()
        return dict(zip((slot for slot in sorted(self.slots) if slot < n_slots), waiting, strict=False))

    def kept_back(self, columns: Columns, n_slots: int) -> Int64Array:
        """Return the candidates, int64 positions in id order, that no other slot may hold."""
        return np.flatnonzero(columns[self.column] >= 0)


class Pinned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="pinned"):
    """Put items at the slot an editor chose: probability 1, not learned from.

    Attributes:
        column: int32 column: the slot of the item, -1 for items that are not pinned.
    """

    column: str = "pinned_slot"

    def claims(self, columns: Columns, n_slots: int, kept: Int64Array) -> dict[int, int]:
        """Return which of the candidates kept back each claimed slot holds.

        Of two on one slot it is the first in id order.
        """
        return dict(zip(columns[self.column][kept][::-1].tolist(), kept[::-1].tolist(), strict=True))

    def kept_back(self, columns: Columns, n_slots: int) -> Int64Array:
        """Return what no other slot may hold, as above; an item pinned beyond the slate is as any other."""
        slots = columns[self.column]
        pinned = np.flatnonzero(slots >= 0)
        return pinned[slots[pinned] < n_slots]


Placement = Sponsored | Pinned
