"""Rules that reserve slots: for discovery, for sponsors, for what an editor pinned."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from bandit.columns import BoolArray, Columns


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

    def start(self, columns: Columns, positions: Collection[int]) -> PoolMask:
        """Return the rule at work on one slate with these reserved positions."""
        return PoolMask(pool=columns[self.column].astype(np.bool_), positions=positions)

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


@dataclass(frozen=True, slots=True)
class PoolMask:
    """`Discovery` on the candidates of one slate.

    Attributes:
        pool: bool [n].
        positions: The reserved slots.
    """

    pool: BoolArray
    positions: Collection[int]

    def build_mask(self, history: Sequence[int]) -> BoolArray | None:
        """Return bool [n] of what this slot may hold after `history` (candidate positions), None for everything."""
        return self.pool if len(history) in self.positions else None


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

    def claims(self, columns: Columns, n_slots: int, is_free: BoolArray) -> dict[int, int]:
        """Return which of the free candidates each claimed slot holds."""
        order = columns[self.column]
        sponsored = np.flatnonzero((order >= 0) & is_free)
        waiting = sponsored[np.argsort(order[sponsored], kind="stable")].tolist()
        return dict(zip((slot for slot in sorted(self.slots) if slot < n_slots), waiting, strict=False))

    def kept_back(self, columns: Columns, n_slots: int) -> BoolArray:
        """Return bool [n]: what no other slot may hold."""
        kept: BoolArray = columns[self.column] >= 0
        return kept


class Pinned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="pinned"):
    """Put items at the slot an editor chose: probability 1, not learned from.

    Attributes:
        column: int32 column: the slot of the item, -1 for items that are not pinned.
    """

    column: str = "pinned_slot"

    def claims(self, columns: Columns, n_slots: int, is_free: BoolArray) -> dict[int, int]:
        """Return which of the free candidates each claimed slot holds; of two on one slot the first in id order."""
        slots = columns[self.column]
        pinned = np.flatnonzero((slots >= 0) & (slots < n_slots) & is_free)
        return {int(slots[action]): int(action) for action in reversed(pinned)}

    def kept_back(self, columns: Columns, n_slots: int) -> BoolArray:
        """Return bool [n]: what no other slot may hold; an item pinned beyond the slate is as any other."""
        slots = columns[self.column]
        kept: BoolArray = (slots >= 0) & (slots < n_slots)
        return kept


Placement = Sponsored | Pinned
