"""The one writer of a model: read the journal in order, join, learn, publish, checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import structlog

from bandit.features import FeatureSchema
from bandit.joining import Joined, Joiner, JoinEvent, Position
from bandit.learner import Learner
from bandit.vw_format import Encoded
from bandit.vw_format import encode as encode_features
from service.config import Config, SurfaceConfig
from service.count_items import ItemCounting
from service.errors import StoreUnavailable
from service.feedback import interaction_of
from service.impressions import impressions_of
from service.journal_reader import JournalReader, entry_id_of, just_before, position_of
from service.learned import LearnedDecision
from service.messages import (
    Checkpoint,
    ConfigChange,
    Event,
    Heartbeat,
    Impression,
    Interaction,
    ModelSnapshot,
    WeightDelta,
    encode,
)
from service.metrics import Metrics
from service.ports import Journal, ModelStore, UserStates

_BATCH = 512
_BLOCK_MS = 50
# Journal time must move for windows to close; an idle journal gets a heartbeat this often.
_HEARTBEAT_MS = 1_000
_SNAPSHOT_EVERY = 1_000
# Slots that were not drawn: their propensity is 1 and teaches nothing about the choice.
_PLACED = frozenset({"sponsored", "pinned"})

_log = structlog.get_logger("hone.learn")


class Learning(Protocol):
    """What every kind of learner has."""

    n_learned: int
    loss_sum: float

    def serialize(self) -> bytes:
        """Return the whole learner."""


L = TypeVar("L", bound=Learning)


class ModelLoop(Generic[L]):
    """Learns one model; a crash anywhere gives the model of an undisturbed run. Subclasses say what a model is.

    Everything that is learned is a function of the journal's entries in order. The checkpoint says which of them were
    applied; a new learner rebuilds open joins by rereading from the oldest open entry, without learning again.
    """

    _decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(LearnedDecision | Event | Heartbeat | ConfigChange)

    def __init__(
        self,
        *,
        config: Config,
        model: str,
        journal: Journal,
        models: ModelStore,
        users: UserStates,
        metrics: Metrics,
        clock: Callable[[], int],
        counting: ItemCounting | None = None,
    ) -> None:
        self._config = config
        self._model = model
        # The statistics of items have one writer: the learner that is given the counting.
        self._counting = counting
        self._schema: FeatureSchema = config.features
        self._journal = journal
        self._models = models
        self._users = users
        self._metrics = metrics
        self._clock = clock
        self._policies = {name: s.reward for name, s in config.surfaces.items() if self._learns(s)}
        longest_s = max((policy.window_s for policy in self._policies.values()), default=600.0)
        self._joiner: Joiner[LearnedDecision] = Joiner(pending_ms=int(longest_s * 1000))
        self._learner: L = self._build_learner(None)
        self._reader = JournalReader(journal, {})
        self._epoch = 0
        self._version = 0
        self._applied: dict[int, Position] = {}
        self._n_published = 0
        self._saved_at_ms = 0
        self._newest_ms = 0

    @property
    def version(self) -> int:
        """Return the last published version."""
        return self._version

    async def start(self) -> None:
        """Take the next epoch, restore the checkpoint, rebuild open joins and publish a snapshot.

        Raises:
            ValueError: the checkpoint is of another feature schema or table size.
        """
        self._epoch = await self._models.take_epoch(self._model)
        stored = await self._models.load_checkpoint(self._model)
        if stored is not None:
            await self._restore(msgspec.msgpack.decode(stored, type=Checkpoint))
        newest = await self._models.last_delta(self._model)
        published = await self._models.load_snapshot(self._model)
        # Versions go on from what workers may have seen, also past the checkpoint.
        seen = [self._version]
        if newest is not None:
            seen.append(msgspec.msgpack.decode(newest[1], type=WeightDelta).version)
        if published is not None:
            seen.append(msgspec.msgpack.decode(published, type=ModelSnapshot).version)
        self._version = max(seen) + 1
        await self._publish_snapshot(newest[0] if newest else "0-0")
        if self._counting is not None:
            await self._counting.start(self._epoch)
        # An empty delta on top of the snapshot: followers see that it is not theirs and load the snapshot.
        await self._publish(b"", b"")
        self._saved_at_ms = self._clock()
        _log.info("learn.started", model=self._model, epoch=self._epoch, version=self._version)

    async def step(self) -> int:
        """Apply what came, publish what changed, checkpoint when due; return the number of entries applied.

        Raises:
            Fenced: another learner has taken over; this one must end.
            StoreUnavailable: nothing is lost; entries that were applied stay applied, calling again goes on.
        """
        entries = await self._reader.read(count=_BATCH, block_ms=_BLOCK_MS)
        interactions: dict[str, list[Interaction]] = {}
        shown: dict[str, list[Impression]] = {}
        for position, payload in entries:
            entry = self._decode(position, payload)
            for joined in self._apply(position, entry):
                self._learn(joined)
            self._applied[position[1]] = position
            self._newest_ms = position[0]
            self._after_entry(position)
            if isinstance(entry, Event):
                user_id, item_id = self._about(entry)
                if user_id and item_id:
                    interaction = interaction_of(entry, item_id=item_id, config=self._config)
                    interactions.setdefault(user_id, []).append(interaction)
            elif isinstance(entry, LearnedDecision) and entry.model == self._model and entry.user_id is not None:
                item_ids = [slot.item_id for slot in entry.slots]
                impressions = impressions_of(entry.event_id, item_ids, entry.decided_at_unix_ms)
                shown.setdefault(entry.user_id, []).extend(impressions)
        await self._publish_change()
        now_ms = self._clock()
        if self._counting is not None:
            await self._counting.publish(now_ms)
        await self._repair_users(interactions, shown)
        if now_ms - self._saved_at_ms >= self._config.models[self._model].checkpoint_s * 1000:
            await self.save()
        if not entries:
            await self._beat(now_ms)
        self._show(now_ms)
        return len(entries)

    async def save(self) -> None:
        """Write the checkpoint under this learner's epoch."""
        await self._models.save_checkpoint(self._model, self._epoch, encode(self._checkpoint()))
        self._saved_at_ms = self._clock()

    def _after_entry(self, position: Position) -> None:
        """Take note that everything up to an entry is learned."""

    def _build_learner(self, model_bytes: bytes | None) -> L:
        """Return an empty learner, or one that goes on from a serialised one."""
        raise NotImplementedError

    def _learns(self, surface: SurfaceConfig) -> bool:
        """Return whether the decisions of a surface teach this model."""
        raise NotImplementedError

    def _learn(self, joined: Joined[Any]) -> None:
        """Learn one outcome of one slot."""
        raise NotImplementedError

    async def _publish_change(self) -> None:
        """Publish what was learned since the last time, when it is due."""
        raise NotImplementedError

    def _snapshot(self, stream_id: str) -> ModelSnapshot:
        """Return the whole model, as of the present version."""
        raise NotImplementedError

    def _checkpoint(self) -> Checkpoint:
        oldest = {}
        for partition in self._applied:
            open_position = self._oldest_open(partition)
            oldest[str(partition)] = entry_id_of(open_position) if open_position else ""
        waiting: dict[str, list[str]] = {}
        for position in self._joiner.waiting():
            waiting.setdefault(str(position[1]), []).append(entry_id_of(position))
        checkpoint = Checkpoint(
            epoch=self._epoch,
            model_version=self._version,
            schema_version=self._schema.version,
            positions={str(partition): entry_id_of(position) for partition, position in self._applied.items()},
            oldest_open=oldest,
            workspace=self._learner.serialize(),
            n_learned=self._learner.n_learned,
            loss_sum=self._learner.loss_sum,
            counters=dict(self._joiner.counters),
            waiting=waiting,
            item_stats=b"" if self._counting is None else self._counting.checkpoint(),
        )
        return checkpoint

    def _oldest_open(self, partition: int) -> Position | None:
        """Return where a partition must be reread from, for the joins and for the counts."""
        counted = None if self._counting is None else self._counting.oldest_open()
        joined = self._joiner.oldest_open(partition)
        if counted is None or (joined is not None and joined <= counted):
            return joined
        return counted if counted[1] == partition else (counted[0], partition, 0)

    def _decode(self, position: Position, payload: bytes) -> Any:  # noqa: ANN401 - the union, or None
        try:
            return self._decoder.decode(payload)
        except msgspec.MsgspecError as error:
            # Stopping here would stop learning for good; the entry stays in the journal and is counted.
            self._joiner.counters["entry_unreadable"] += 1
            _log.error("learn.unreadable", position=position, error=str(error))
            return None

    def _about(self, event: Event) -> tuple[str | None, str | None]:
        """Return the user and item of an event, from its decision where it does not say."""
        decision = self._joiner.payload_of(event.event_id) if event.event_id else None
        item_id = event.item_id
        if decision is not None and item_id is None and event.slot is not None and event.slot < len(decision.slots):
            item_id = decision.slots[event.slot].item_id
        return event.user_id or (decision.user_id if decision else None), item_id

    def _apply(self, position: Position, entry: Any) -> list[Joined[LearnedDecision]]:  # noqa: ANN401 - the union
        if self._counting is not None and not isinstance(entry, Event):
            if isinstance(entry, LearnedDecision):
                self._counting.add_decision(position, entry)
            else:
                self._counting.advance(position)
        if isinstance(entry, LearnedDecision):
            policy = self._policies.get(entry.surface)
            if policy is None or not self._is_ours(entry):
                return self._joiner.advance(position[0])
            return self._joiner.add_decision(
                position,
                event_id=entry.event_id,
                policy=policy,
                item_ids=[slot.item_id for slot in entry.slots],
                user_key=entry.user_key,
                learnable=[slot.reason not in _PLACED for slot in entry.slots],
                payload=entry,
            )
        if isinstance(entry, Event):
            event = JoinEvent(
                client_id=entry.client_id,
                event_type=entry.event_type,
                event_id=entry.event_id,
                user_key=entry.user_key,
                item_id=entry.item_id,
                slot=entry.slot,
                value=entry.value,
            )
            if self._counting is not None:
                self._counting.add_event(position, event)
            return self._joiner.add_event(position, event)
        return self._joiner.advance(position[0])

    def _is_ours(self, decision: LearnedDecision) -> bool:
        """Return whether a decision of one of the surfaces was made with this model."""
        raise NotImplementedError

    def _shared(self, joined: Joined[Any]) -> dict[str, Encoded]:
        """Return the shared features; the position is learned where the item stood, scoring uses the reference."""
        return encoded({**joined.payload.features, "position": self._schema.named("position", {"slot": joined.slot})})

    async def _restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.schema_version != self._schema.version:
            raise ValueError(
                f"model {self._model!r}: the checkpoint is of feature schema {checkpoint.schema_version}, "
                f"the configuration declares {self._schema.version}; use a new model name for a new schema"
            )
        self._learner = self._build_learner(checkpoint.workspace)
        self._learner.n_learned, self._learner.loss_sum = checkpoint.n_learned, checkpoint.loss_sum
        self._version = checkpoint.model_version
        self._applied = {int(p): position_of(int(p), entry_id) for p, entry_id in checkpoint.positions.items()}
        after = {
            int(p): just_before(checkpoint.oldest_open[p]) if checkpoint.oldest_open[p] else entry_id
            for p, entry_id in checkpoint.positions.items()
        }
        await self._rebuild_joins(JournalReader(self._journal, after))
        if checkpoint.waiting is not None:
            self._joiner.keep_waiting(
                {position_of(int(p), entry_id) for p, ids in checkpoint.waiting.items() for entry_id in ids}
            )
        if self._counting is not None and checkpoint.item_stats:
            self._counting.restore(checkpoint.item_stats)
        self._joiner.counters.clear()
        self._joiner.counters.update(checkpoint.counters)
        self._reader = JournalReader(self._journal, {p: entry_id_of(at) for p, at in self._applied.items()})

    async def _rebuild_joins(self, reader: JournalReader) -> None:
        """Apply the entries up to the checkpoint again; what they join was learned already."""
        last = max(self._applied.values(), default=(0, 0, 0))
        while entries := await reader.read(count=_BATCH, block_ms=0):
            for position, payload in entries:
                if position > last:
                    return
                self._apply(position, self._decode(position, payload))

    async def _publish(self, indices: bytes, values: bytes) -> None:
        delta = WeightDelta(
            epoch=self._epoch, base_version=self._version, version=self._version + 1, indices=indices, values=values
        )
        stream_id = await self._models.publish_delta(self._model, self._epoch, encode(delta))
        self._version += 1
        self._n_published += 1
        if self._n_published % _SNAPSHOT_EVERY == 0:
            await self._publish_snapshot(stream_id)

    async def _publish_snapshot(self, stream_id: str) -> None:
        await self._models.publish_snapshot(self._model, self._epoch, encode(self._snapshot(stream_id)))

    async def _repair_users(
        self, interactions: Mapping[str, list[Interaction]], shown: Mapping[str, list[Impression]]
    ) -> None:
        """Add again what API workers add eagerly; the same bytes, so nothing doubles."""
        try:
            for user_id, of_user in interactions.items():
                await self._users.add_interactions(user_id, of_user)
            if shown:
                await self._users.add_impressions(shown)
        except StoreUnavailable:
            self._metrics.user_state_failures.labels("repair").inc()

    async def _beat(self, now_ms: int) -> None:
        if (self._joiner.n_open or self._reader.n_held) and now_ms - self._newest_ms >= _HEARTBEAT_MS:
            beat = encode(Heartbeat(at_unix_ms=now_ms))
            for partition in range(self._journal.n_partitions):
                await self._journal.append(partition, [beat])

    def _show(self, now_ms: int) -> None:
        for reason, count in self._joiner.counters.items():
            self._metrics.learner_outcomes.labels(reason).set(count)
        self._metrics.model_version.labels(self._model).set(self._version)
        if self._newest_ms:
            self._metrics.learner_lag_seconds.set(max(0.0, (now_ms - self._newest_ms) / 1000))
        if self._learner.n_learned:
            self._metrics.learner_loss.set(self._learner.loss_sum / self._learner.n_learned)


class LearnerLoop(ModelLoop[Learner]):
    """Learns a linear model from shared context and drawn item, and publishes the weights that changed."""

    def _build_learner(self, model_bytes: bytes | None) -> Learner:
        return Learner(self._config.model_spec(self._model), model_bytes)

    def _learns(self, surface: SurfaceConfig) -> bool:
        return surface.model == self._model

    def _is_ours(self, decision: LearnedDecision) -> bool:
        return decision.model == self._model

    def _learn(self, joined: Joined[LearnedDecision]) -> None:
        if joined.kind == "late":
            return
        slot = joined.payload.slots[joined.slot]
        features = encoded(slot.features)
        self._learner.learn(self._shared(joined), features, reward=joined.reward, propensity=slot.propensity)

    async def _publish_change(self) -> None:
        change = self._learner.change()
        if len(change.indices):
            await self._publish(change.indices.astype("<u4").tobytes(), change.values.astype("<f4").tobytes())
            self._learner.forget_change()

    def _snapshot(self, stream_id: str) -> ModelSnapshot:
        weights = self._learner.all_weights()
        return ModelSnapshot(
            epoch=self._epoch,
            version=self._version,
            stream_id=stream_id,
            schema_version=self._schema.version,
            bits=self._learner.spec.bits,
            arguments=self._learner.spec.arguments(),
            indices=weights.indices.astype("<u4").tobytes(),
            values=weights.values.astype("<f4").tobytes(),
        )


def encoded(named: Mapping[str, Mapping[str, float]]) -> dict[str, Encoded]:
    """Return named features hashed, by namespace."""
    return {namespace: encode_features(namespace, features) for namespace, features in named.items()}
