"""Rules that forbid: which candidates a slot may hold after the slots before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from bandit.columns import NO_CODE, OTHER_TAG, BoolArray, Columns, TagArray, is_tags


class MaxPer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="max_per"):
    """At most `limit` items with the same value of a column within any `window` consecutive slots.

    Attributes:
        column: Categories (`creator`) or tags (`genres`: an item with several counts towards each).
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

    def start(self, columns: Columns) -> CategoryMask | TagMask:
        """Return the rule at work on one slate."""
        column = columns[self.column]
        if is_tags(column):
            return TagMask(rule=self, tags=column & ~OTHER_TAG)
        return CategoryMask(rule=self, codes=column)

    def recent(self, history: Sequence[int]) -> Sequence[int]:
        """Return the part of the history that shares a window with the next slot."""
        return history[max(0, len(history) - self.window + 1) :]


@dataclass(frozen=True, slots=True)
class CategoryMask:
    """`MaxPer` on categories.

    Attributes:
        rule: The rule.
        codes: int32 [n].
    """

    rule: MaxPer
    codes: npt.NDArray[np.int32]

    def build_mask(self, history: Sequence[int]) -> BoolArray | None:
        """Return bool [n] of what this slot may hold after `history` (candidate positions), None for everything."""
        limit = self.rule.limit
        codes = [self.codes.item(action) for action in self.rule.recent(history)]
        mask: BoolArray | None = None
        for code in {code for code in codes if code != NO_CODE and codes.count(code) >= limit}:
            others = self.codes != code
            mask = others if mask is None else mask & others
        return mask


@dataclass(frozen=True, slots=True)
class TagMask:
    """`MaxPer` on tags.

    Attributes:
        rule: The rule.
        tags: uint64 [n].
    """

    rule: MaxPer
    tags: TagArray

    def build_mask(self, history: Sequence[int]) -> BoolArray | None:
        """Return bool [n] of what this slot may hold after `history` (candidate positions), None for everything."""
        recent = self.rule.recent(history)
        if len(recent) < self.rule.limit:
            return None
        # The tags that at least 1, 2, ... items have, as bit sets.
        at_least = [0] * self.rule.limit
        for action in recent:
            more = self.tags.item(action)
            for count, tags in enumerate(at_least):
                at_least[count], more = tags | more, tags & more
        if not at_least[-1]:
            return None
        return ~(self.tags & np.uint64(at_least[-1])).astype(np.bool_)
