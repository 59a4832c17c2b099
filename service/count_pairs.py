"""The one writer of live co-occurrence: counts which items the same users like, publishes what changed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from bandit.joining import Position
from retrieval.co_counts import CoCounter, CoCounts
from service.due import is_due
from service.failpoints import reach
from service.item_pairs import ITEM_PAIRS_STREAM, Counted, pack_pairs, unpack_pairs
from service.messages import ItemPairs, ItemPairsState, encode
from service.ports import ChangeLog

_PUBLISH_MS = 1_000
# An entry of so many items takes a worker a few milliseconds.
_ENTRY_ITEMS = 1_000
# When what was published since the last whole weighs several wholes, the whole is published: the stream stays bounded.
_WHOLE_AFTER_ITEMS = 5_000
_WHOLE_AFTER_SHARE = 4


class PairCounting:
    """Counts for the learner that counts items; it is told of each positive event once, in journal order.

    Args:
        log: Where counts are published.
    """

    def __init__(self, log: ChangeLog) -> None:
        self._log = log
        self._counter = CoCounter()
        self._epoch = 0
        self._published_at_ms = 0
        # None until a whole stands in the stream.
        self._n_since_whole: int | None = None

    def add(self, user_key: str, item_id: str, at_ms: int) -> None:
        """Count that a user liked an item; nobody in particular is paired with nothing."""
        if user_key:
            self._counter.add(user_key, item_id, at_ms)

    def forget_user(self, user_key: str) -> None:
        """Forget what an erased user liked."""
        self._counter.forget_user(user_key)

    def checkpoint(self, as_of: Position | None) -> bytes:
        """Return everything that is counted, to `restore` from."""
        counted = [(item_id, counts, counts.partners.items()) for item_id, counts in self._counter.counts()]
        recent = self._counter.recent()
        return encode(
            ItemPairsState(
                pairs=self._pack(counted, as_of, is_whole=True),
                user_keys=list(recent),
                n_liked=np.array([len(liked) for liked in recent.values()], dtype="<i4").tobytes(),
                liked=[item_id for liked in recent.values() for item_id in liked],
                liked_at=np.array([at for liked in recent.values() for at in liked.values()], dtype="<i8").tobytes(),
            )
        )

    def restore(self, stored: bytes) -> None:
        """Take the counts of a checkpoint in place of all others."""
        state = msgspec.msgpack.decode(stored, type=ItemPairsState)
        counts = {
            item_id: CoCounts(n_users, at_ms, dict(zip(partners, of_both.tolist(), strict=True)))
            for item_id, n_users, at_ms, partners, of_both in unpack_pairs(state.pairs)
        }
        each = iter(zip(state.liked, np.frombuffer(state.liked_at, dtype="<i8").tolist(), strict=True))
        sizes = np.frombuffer(state.n_liked, dtype="<i4").tolist()
        recent = {
            user_key: dict(next(each) for _ in range(size))
            for user_key, size in zip(state.user_keys, sizes, strict=True)
        }
        self._counter.restore(counts, recent)

    async def start(self, epoch: int, as_of: Position | None) -> None:
        """Take the next epoch of the stream and publish everything; earlier ones are refused from now on.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        self._epoch = await self._log.take_epoch(ITEM_PAIRS_STREAM, at_least=epoch)
        self._n_since_whole = None
        await self._publish(as_of)

    async def publish(self, now_ms: int, as_of: Position | None) -> None:
        """Publish what changed, at most every second.

        Raises:
            Fenced: another learner counts now.
            StoreUnavailable: what changed is published the next time, with everything else.
        """
        if is_due(now_ms, since_ms=self._published_at_ms, every_ms=_PUBLISH_MS):
            self._published_at_ms = now_ms
            await self._publish(as_of)

    async def _publish(self, as_of: Position | None) -> None:
        n_since, changed = self._n_since_whole, self._counter.take_changed()
        is_whole = n_since is None or n_since > max(_WHOLE_AFTER_ITEMS, _WHOLE_AFTER_SHARE * len(self._counter))
        item_ids = self._counter.items() if is_whole else changed
        if not item_ids and not is_whole:
            return
        # A write that fails may have happened or not; a whole one is right after either.
        self._n_since_whole = None
        for place in range(0, max(len(item_ids), 1), _ENTRY_ITEMS):
            counted = [
                (item_id, *self._counter.published(item_id)) for item_id in item_ids[place : place + _ENTRY_ITEMS]
            ]
            entry = self._pack(counted, as_of, is_whole=is_whole and place == 0)
            reach("counting.publish_pairs")
            await self._log.publish(ITEM_PAIRS_STREAM, self._epoch, encode(entry), is_whole=entry.is_whole)
        self._n_since_whole = 0 if is_whole or n_since is None else n_since + len(item_ids)

    def _pack(self, counted: Sequence[Counted], as_of: Position | None, *, is_whole: bool) -> ItemPairs:
        return pack_pairs(
            counted,
            epoch=self._epoch,
            as_of=as_of,
            half_life_ms=self._counter.config.half_life_ms,
            is_whole=is_whole,
        )
