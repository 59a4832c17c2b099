"""Rules that forbid: which candidates a slot may hold after the slots before it."""

from __future__ import annotations

from collections import deque

import msgspec
import numpy as np
import numpy.typing as npt

from bandit.columns import NO_CODE, OTHER_TAG, BoolArray, Columns, Int64Array, TagArray, is_tags


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

    def start(self, columns: Columns) -> CategoryWalk | TagWalk:
        """Return the rule at work on one slate."""
        column = columns[self.column]
        if is_tags(column):
            return TagWalk(self, column & ~OTHER_TAG)
        return CategoryWalk(self, column)


class CategoryWalk:
    """`MaxPer` on the categories of one slate: a value is closed while its limit is reached within the window."""

    def __init__(self, rule: MaxPer, codes: npt.NDArray[np.int32]) -> None:
        self._rule = rule
        self._codes = codes
        # The codes of the last window - 1 slots: what shares a window with the next.
        self._recent: deque[int] = deque()
        # What a closed code forbids, int64 positions.
        self._closed: dict[int, Int64Array] = {}
        self._is_open: BoolArray = np.ones(len(codes), dtype=np.bool_)

    @property
    def mask(self) -> BoolArray | None:
        """Return bool [n] of what the next slot may hold, None for everything; it changes with the next `place`."""
        return self._is_open if self._closed else None

    def place(self, action: int) -> None:
        """Take note of a placed candidate."""
        code, limit = self._codes.item(action), self._rule.limit
        self._recent.append(code)
        left = self._recent.popleft() if len(self._recent) == self._rule.window else NO_CODE
        if left == code:
            return
        if left in self._closed and self._recent.count(left) < limit:
            self._is_open[self._closed.pop(left)] = True
        if code != NO_CODE and self._recent.count(code) == limit:
            self._closed[code] = (self._codes == code).nonzero()[0]
            self._is_open[self._closed[code]] = False


class TagWalk:
    """`MaxPer` on the tags of one slate.

    Attributes:
        mask: bool [n] of what the next slot may hold, None for everything.
    """

    def __init__(self, rule: MaxPer, tags: TagArray) -> None:
        self._rule = rule
        self._tags = tags
        # The tags of the last window - 1 slots: what shares a window with the next.
        self._recent: deque[int] = deque(maxlen=rule.window - 1)
        self._closed = 0
        self.mask: BoolArray | None = None

    def place(self, action: int) -> None:
        """Take note of a placed candidate."""
        self._recent.append(self._tags.item(action))
        closed = self._at_limit()
        if closed != self._closed:
            self._closed = closed
            self.mask = np.logical_not(self._tags & np.uint64(closed)) if closed else None

    def _at_limit(self) -> int:
        """Return the tags that as many of the recent items have as the limit allows."""
        if len(self._recent) < self._rule.limit:
            return 0
        # Sets of the tags that at least 1, 2, ... of the items so far have.
        at_least = [0] * self._rule.limit
        for tags in self._recent:
            carried = tags
            for number, held in enumerate(at_least):
                at_least[number] = held | carried
                carried &= held
                if not carried:
                    break
        return at_least[-1]
