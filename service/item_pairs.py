"""Live co-occurrence of items on the wire, and the worker that follows it into its item-to-item table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
import numpy.typing as npt

from bandit.joining import Position
from retrieval.co_counts import CoCounts
from retrieval.item_to_item import ItemToItem
from service.item_statistics import as_of_text
from service.messages import ItemPairs

ITEM_PAIRS_STREAM = "hone:itempairs"

Counted = tuple[str, CoCounts, Collection[tuple[str, float]]]
"""An item, its counts, and those partners of it that are written."""


def pack_pairs(
    counted: Iterable[Counted], *, epoch: int, as_of: Position | None, half_life_ms: float, is_whole: bool
) -> ItemPairs:
    """Return the stored form of counts."""
    counted = list(counted)
    ids = {item_id: place for place, (item_id, _, _) in enumerate(counted)}
    partners = [ids.setdefault(partner, len(ids)) for _, _, pairs in counted for partner, _ in pairs]
    return ItemPairs(
        epoch=epoch,
        as_of=as_of_text(as_of),
        is_whole=is_whole,
        half_life_ms=half_life_ms,
        ids=list(ids),
        n_users=np.array([counts.n_users for _, counts, _ in counted], dtype="<f8").tobytes(),
        counted_at=np.array([counts.at_ms for _, counts, _ in counted], dtype="<i8").tobytes(),
        n_partners=np.array([len(pairs) for _, _, pairs in counted], dtype="<i4").tobytes(),
        partners=np.array(partners, dtype="<i4").tobytes(),
        counts=np.array([count for _, _, pairs in counted for _, count in pairs], dtype="<f8").tobytes(),
    )


def unpack_pairs(
    pairs: ItemPairs,
) -> list[tuple[str, float, int, list[str], npt.NDArray[np.float64]]]:
    """Return each item with its users, the time of its counts, its partners and the counts with them.

    Raises:
        ValueError: the arrays do not fit together.
    """
    n_users = np.frombuffer(pairs.n_users, dtype="<f8")
    counted_at = np.frombuffer(pairs.counted_at, dtype="<i8")
    sizes = np.frombuffer(pairs.n_partners, dtype="<i4")
    ends = np.cumsum(sizes)
    partners = np.frombuffer(pairs.partners, dtype="<i4")
    counts = np.frombuffer(pairs.counts, dtype="<f8")
    n, m = len(n_users), len(partners)
    is_fit = len(counted_at) == len(ends) == n <= len(pairs.ids) and len(counts) == m == (int(ends[-1]) if n else 0)
    if not is_fit or (m and not 0 <= int(partners.min()) <= int(partners.max()) < len(pairs.ids)):
        raise ValueError(f"item pairs of {n} items and {m} partners do not fit together")
    names = [pairs.ids[place] for place in partners.tolist()]
    return [
        (pairs.ids[i], float(n_users[i]), int(counted_at[i]), names[start:end], counts[start:end])
        for i, (start, end) in enumerate(zip((ends - sizes).tolist(), ends.tolist(), strict=True))
    ]


def put_pairs(table: ItemToItem, pairs: ItemPairs) -> None:
    """Lay the counts of one message over a table.

    Raises:
        ValueError: the arrays do not fit together; nothing was changed.
    """
    unpacked = unpack_pairs(pairs)
    if pairs.is_whole:
        table.clear_live()
    for item_id, n_users, at_ms, partners, counts in unpacked:
        table.put_live(
            item_id,
            n_users=n_users,
            at_ms=at_ms,
            half_life_ms=pairs.half_life_ms,
            partners=partners,
            counts=counts,
        )


class FollowedPairs:
    """Applies what the one writer publishes; `position` is the last entry applied.

    Args:
        put: Lays a message over the table that is served, see `put_pairs`.
    """

    def __init__(self, put: Callable[[ItemPairs], None]) -> None:
        self._put = put
        self._epoch = 0
        self.position = "0-0"

    def apply(self, position: str, pairs: ItemPairs) -> bool:
        """Apply one entry; False when a learner wrote it that has been replaced, and nothing but the position moves.

        Raises:
            ValueError: its arrays do not fit together; nothing was changed.
        """
        self.position = position
        if pairs.epoch < self._epoch:
            return False
        self._put(pairs)
        self._epoch = pairs.epoch
        return True
