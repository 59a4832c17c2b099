"""What one worker knows of the items' statistics: decayed counts by catalogue row, followed from one stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bandit.item_counts import MAX_HALF_LIVES, NEGLIGIBLE
from bandit.joining import Position
from service.messages import ItemStats

ITEM_STATS_STREAM = "hone:itemstats"

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]

# Columns of dynamic features, and of rules, that come from here.
STATISTICS_COLUMNS = frozenset({"impressions_now", "popularity_now", "rewards_now"})
_NOWHERE = 0


class ItemStatistics:
    """Counts by place; an item keeps its place while it is not in the catalogue: streams may overtake each other.

    Args:
        half_life_ms: time in which a count halves.
    """

    def __init__(self, *, half_life_ms: float) -> None:
        self._half_life_ms = half_life_ms
        self._place: dict[str, int] = {}
        # Place 0 is of items that were never shown. Columns: impressions, clicks, rewards.
        self._counts = np.zeros((1024, 3))
        self._counted_at = np.zeros(1024, dtype=np.int64)
        self._place_of_row = np.zeros(1024, dtype=np.int32)
        self._row: dict[str, int] = {}
        self._epoch = 0
        self.position = "0-0"
        self.as_of = ""

    def apply(self, position: str, stats: ItemStats) -> bool:
        """Apply one entry; False when a learner wrote it that has been replaced, and nothing but the position moves."""
        self.position = position
        if stats.epoch < self._epoch:
            return False
        self._epoch = stats.epoch
        self.as_of = stats.as_of
        if stats.is_whole:
            self._place.clear()
            self._place_of_row[:] = _NOWHERE
        places = np.fromiter(map(self._place_for, stats.item_ids), dtype=np.int32, count=len(stats.item_ids))
        impressions, rewards, clicks, counted_at = unpack_stats(stats)
        self._counts[places] = np.column_stack([impressions, clicks, rewards])
        self._counted_at[places] = counted_at
        return True

    def bind(self, row: int, item_id: str) -> None:
        """Give an item its row of the catalogue."""
        while row >= len(self._place_of_row):
            self._place_of_row = np.concatenate([self._place_of_row, np.zeros_like(self._place_of_row)])
        self._row[item_id] = row
        self._place_of_row[row] = self._place.get(item_id, _NOWHERE)

    def release(self, row: int, item_id: str) -> None:
        """Take the row from an item that left the catalogue."""
        self._place_of_row[row] = _NOWHERE
        self._row.pop(item_id, None)

    def columns(self, rows: Int32Array, now_ms: int) -> dict[str, Float32Array]:
        """Return the decayed counts at `now_ms`, float32 [n] each; 0 for rows of -1 and for what is negligible."""
        places = np.where(rows >= 0, self._place_of_row[rows], _NOWHERE)
        half_lives = (now_ms - self._counted_at[places]) / self._half_life_ms
        kept = np.exp2(-np.clip(half_lives, -MAX_HALF_LIVES, MAX_HALF_LIVES))
        counts = self._counts[places] * kept[:, None]
        counts[counts[:, 0] < NEGLIGIBLE] = 0.0
        impressions, clicks, rewards = counts.astype(np.float32).T
        return {"impressions_now": impressions, "popularity_now": clicks, "rewards_now": rewards}

    def _place_for(self, item_id: str) -> int:
        place = self._place.get(item_id)
        if place is None:
            place = self._place[item_id] = len(self._place) + 1
            if place == len(self._counts):
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
                self._counted_at = np.concatenate([self._counted_at, np.zeros_like(self._counted_at)])
            row = self._row.get(item_id)
            if row is not None:
                self._place_of_row[row] = place
        return place


def as_of_text(position: Position | None) -> str:
    """Return a journal position as it is logged; empty for none.

    >>> as_of_text((1_795_382_944_962, 0, 3))
    '1795382944962-0-3'
    """
    return "" if position is None else "-".join(map(str, position))


def parse_as_of(text: str) -> Position | None:
    """Return the journal position that `as_of_text` wrote."""
    if not text:
        return None
    ms, partition, sequence = map(int, text.split("-"))
    return ms, partition, sequence


def unpack_stats(
    stats: ItemStats,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return impressions, rewards, clicks (floats [n]) and the times they are as of (int64 [n]).

    Raises:
        ValueError: an array does not fit the ids.
    """
    n = len(stats.item_ids)
    kind = "<f4" if n and len(stats.n_impressions) == 4 * n else "<f8"
    impressions = np.frombuffer(stats.n_impressions, dtype=kind)
    rewards = np.frombuffer(stats.n_rewards, dtype=kind)
    clicks = np.frombuffer(stats.n_clicks, dtype=kind) if stats.n_clicks else np.zeros(n)
    times = np.frombuffer(stats.counted_at, dtype="<i8") if stats.counted_at else np.full(n, stats.at_unix_ms)
    if not len(impressions) == len(rewards) == len(clicks) == len(times) == n:
        raise ValueError(f"item statistics of {n} items must hold {n} numbers of each kind")
    return impressions, rewards, clicks, times.astype(np.int64, copy=False)
