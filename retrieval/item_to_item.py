"""Items that the same people liked: neighbours from a history, and live counts laid over them. Pure numpy.

The similarity of two items is the cosine of their user sets, shrunk towards 0 where few users met both:
`co / (sqrt(n_i n_j) + shrinkage)`. What is kept are counts, not similarities, so that counts of a history and counts of
now add up before the cosine is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Int32Array = NDArray[np.int32]
Float64Array = NDArray[np.float64]

SHRINKAGE = 10.0
"""Two items with one common user are hardly alike: a cosine of 1 over one user counts as 1/11."""
_BLOCK_ITEMS = 1_024
# Ages beyond so many half-lives are cut off: 2^-1000 is no zero in float64.
_MAX_HALF_LIVES = 1_000.0


@dataclass(frozen=True, slots=True)
class NeighbourConfig:
    """How neighbours are computed from a history."""

    n_neighbours: int = 50
    """Kept of an item, the most similar ones."""
    max_items_per_user: int = 500
    """Of a user with more, the surest count: the work grows with the square, and such a user is often no person."""


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """Common users of items and their neighbours, packed.

    Attributes:
        n_users: float32 [n], users of each item.
        ends: int64 [n + 1]; the neighbours of item i are at `ends[i]:ends[i + 1]`, most similar first.
        items: int32 [m], positions of the neighbours.
        counts: float32 [m], users that have both.
    """

    n_users: NDArray[np.float32]
    ends: NDArray[np.int64]
    items: Int32Array
    counts: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together.

        Raises:
            ValueError: they do not.
        """
        n, m = len(self.n_users), len(self.items)
        if len(self.ends) != n + 1 or len(self.counts) != m or int(self.ends[0]) != 0 or int(self.ends[-1]) != m:
            raise ValueError(f"neighbours of {n} items must end at {m} and have as many counts, got {len(self.counts)}")
        if (np.diff(self.ends) < 0).any() or (m and not 0 <= int(self.items.min()) <= int(self.items.max()) < n):
            raise ValueError(f"neighbours must be items 0..{n - 1}, in rising order of ends")


def similarity(co: Float64Array, n_left: Float64Array | float, n_right: Float64Array) -> Float64Array:
    """Return the shrunk cosine, float64 [k], of items with `co` common users and so many users each."""
    shrunk: Float64Array = co / (np.sqrt(n_left * n_right) + SHRINKAGE)
    return shrunk


def find_neighbours(
    interactions: sparse.csr_matrix, *, positions: NDArray[np.int64], n_items: int, config: NeighbourConfig
) -> Neighbours:
    """Find the most similar items of every item.

    Args:
        interactions: CSR [users, columns] of positive values; larger is surer.
        positions: int64 [columns], the item of each column, -1 for none.
        n_items: Items in all; one without interactions has no neighbours.
        config: Bounds.

    Returns:
        The neighbours; equally similar ones by position.
    """
    known = np.flatnonzero(positions >= 0)
    users = _capped(interactions[:, known].tocsr(), config.max_items_per_user)
    users.data = np.ones(users.nnz, dtype=np.float32)
    items = users.T.tocsr()
    n_users = np.diff(items.indptr).astype(np.float64)
    sizes = np.zeros(n_items, dtype=np.int64)
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], Float64Array]] = []
    for start in range(0, len(known), _BLOCK_ITEMS):
        block = (items[start : start + _BLOCK_ITEMS] @ users).tocoo()
        left, right, co = block.row + start, block.col, block.data.astype(np.float64)
        other = left != right
        left, right, co = left[other], right[other], co[other]
        alike = similarity(co, n_users[left], n_users[right])
        order = np.lexsort((positions[known[right]], -alike, positions[known[left]]))
        left, right, co = left[order], right[order], co[order]
        kept = _places_in_run(left) < config.n_neighbours
        found.append((positions[known[left[kept]]], positions[known[right[kept]]], co[kept]))
    lefts = np.concatenate([np.zeros(0, dtype=np.int64), *(left for left, _, _ in found)])
    rights = np.concatenate([np.zeros(0, dtype=np.int64), *(right for _, right, _ in found)])
    counts = np.concatenate([np.zeros(0), *(co for *_, co in found)])
    order = np.argsort(lefts, kind="stable")
    np.add.at(sizes, lefts, 1)
    all_users = np.zeros(n_items, dtype=np.float32)
    all_users[positions[known]] = n_users
    return Neighbours(
        n_users=all_users,
        ends=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        items=rights[order].astype(np.int32),
        counts=counts[order].astype(np.float32),
    )


@dataclass(frozen=True, slots=True, eq=False)
class LiveCounts:
    """Live counts of a table as they were at one moment, by its places.

    Attributes:
        item_ids: Of every place.
        counts: Partners and counts, by place.
        n_users: float64 [places or more], users of each.
        at_ms: int64 [places or more], the time of the counts.
        half_life_ms: Time in which a count halves.
    """

    item_ids: Sequence[str]
    counts: Mapping[int, tuple[Int32Array, Float64Array]]
    n_users: Float64Array
    at_ms: NDArray[np.int64]
    half_life_ms: float


@dataclass(frozen=True, slots=True, eq=False)
class LiveItem:
    """Live counts of one item.

    Attributes:
        n_users: Users who like it, decayed.
        partners: int32 [k], places of what they also like, so far as the history has it.
        shares: float64 [k], the share of the users who like each.
    """

    n_users: float
    partners: Int32Array
    shares: Float64Array


class ItemToItem:
    """Neighbours of a history and live counts, by item id; items are found at the catalogue rows they have now.

    Args:
        place_of: place of every item of the history; places beyond are of items that came later.
        history: None without one.
        row_of: the catalogue's row of an item, None when it is not there.
    """

    def __init__(
        self, place_of: Mapping[str, int], history: Neighbours | None, row_of: Callable[[str], int | None]
    ) -> None:
        self._row_of = row_of
        self._history = history
        self._n_history = 0 if history is None else len(history.n_users)
        self._history_place = place_of if history is not None else {}
        self._later_place: dict[str, int] = {}
        self._row = np.full(max(self._n_history, 1024), -1, dtype=np.int32)
        self._half_life_ms = 1.0
        self._live_users = np.zeros(len(self._row))
        self._live_at_ms = np.zeros(len(self._row), dtype=np.int64)
        self._live: dict[int, tuple[Int32Array, Float64Array]] = {}

    def bind(self, row: int, item_id: str) -> None:
        """Give an item its row of the catalogue."""
        if (place := self._find(item_id)) >= 0:
            self._row[place] = row

    def release(self, item_id: str) -> None:
        """Take the row from an item that left the catalogue."""
        if (place := self._find(item_id)) >= 0:
            self._row[place] = -1

    def clear_live(self) -> None:
        """Forget what was counted live, and the places that only live counts needed."""
        self._live.clear()
        self._live_users[:] = 0.0
        self._later_place.clear()

    def put_live(
        self,
        item_id: str,
        *,
        n_users: float,
        at_ms: int,
        half_life_ms: float,
        partners: Sequence[str],
        counts: Float64Array,
    ) -> None:
        """Replace the live counts of one item.

        Args:
            item_id: The item.
            n_users: Its users, decayed to `at_ms`.
            at_ms: Journal time of all counts.
            half_life_ms: Time in which a count halves.
            partners: Items that its users also liked.
            counts: float64 [len(partners)], decayed users of both.
        """
        place = self._place(item_id)
        self._half_life_ms = half_life_ms
        places = np.fromiter(map(self._place, partners), dtype=np.int32, count=len(partners))
        self._live_users[place] = n_users
        self._live_at_ms[place] = at_ms
        # A view would keep everything alive that came in the same message.
        self._live[place] = (places, counts.copy())

    def live(self) -> LiveCounts:
        """Return the live counts; what is put later does not change them."""
        item_ids = [*self._history_place, *self._later_place]
        users, at_ms = self._live_users.copy(), self._live_at_ms.copy()
        return LiveCounts(item_ids, dict(self._live), users, at_ms, self._half_life_ms)

    def live_users(self, item_id: str, as_of_ms: int) -> float:
        """Return how many users like an item at a time, decayed; 0 without live counts."""
        place = self._find(item_id)
        if place not in self._live:
            return 0.0
        half_lives = (as_of_ms - int(self._live_at_ms[place])) / self._half_life_ms
        return float(self._live_users[place]) * math.exp2(-min(max(half_lives, 0.0), _MAX_HALF_LIVES))

    def live_of(self, item_id: str, as_of_ms: int) -> LiveItem | None:
        """Return the live counts of one item at a time, None without any."""
        place = self._find(item_id)
        if place not in self._live:
            return None
        partners, counts = self._live[place]
        kept = partners < self._n_history
        # A pair weighs the root of both weights, which may round beyond the lesser one.
        shares = np.minimum(counts[kept] / max(float(self._live_users[place]), 1e-300), 1.0)
        return LiveItem(self.live_users(item_id, as_of_ms), partners[kept], shares)

    def also_liked(self, seeds: Iterable[tuple[str, float]], *, now_ms: int) -> tuple[Int32Array, NDArray[np.float32]]:
        """Find what users of the seeds also liked.

        Args:
            seeds: Item ids with their weights.
            now_ms: Live counts are decayed to this time.

        Returns:
            Catalogue rows int32 [n] and the weighted sums of similarities float32 [n], best first, equal ones by row.
        """
        found = [(*self._similar(place, now_ms), weight) for seed, weight in seeds if (place := self._find(seed)) >= 0]
        if not found:
            return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
        rows = self._row[np.concatenate([places for places, _, _ in found])]
        alike = np.concatenate([weight * scores for _, scores, weight in found])
        distinct, inverse = np.unique(rows[rows >= 0], return_inverse=True)
        scores = np.bincount(inverse, weights=alike[rows >= 0], minlength=len(distinct))
        order = np.lexsort((distinct, -scores))
        return distinct[order].astype(np.int32), scores[order].astype(np.float32)

    def _similar(self, place: int, now_ms: int) -> tuple[NDArray[np.int64], Float64Array]:
        """Return places and their similarities to one."""
        run = slice(0, 0)
        if self._history is not None and place < self._n_history:
            run = slice(int(self._history.ends[place]), int(self._history.ends[place + 1]))
        places = np.zeros(0, dtype=np.int64) if self._history is None else self._history.items[run].astype(np.int64)
        co = np.zeros(0) if self._history is None else self._history.counts[run].astype(np.float64)
        if place in self._live:
            live_places, live_counts = self._live[place]
            counts = np.concatenate([live_counts * self._kept(self._live_at_ms[place], now_ms), co])
            places, inverse = np.unique(np.concatenate([live_places, places]), return_inverse=True)
            co = np.bincount(inverse, weights=counts, minlength=len(places)).astype(np.float64)
        users = self._users(np.append(places, place), now_ms)
        return places, similarity(co, float(users[-1]), users[:-1])

    def _users(self, places: NDArray[np.int64], now_ms: int) -> Float64Array:
        users = np.zeros(len(places))
        if self._live:
            users += self._live_users[places] * self._kept(self._live_at_ms[places], now_ms)
        if self._history is not None:
            inside = places < self._n_history
            users[inside] += self._history.n_users[places[inside]]
        return users

    def _kept(self, at_ms: NDArray[np.int64] | int, now_ms: int) -> Float64Array:
        half_lives = (now_ms - np.asarray(at_ms)) / self._half_life_ms
        kept: Float64Array = np.exp2(-np.clip(half_lives, 0.0, _MAX_HALF_LIVES))
        return kept

    def _find(self, item_id: str) -> int:
        place = self._history_place.get(item_id)
        return self._later_place.get(item_id, -1) if place is None else place

    def _place(self, item_id: str) -> int:
        place = self._history_place.get(item_id)
        if place is None:
            place = self._later_place.get(item_id)
        if place is None:
            place = self._later_place[item_id] = self._n_history + len(self._later_place)
            if place == len(self._row):
                self._row = np.concatenate([self._row, np.full_like(self._row, -1)])
                self._live_users = np.concatenate([self._live_users, np.zeros_like(self._live_users)])
                self._live_at_ms = np.concatenate([self._live_at_ms, np.zeros_like(self._live_at_ms)])
            row = self._row_of(item_id)
            self._row[place] = -1 if row is None else row
        return place


def _capped(users: sparse.csr_matrix, limit: int) -> sparse.csr_matrix:
    """Keep the `limit` largest values of each row, equal ones by column."""
    users.sort_indices()
    rows = np.repeat(np.arange(users.shape[0]), np.diff(users.indptr))
    order = np.lexsort((users.indices, -users.data, rows))
    kept = np.zeros(users.nnz, dtype=np.bool_)
    kept[order] = _places_in_run(rows[order]) < limit
    return sparse.csr_matrix((users.data[kept], (rows[kept], users.indices[kept])), shape=users.shape)


def _places_in_run(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each entry stands in its run of equal keys, from 0."""
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    lengths = np.diff(np.append(starts, len(keys)))
    places: NDArray[np.int64] = np.arange(len(keys)) - np.repeat(starts, lengths)
    return places
