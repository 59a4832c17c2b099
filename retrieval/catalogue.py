"""The catalogue of one worker: a row per item, and the arrays that filters, rules and the draw read.

Rows are stable until the item is deleted; freed rows are used again. Nothing here is read item by item in a request.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sortedcontainers import SortedKeyList

from retrieval.items import Item

UNKNOWN_AGE = -1
NO_CODE = -1
FOREVER_MS = np.iinfo(np.int64).max
# Ranks start this far apart, so that a new id fits between its neighbours without touching them.
_RANK_STEP = 1 << 40
# A new id often follows the newest of its kind: beside its lower neighbour it leaves the room to the next ones.
_RANK_NUDGE = 1 << 24
_MAX_RANK = 1 << 62
_INT64 = np.iinfo(np.int64)


class Catalogue:
    """Items by row, with growing column arrays.

    Attributes:
        item_ids: id by row, None for a free row.
        listed: bool [capacity]; False for free rows.
        min_age: int16 [capacity], years; UNKNOWN_AGE without a rating.
        creator: int32 [capacity] codes, NO_CODE without one; equal codes mean equal creators.
        available_at_unix_ms: int64 [capacity], 0 when unknown.
        expires_at_unix_ms: int64 [capacity], FOREVER_MS without expiry.
        rank: int64 [capacity]; ascending rank is UTF-8 byte order of the ids.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self.item_ids: list[str | None] = []
        self.items: list[Item | None] = []
        self.listed = np.zeros(capacity, dtype=np.bool_)
        self.min_age = np.full(capacity, UNKNOWN_AGE, dtype=np.int16)
        self.creator = np.full(capacity, NO_CODE, dtype=np.int32)
        self.available_at_unix_ms = np.zeros(capacity, dtype=np.int64)
        self.expires_at_unix_ms = np.full(capacity, FOREVER_MS, dtype=np.int64)
        self.rank = np.zeros(capacity, dtype=np.int64)
        self._row: dict[str, int] = {}
        self._free: list[int] = []
        self._creators: dict[str, int] = {}
        # How many items each code has; the code of a creator without any is given to the next.
        self._n_of_creator: list[int] = []
        self._free_codes: list[int] = []
        self._countries: dict[str, int] = {}
        # bool [capacity, n_countries]: True where an item may be shown; one column a country that any item names.
        self._allowed = np.ones((capacity, 0), dtype=np.bool_)
        self._worldwide = np.ones(capacity, dtype=np.bool_)
        # Python orders str by code point, which is the byte order of its UTF-8 form.
        self._order: Any = SortedKeyList(key=lambda row: self.item_ids[row])

    def __len__(self) -> int:
        """Return the number of items, listed or not."""
        return len(self._row)

    def row(self, item_id: str) -> int | None:
        """Return the row of an item, None when it is not in the catalogue."""
        return self._row.get(item_id)

    def item(self, item_id: str) -> Item | None:
        """Return an item as it was put, None when it is not in the catalogue."""
        row = self._row.get(item_id)
        return None if row is None else self.items[row]

    def upsert(self, item: Item) -> int:
        """Put an item, new or changed, and return its row.

        Raises:
            ValueError: a number does not fit its column; nothing was changed.
        """
        _check_range("min_age", item.min_age, 0, np.iinfo(np.int16).max)
        _check_range("available_at_unix_ms", item.available_at_unix_ms, _INT64.min, _INT64.max)
        _check_range("expires_at_unix_ms", item.expires_at_unix_ms, _INT64.min, _INT64.max)
        row = self._row.get(item.id)
        if row is None:
            row = self._take_row(item.id)
        self.listed[row] = item.listed
        self.min_age[row] = UNKNOWN_AGE if item.min_age is None else item.min_age
        self._set_creator(row, item.creator)
        self.available_at_unix_ms[row] = item.available_at_unix_ms or 0
        self.expires_at_unix_ms[row] = FOREVER_MS if item.expires_at_unix_ms is None else item.expires_at_unix_ms
        self._set_regions(row, item.regions)
        self.items[row] = item
        return row

    def delete(self, item_id: str) -> int | None:
        """Remove an item and return the row it had, None when it was not there."""
        row = self._row.get(item_id)
        if row is None:
            return None
        self._order.remove(row)
        self._set_creator(row, None)
        del self._row[item_id]
        self.listed[row] = False
        self.item_ids[row] = self.items[row] = None
        self._free.append(row)
        return row

    def allowed_in(self, country: str | None) -> npt.NDArray[np.bool_]:
        """Return bool [capacity]: may be shown in a country; an unknown viewer sees what is shown everywhere."""
        column = self._countries.get(country or "")
        return self._worldwide if column is None else self._allowed[:, column]

    def rank_of(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Return the ranks of rows; ascending rank is UTF-8 id order."""
        return self.rank.take(rows)

    def _take_row(self, item_id: str) -> int:
        if self._free:
            row = self._free.pop()
            self.item_ids[row] = item_id
        else:
            row = len(self.item_ids)
            self.item_ids.append(item_id)
            self.items.append(None)
            if row == len(self.listed):
                self._grow()
        self._row[item_id] = row
        self._order.add(row)
        self._set_rank(row)
        return row

    def _set_rank(self, row: int) -> None:
        position = self._order.index(row)
        before = int(self.rank[self._order[position - 1]]) if position else None
        after = int(self.rank[self._order[position + 1]]) if position + 1 < len(self._order) else None
        if before is None:
            rank = 0 if after is None else after - _RANK_STEP
        elif after is None:
            rank = before + _RANK_STEP
        else:
            rank = before + min((after - before) // 2, _RANK_NUDGE)
        if rank == before or abs(rank) > _MAX_RANK:
            self._spread_ranks()
        else:
            self.rank[row] = rank

    def _spread_ranks(self) -> None:
        n = len(self._order)
        step = min(_RANK_STEP, _MAX_RANK // n)
        self.rank[np.fromiter(self._order, dtype=np.int64, count=n)] = (np.arange(n) - n // 2) * step

    def _set_creator(self, row: int, creator: str | None) -> None:
        before = self.items[row]
        if before is not None and before.creator is not None:
            code = self._creators[before.creator]
            self._n_of_creator[code] -= 1
            if not self._n_of_creator[code] and before.creator != creator:
                del self._creators[before.creator]
                self._free_codes.append(code)
        self.creator[row] = NO_CODE
        if creator is not None:
            self.creator[row] = self._count_creator(creator)

    def _count_creator(self, creator: str) -> int:
        code = self._creators.get(creator)
        if code is None:
            if not self._free_codes:
                self._free_codes.append(len(self._n_of_creator))
                self._n_of_creator.append(0)
            code = self._creators[creator] = self._free_codes.pop()
        self._n_of_creator[code] += 1
        return code

    def _set_regions(self, row: int, regions: list[str] | None) -> None:
        self._worldwide[row] = regions is None
        for country in regions or ():
            if country not in self._countries:
                self._countries[country] = self._allowed.shape[1]
                self._allowed = np.column_stack([self._allowed, self._worldwide])
        self._allowed[row] = regions is None
        for country in regions or ():
            self._allowed[row, self._countries[country]] = True

    def _grow(self) -> None:
        extra = len(self.listed)
        self.listed = np.concatenate([self.listed, np.zeros(extra, dtype=np.bool_)])
        self.min_age = np.concatenate([self.min_age, np.full(extra, UNKNOWN_AGE, dtype=np.int16)])
        self.creator = np.concatenate([self.creator, np.full(extra, NO_CODE, dtype=np.int32)])
        self.available_at_unix_ms = np.concatenate([self.available_at_unix_ms, np.zeros(extra, dtype=np.int64)])
        self.expires_at_unix_ms = np.concatenate([self.expires_at_unix_ms, np.full(extra, FOREVER_MS, dtype=np.int64)])
        self.rank = np.concatenate([self.rank, np.zeros(extra, dtype=np.int64)])
        self._worldwide = np.concatenate([self._worldwide, np.ones(extra, dtype=np.bool_)])
        self._allowed = np.concatenate([self._allowed, np.ones((extra, self._allowed.shape[1]), dtype=np.bool_)])


def _check_range(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}")
