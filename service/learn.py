"""The one writer of a model: read the journal in order, join, learn, publish, checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import structlog

from bandit.features import FeatureSchema
from bandit.joining import Joined, Joiner, Position
from bandit.learner import Learner, collision_share
from bandit.vw_format import Encoded
from service.adoption import Adoptions
from service.config import Config, SurfaceConfig
from service.count_items import ItemCounting
from service.due import is_due
from service.errors import StoreUnavailable
from service.failpoints import reach
from service.feedback import interaction_of
from service.impressions import impressions_of
from service.journal_joins import JournalJoins
from service.journal_reader import JournalReader, entry_id_of, just_before, position_of
from service.learned import Learnable, LearnedDecision
from service.messages import (
    Checkpoint,
    ConfigChange,
    Erasure,
    Event,
    Heartbeat,
    ModelSnapshot,
    Promotion,
    WeightDelta,
    encode,
)
from service.metrics import Metrics
from service.ports import Journal, ModelStore, UserStates
from service.repair_users import UserRepairs

# Entries between two publications, when more are waiting: a delta of many outcomes names a weight once.
_BATCH = 1_024
_BLOCK_MS = 50
# Journal time must move for windows to close; an idle journal gets a heartbeat this often.
_HEARTBEAT_MS = 1_000
_SNAPSHOT_EVERY = 1_000
# Applying so many weights takes a worker about a millisecond.
_DELTA_WEIGHTS = 65_536
# A table that is fuller than this is warned about: of its used weights, 31% serve several features.
_CROWDED_SHARE = 0.5

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

    _decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
        LearnedDecision | Event | Heartbeat | ConfigChange | Erasure | Promotion
    )

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
        self.model = model
        # The statistics of items have one writer: the learner that is given the counting.
        self._counting = counting
        self._schema: FeatureSchema = config.features
        self._journal = journal
        self._models = models
        self._metrics = metrics
        self._clock = clock
        self._joins = JournalJoins(
            decoder=self._decoder,
            policies={name: s.reward for name, s in config.surfaces.items() if self._learns(s)},
            hold=self._hold,
            counting=counting,
        )
        self._joiner: Joiner[Any] = self._joins.joiner
        self._repairs = UserRepairs(users, metrics)
        self._learner: L = self._build_learner(None)
        self._positions: dict[int, Encoded] = {}
        self._reader = JournalReader(journal, {})
        self._unapplied: list[tuple[Position, bytes]] = []
        self._adoptions = Adoptions(config, model, models)
        self._epoch = 0
        self._version = 0
        self._tried_version = 0
        self._applied: dict[int, Position] = {}
        self._n_published = 0
        self._lease_ms = int(config.store.lease_s * 1000)
        self._renewed_at_ms = 0
        self._saved_at_ms = 0
        self._newest_ms = 0
        self._quiet_since_ms = 0

    @property
    def version(self) -> int:
        """Return the last published version."""
        return self._version

    @property
    def counters(self) -> Mapping[str, int]:
        """Return joins by reason since the first start."""
        return self._joiner.counters

    @property
    def lag_s(self) -> float:
        """Return the age of the newest applied entry, 0 before the first."""
        return max(0.0, (self._clock() - self._newest_ms) / 1000) if self._newest_ms else 0.0

    async def is_led(self) -> bool:
        """Return whether a learner of this model is alive; a standby starts when none is."""
        return await self._models.lease_holder(self.model) is not None

    async def start(self) -> None:
        """Take the next epoch and the lease, restore the checkpoint, rebuild open joins and publish a snapshot.

        Start once; after a failure, start another learner.

        Raises:
            Fenced: another learner has started meanwhile.
            ValueError: the checkpoint is of another feature schema or table size.
        """
        self._epoch = await self._models.take_epoch(self.model)
        reach("learner.epoch")
        await self._hold_lease()
        stored = await self._models.load_checkpoint(self.model)
        if stored is not None:
            reach("learner.restore")
            await self._restore(msgspec.msgpack.decode(stored, type=Checkpoint))
        reach("learner.restored")
        newest = await self._models.last_delta(self.model)
        published = await self._models.load_snapshot(self.model)
        # Versions go on from what workers may have seen, also past the checkpoint.
        seen = [self._version]
        if newest is not None:
            seen.append(msgspec.msgpack.decode(newest[1], type=WeightDelta).version)
        if published is not None:
            seen.append(msgspec.msgpack.decode(published, type=ModelSnapshot).version)
        self._version = max(seen)
        await self._publish_whole(newest[0] if newest else "0-0")
        if self._counting is not None:
            await self._counting.start(self._epoch)
        self._saved_at_ms = self._clock()
        self._metrics.learner_leads.labels(self.model).set(1)
        _log.info("learn.started", model=self.model, epoch=self._epoch, version=self._version)

    async def step(self) -> int:
        """Apply what came, publish what changed, checkpoint when due; return the number of entries applied.

        Raises:
            Fenced: another learner has taken over; this one must end.
            StoreUnavailable: nothing is lost; entries that were applied stay applied, calling again goes on.
        """
        await self._renew_lease()
        entries = await self._next_entries()
        for position, payload in entries:
            reach("learner.join")
            entry = self._joins.decode(position, payload)
            for joined in self._joins.apply(position, entry):
                reach("learner.learn")
                self._learn(joined)
                # One entry may close the windows of very many slots.
                await self._renew_lease()
            self._applied[position[1]] = position
            self._newest_ms = position[0]
            self._after_entry(position)
            self._note_user(entry)
            if isinstance(entry, Promotion) and entry.model == self.model:
                reach("learner.adopt")
                self._adopt(position, entry)
            reach("learner.applied")
        await self._publish_change()
        await self._adoptions.store_replaced()
        now_ms = self._clock()
        if self._counting is not None:
            await self._counting.publish(now_ms)
        reach("learner.repair")
        every_ms = self._config.models[self.model].checkpoint_s * 1000
        is_save_due = is_due(now_ms, since_ms=self._saved_at_ms, every_ms=every_ms)
        # A checkpoint says that its entries need not be read again, so it waits for the users' states.
        if (is_save_due or self._repairs.is_due(now_ms)) and await self._repairs.write(now_ms) and is_save_due:
            await self.save()
        if entries:
            self._quiet_since_ms = now_ms
        else:
            await self._beat(now_ms)
        self._show(now_ms)
        return len(entries)

    async def _next_entries(self) -> list[tuple[Position, bytes]]:
        """Return the next entries, once everything that they name is at hand."""
        if not self._unapplied:
            self._unapplied = await self._reader.read(count=_BATCH, block_ms=_BLOCK_MS)
        await self._adoptions.fetch(payload for _, payload in self._unapplied)
        entries, self._unapplied = self._unapplied, []
        return entries

    def _adopt(self, position: Position, promotion: Promotion) -> None:
        """Go on from a promoted artefact; only models that rank are promoted."""

    async def save(self) -> None:
        """Write the checkpoint under this learner's epoch."""
        # A checkpoint says that its entries need not be read again.
        await self._adoptions.store_replaced()
        reach("learner.checkpoint")
        await self._models.save_checkpoint(self.model, self._epoch, encode(self._checkpoint()))
        reach("learner.checkpointed")
        self._saved_at_ms = self._clock()

    async def end(self) -> None:
        """Write the checkpoint and let a standby take over at once."""
        # Without the users' states there is no checkpoint: the next learner reads these entries again.
        if await self._repairs.write(self._clock()):
            await self.save()
        reach("learner.release")
        await self._models.release_lease(self.model, self._epoch)

    def show_standby(self) -> None:
        """Show in the metrics that another learner leads, or none."""
        self._metrics.learner_leads.labels(self.model).set(0)

    async def _renew_lease(self) -> None:
        """Renew the lease when a quarter of it is over.

        Without the store it runs out, and nothing else happens: this is called in the middle of entries, of which none
        may be left out.
        """
        if is_due(self._clock(), since_ms=self._renewed_at_ms, every_ms=self._lease_ms / 4):
            with suppress(StoreUnavailable):
                await self._hold_lease()

    async def _hold_lease(self) -> None:
        self._renewed_at_ms = self._clock()
        reach("learner.lease")
        await self._models.hold_lease(self.model, self._epoch, lease_ms=self._lease_ms)

    def _note_user(self, entry: Any) -> None:  # noqa: ANN401 - the union, or None
        """Take note of what an entry says about a user."""
        if isinstance(entry, Event):
            user_id, item_id = self._joins.about(entry)
            if user_id and item_id:
                self._repairs.add_interaction(user_id, interaction_of(entry, item_id=item_id, config=self._config))
        elif isinstance(entry, LearnedDecision) and entry.model == self.model and entry.user_id is not None:
            item_ids = [slot.item_id for slot in entry.slots]
            shown = impressions_of(entry.event_id, item_ids, entry.decided_at_unix_ms)
            self._repairs.add_impressions(entry.user_id, shown)

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
            open_position = self._joins.oldest_open(partition)
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
            item_pairs=b"" if self._counting is None else self._counting.checkpoint_pairs(),
            artefact=self._adoptions.artefact,
            weight_norm=self._weight_norm(),
        )
        return checkpoint

    def _weight_norm(self) -> float:
        """Return the norm of the weights, 0 for what is not one table of them."""
        return 0.0

    def _hold(self, decision: LearnedDecision) -> Learnable | None:
        """Return what is held of a decision, None when it was not made with this model."""
        raise NotImplementedError

    def _shared(self, joined: Joined[Any]) -> dict[str, Encoded]:
        """Return the shared features; the position is learned where the item stood, scoring uses the reference."""
        if joined.slot not in self._positions:
            self._positions[joined.slot] = self._schema.encode("position", {"slot": joined.slot})
        return {**joined.payload.shared, "position": self._positions[joined.slot]}

    async def _restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.schema_version != self._schema.version:
            raise ValueError(
                f"model {self.model!r}: the checkpoint is of feature schema {checkpoint.schema_version}, "
                f"the configuration declares {self._schema.version}; use a new model name for a new schema"
            )
        self._learner = self._build_learner(checkpoint.workspace)
        self._learner.n_learned, self._learner.loss_sum = checkpoint.n_learned, checkpoint.loss_sum
        self._version = checkpoint.model_version
        self._adoptions.artefact = checkpoint.artefact
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
            self._counting.restore(checkpoint.item_stats, checkpoint.item_pairs)
        self._joiner.counters.clear()
        self._joiner.counters.update(checkpoint.counters)
        self._reader = JournalReader(self._journal, {p: entry_id_of(at) for p, at in self._applied.items()})

    async def _rebuild_joins(self, reader: JournalReader) -> None:
        """Apply the entries up to the checkpoint again; what they join was learned already."""
        last = max(self._applied.values(), default=(0, 0, 0))
        while entries := await reader.read(count=_BATCH, block_ms=0):
            await self._renew_lease()
            for position, payload in entries:
                if position > last:
                    return
                self._joins.apply(position, self._joins.decode(position, payload))

    def _next_version(self) -> int:
        """Return a version that nothing else has: a write that failed may have happened, and workers serve it."""
        self._tried_version = max(self._tried_version, self._version) + 1
        return self._tried_version

    async def _publish(self, indices: bytes, values: bytes) -> None:
        delta = WeightDelta(
            epoch=self._epoch,
            base_version=self._version,
            version=self._next_version(),
            indices=indices,
            values=values,
        )
        reach("learner.publish")
        stream_id = await self._models.publish_delta(self.model, self._epoch, encode(delta))
        reach("learner.published")
        self._version = delta.version
        self._n_published += 1
        if self._n_published % _SNAPSHOT_EVERY == 0:
            await self._publish_snapshot(stream_id)

    async def _publish_whole(self, stream_id: str) -> None:
        """Publish a snapshot that does not follow from what was published; `stream_id` is of the newest delta."""
        self._version = self._next_version()
        await self._publish_snapshot(stream_id)
        # An empty delta on top of the snapshot: followers see that it is not theirs and load the snapshot.
        await self._publish(b"", b"")

    async def _publish_snapshot(self, stream_id: str) -> None:
        reach("learner.snapshot")
        await self._models.publish_snapshot(self.model, self._epoch, encode(self._snapshot(stream_id)))
        reach("learner.snapshot_published")

    async def _beat(self, now_ms: int) -> None:
        # Not since the newest entry: that was the store's clock, which may be another one.
        is_quiet = is_due(now_ms, since_ms=self._quiet_since_ms, every_ms=_HEARTBEAT_MS)
        if is_quiet and (self._joiner.n_open or self._reader.n_held):
            reach("learner.heartbeat")
            beat = encode(Heartbeat(at_unix_ms=now_ms))
            for partition in range(self._journal.n_partitions):
                await self._journal.append(partition, [beat])
            self._quiet_since_ms = now_ms

    def _show(self, now_ms: int) -> None:
        for reason, count in self._joiner.counters.items():
            self._metrics.learner_outcomes.labels(reason).set(count)
        self._metrics.model_version.labels(self.model).set(self._version)
        self._metrics.learner_lag_seconds.set(self.lag_s)
        if self._learner.n_learned:
            self._metrics.learner_loss.set(self._learner.loss_sum / self._learner.n_learned)


class LearnerLoop(ModelLoop[Learner]):
    """Learns a linear model from shared context and drawn item, and publishes the weights that changed."""

    _is_crowded = False
    # Whether followers must load everything anew: what changed is more than what was touched.
    _is_replaced = False

    def _build_learner(self, model_bytes: bytes | None) -> Learner:
        return Learner(self._config.model_spec(self.model), model_bytes)

    def _learns(self, surface: SurfaceConfig) -> bool:
        # Any surface may give this model a share of its users.
        return True

    def _adopt(self, position: Position, promotion: Promotion) -> None:
        adopted = self._adoptions.adopt(promotion, position, self._learner)
        if adopted is None:
            self._joiner.counters["promotion_refused"] += 1
            return
        self._learner, self._is_replaced = adopted, True

    def _hold(self, decision: LearnedDecision) -> Learnable | None:
        return Learnable.of(decision) if decision.model == self.model else None

    def _learn(self, joined: Joined[Learnable]) -> None:
        if joined.kind == "late":
            return
        held, slot = joined.payload, joined.slot
        self._learner.learn(
            self._shared(joined), held.actions[slot], reward=joined.reward, propensity=held.propensities[slot]
        )

    def _weight_norm(self) -> float:
        return self._learner.norm()

    async def _publish_change(self) -> None:
        if self._is_replaced:
            newest = await self._models.last_delta(self.model)
            await self._publish_whole(newest[0] if newest else "0-0")
            self._learner.forget_change()
            self._is_replaced = False
        change = self._learner.change()
        # Each part is a version of its own: a worker applies one between two requests.
        for start in range(0, len(change.indices), _DELTA_WEIGHTS):
            part = slice(start, start + _DELTA_WEIGHTS)
            await self._publish(
                change.indices[part].astype("<u4").tobytes(), change.values[part].astype("<f4").tobytes()
            )
        if len(change.indices):
            self._learner.forget_change()

    async def save(self) -> None:
        """Write the checkpoint, and look how full the weight table is."""
        await super().save()
        occupied = self._learner.occupied_share()
        self._metrics.model_occupied_share.labels(self.model).set(occupied)
        self._metrics.model_collision_share.labels(self.model).set(collision_share(occupied))
        if occupied > _CROWDED_SHARE and not self._is_crowded:
            _log.warning("learn.table_crowded", model=self.model, occupied_share=occupied, hint="raise models.*.bits")
        self._is_crowded = occupied > _CROWDED_SHARE

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
            artefact=self._adoptions.artefact,
        )
