"""The one writer of item statistics: counts what the journal says, publishes what changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec
import numpy as np

from bandit.item_counts import Counts, ItemCounter, liked_at
from bandit.joining import JoinEvent, Position
from service.config import Config
from service.count_pairs import PairCounting
from service.due import is_due
from service.failpoints import reach
from service.item_statistics import ITEM_STATS_STREAM, as_of_text, parse_as_of, unpack_stats
from service.messages import ItemStats, encode
from service.ports import ChangeLog

_PUBLISH_MS = 1_000
# Every so many entries the whole is published and what came before is dropped: the stream stays bounded.
_WHOLE_EVERY = 600


class ShownSlot(Protocol):
    """What counting reads of a slot."""

    @property
    def item_id(self) -> str:
        """Return what was shown."""


class ShownDecision(Protocol):
    """What counting reads of a decision."""

    @property
    def event_id(self) -> str:
        """Return its id."""

    @property
    def user_key(self) -> str:
        """Return for whom; empty for nobody in particular."""

    @property
    def surface(self) -> str:
        """Return where it was shown."""

    @property
    def decided_at_unix_ms(self) -> int:
        """Return when."""

    @property
    def slots(self) -> Sequence[ShownSlot]:
        """Return what was placed."""


class ItemCounting:
    """Counts items for every model and surface; it is told of each journal entry once, in order.

    Args:
        config: surfaces say what events are worth; the feature schema says how fast counts decay.
        log: where they are published.
    """

    def __init__(self, *, config: Config, log: ChangeLog) -> None:
        self._policies = {name: surface.reward for name, surface in config.surfaces.items()}
        self._worths = {name: policy.reward for name, policy in self._policies.items()}
        self._log = log
        self._pairs = PairCounting(log)
        windows_ms = [int(policy.window_s * 1000) for policy in self._policies.values()]
        self._counter = ItemCounter(
            half_life_ms=config.features.half_life_s * 1000,
            window_ms=max(windows_ms, default=600_000),
            on_click=self._pairs.add,
        )
        self._epoch = 0
        self._as_of: Position | None = None
        self._published_as_of: Position | None = None
        self._published_at_ms = 0
        self._n_since_whole = 0

    def add_decision(self, position: Position, decision: ShownDecision) -> None:
        """Count a decision's slots."""
        self._as_of = position
        policy = self._policies.get(decision.surface)
        if policy is not None:
            self._counter.add_decision(
                position,
                event_id=decision.event_id,
                shown_at_ms=decision.decided_at_unix_ms,
                item_ids=tuple([slot.item_id for slot in decision.slots]),
                user_key=decision.user_key,
                worth=self._worths[decision.surface],
                window_ms=int(policy.window_s * 1000),
            )

    def add_event(self, position: Position, event: JoinEvent) -> None:
        """Count an event."""
        self._as_of = position
        self._counter.add_event(position, event)
        if event.event_id is None and event.item_id is not None and self._is_positive(event):
            # It names no decision, so no slot was clicked; that the user likes the item counts all the same.
            self._pairs.add(event.user_key, event.item_id, liked_at(position, event))

    def forget_user(self, user_key: str) -> None:
        """Forget what an erased user liked; counts over users stay."""
        self._pairs.forget_user(user_key)

    def advance(self, position: Position) -> None:
        """Take note of an entry that counts nothing."""
        self._as_of = position
        self._counter.advance(position[0])

    def oldest_open(self) -> Position | None:
        """Return where rereading must start from."""
        return self._counter.oldest_open()

    def checkpoint(self) -> bytes:
        """Return every count of items, to `restore` from."""
        return encode(self._stats(self._everything(), is_whole=True))

    def checkpoint_pairs(self) -> bytes:
        """Return every count of pairs, to `restore` from."""
        return self._pairs.checkpoint(self._as_of)

    def restore(self, stored: bytes, stored_pairs: bytes) -> None:
        """Take the counts of a checkpoint, after the open decisions were read again; an older one has no pairs."""
        if stored_pairs:
            self._pairs.restore(stored_pairs)
        stats = msgspec.msgpack.decode(stored, type=ItemStats)
        arrays = zip(*(array.tolist() for array in unpack_stats(stats)), strict=True)
        self._counter.restore(
            {
                item_id: Counts(n_impressions=impressions, n_clicks=clicks, n_rewards=rewards, at_ms=at_ms)
                for item_id, (impressions, rewards, clicks, at_ms) in zip(stats.item_ids, arrays, strict=True)
            }
        )
        self._as_of = parse_as_of(stats.as_of)

    async def start(self, epoch: int) -> None:
        """Take the next epoch of the stream and publish everything; what earlier ones publish is refused from now on.

        Args:
            epoch: of the learner; the stream's own is not lower, because the counting may move to another model.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        self._epoch = await self._log.take_epoch(ITEM_STATS_STREAM, at_least=epoch)
        await self._publish(is_whole=True)
        await self._pairs.start(epoch, self._as_of)

    async def publish(self, now_ms: int) -> None:
        """Publish what changed, at most every second.

        Raises:
            Fenced: another learner counts now.
            StoreUnavailable: what changed is published the next time, with everything else.
        """
        is_time = is_due(now_ms, since_ms=self._published_at_ms, every_ms=_PUBLISH_MS)
        if is_time and self._as_of != self._published_as_of:
            self._published_at_ms = now_ms
            await self._publish(is_whole=self._n_since_whole in (0, _WHOLE_EVERY))
        await self._pairs.publish(now_ms, self._as_of)

    async def _publish(self, *, is_whole: bool) -> None:
        changed = self._counter.take_changed()
        as_of = self._as_of
        if changed or is_whole:
            stats = self._stats(self._everything() if is_whole else changed, is_whole=is_whole)
            # A write that fails may have happened or not; a whole one is right after either.
            n_since_whole, self._n_since_whole = 0 if is_whole else self._n_since_whole, 0
            reach("counting.publish")
            await self._log.publish(ITEM_STATS_STREAM, self._epoch, encode(stats), is_whole=is_whole)
            reach("counting.published")
            self._n_since_whole = n_since_whole + 1
        self._published_as_of = as_of

    def _is_positive(self, event: JoinEvent) -> bool:
        """Return whether the first declared surface that names the event's type rewards it."""
        worths = (policy.reward(event.event_type, event.value) for policy in self._policies.values())
        return next((worth for worth in worths if worth is not None), 0.0) > 0.0

    def _everything(self) -> list[tuple[str, Counts]]:
        return list(self._counter.items(self._as_of[0] if self._as_of else 0))

    def _stats(self, counted: Sequence[tuple[str, Counts]], *, is_whole: bool) -> ItemStats:
        return ItemStats(
            at_unix_ms=self._as_of[0] if self._as_of else 0,
            item_ids=[item_id for item_id, _ in counted],
            n_impressions=_pack(counts.n_impressions for _, counts in counted),
            n_rewards=_pack(counts.n_rewards for _, counts in counted),
            n_clicks=_pack(counts.n_clicks for _, counts in counted),
            counted_at=np.array([counts.at_ms for _, counts in counted], dtype="<i8").tobytes(),
            epoch=self._epoch,
            as_of=as_of_text(self._as_of),
            is_whole=is_whole,
        )


def counting_model(config: Config) -> str | None:
    """Return the model whose learner counts: the first that ranks; None without models."""
    return min((name for name, model in config.models.items() if not model.arguments), default=None)


def _pack(numbers: Iterable[float]) -> bytes:
    return np.array(list(numbers), dtype="<f8").tobytes()
