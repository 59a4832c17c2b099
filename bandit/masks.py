"""Rules that forbid: which candidates a slot may hold after the slots before it."""

from __future__ import annotations

import msgspec

from bandit._native import CategoryLimit, Limit, TagLimit
from bandit.columns import NO_CODE, OTHER_TAG, Columns, is_tags


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

    def start(self, columns: Columns) -> Limit:
        """Return the rule at work on one slate: a value is closed while its limit is reached within the window."""
        column = columns[self.column]
        if is_tags(column):
            return TagLimit(column & ~OTHER_TAG, limit=self.limit, window=self.window)
        return CategoryLimit(column, no_code=NO_CODE, limit=self.limit, window=self.window)
