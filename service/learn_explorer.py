"""The one writer of a VW explorer: learn all actions of the shortlists, publish the model whole."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import numpy as np
import structlog

from bandit.explorer import Explorer, ExplorerSpec
from bandit.joining import Joined, Position
from service.config import Config, SurfaceConfig, explorer_of
from service.decision_record import unpack_shortlisted
from service.due import is_due
from service.failpoints import reach
from service.learn import ModelLoop
from service.learned import Learnable, LearnedDecision, LearnedSlot
from service.messages import (
    Checkpoint,
    ConfigChange,
    Erasure,
    Event,
    Heartbeat,
    ModelSnapshot,
    Promotion,
    Shortlisted,
    encode,
)
from service.metrics import Metrics
from service.ports import Journal, ModelStore, UserStates
from service.served_explorer import workspace_digest

Check = Callable[[ExplorerSpec, bytes], Awaitable[bool]]

_log = structlog.get_logger("hone.learn")


class ExploredSlot(LearnedSlot, frozen=True, gc=False):
    """What learning reads of a slot record; the fields mean what they mean there."""

    action: int
    shortlist: bytes = b""


class ExploredDecision(LearnedDecision, frozen=True, gc=False, tag="decision"):
    """What learning reads of a decision."""

    exploration: dict[str, Any]
    slots: list[ExploredSlot]  # type: ignore[assignment] # frozen: nobody puts another kind of slot into it
    shortlisted: Shortlisted | None = None


class LearnableShortlists(Learnable, frozen=True, gc=False):
    """What is held of a decision; see `Learnable`.

    Attributes:
        drawn: Each slot's item, as a position in the candidate list.
        shortlists: uint32 [m] of each slot, positions in the candidate list; empty without one.
        shortlisted: Features of the actions on them.
    """

    drawn: list[int]
    shortlists: list[bytes]
    shortlisted: Shortlisted


class ExplorerLoop(ModelLoop[Explorer]):
    """Learns an explorer from the surfaces that explore with it, and publishes it whole, at a bounded rate.

    Some explorers (bag, cover, rnd) keep state that their serialised form does not hold, so a learner that came back
    from a checkpoint would learn another model than one that never stopped. Therefore the learner itself goes on from
    its serialised form at every cut, a cut falls where journal time passes a multiple of `checkpoint_s`, and
    checkpoints are of cuts only: a crash anywhere gives the same model as no crash.

    Args:
        check: loads a model in another process; False when that failed.
    """

    _decoder = msgspec.msgpack.Decoder(ExploredDecision | Event | Heartbeat | ConfigChange | Erasure | Promotion)

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
        check: Check,
    ) -> None:
        super().__init__(
            config=config, model=model, journal=journal, models=models, users=users, metrics=metrics, clock=clock
        )
        self._check = check
        self._settings = config.models[model]
        self._cut_ms = int(self._settings.checkpoint_s * 1000)
        self._cut: Checkpoint | None = None
        self._era: int | None = None
        self._n_at_publish = 0
        self._published_at_ms = 0

    async def start(self) -> None:
        """Do as every loop does; what was restored, and nothing, are cuts."""
        await super().start()
        self._cut = self._checkpoint()
        self._era = max(self._applied.values())[0] // self._cut_ms if self._applied else None
        self._n_at_publish = self._learner.n_learned
        self._published_at_ms = self._clock()

    async def save(self) -> None:
        """Write the last cut under this learner's epoch."""
        if self._cut is not None:
            reach("learner.checkpoint")
            await self._models.save_checkpoint(self.model, self._epoch, encode(self._cut))
            reach("learner.checkpointed")
        self._saved_at_ms = self._clock()

    def _build_learner(self, model_bytes: bytes | None) -> Explorer:
        spec = self._config.explorer_spec(self.model)
        return Explorer(spec, model_bytes or Explorer(spec).serialize())

    def _learns(self, surface: SurfaceConfig) -> bool:
        return explorer_of(surface) == self.model

    def _hold(self, decision: LearnedDecision) -> LearnableShortlists | None:
        assert isinstance(decision, ExploredDecision)
        if decision.shortlisted is None or decision.exploration.get("model") != self.model:
            return None
        held = Learnable.of(decision)
        return LearnableShortlists(
            user_id=held.user_id,
            item_ids=held.item_ids,
            propensities=held.propensities,
            shared=held.shared,
            actions=held.actions,
            drawn=[slot.action for slot in decision.slots],
            shortlists=[slot.shortlist for slot in decision.slots],
            shortlisted=decision.shortlisted,
        )

    def _learn(self, joined: Joined[LearnableShortlists]) -> None:
        held, slot = joined.payload, joined.slot
        if joined.kind == "late" or not held.shortlists[slot]:
            return
        features = unpack_shortlisted(held.shortlisted)
        actions: list[int] = np.frombuffer(held.shortlists[slot], dtype="<u4").tolist()
        if held.drawn[slot] not in actions:
            # The uniform floor drew it from past the shortlist.
            actions.append(held.drawn[slot])
        self._learner.learn(
            self._shared(joined),
            [features[action] for action in actions],
            chosen=actions.index(held.drawn[slot]),
            reward=joined.reward,
            propensity=held.propensities[slot],
        )

    def _after_entry(self, position: Position) -> None:
        era, self._era = self._era, position[0] // self._cut_ms
        if era is None or era == self._era:
            return
        self._cut = self._checkpoint()
        n_learned = self._learner.n_learned
        self._learner = self._build_learner(self._cut.workspace)
        self._learner.n_learned = n_learned

    async def _publish_change(self) -> None:
        now_ms = self._clock()
        n_learned = self._learner.n_learned
        is_time = is_due(now_ms, since_ms=self._published_at_ms, every_ms=self._settings.publish_s * 1000)
        if n_learned == self._n_at_publish or not is_time:
            return
        self._published_at_ms = now_ms
        newest = await self._models.last_delta(self.model)
        self._version = self._next_version()
        snapshot = self._snapshot(newest[0] if newest else "0-0")
        # The child process may take longer than the lease lasts.
        checking = asyncio.ensure_future(self._check(self._learner.spec, snapshot.workspace))
        while not (await asyncio.wait({checking}, timeout=self._lease_ms / 4000))[0]:
            await self._renew_lease()
        if not checking.result():
            self._metrics.explorer_refused.inc()
            _log.error("learn.explorer_refused", model=self.model, version=self._version)
            return
        reach("learner.snapshot")
        await self._models.publish_snapshot(self.model, self._epoch, encode(snapshot))
        reach("learner.snapshot_published")
        # An entry without weights: followers that serve an older version load the snapshot.
        await self._publish(b"", b"")
        self._n_at_publish = n_learned

    def _snapshot(self, stream_id: str) -> ModelSnapshot:
        spec, workspace = self._learner.spec, self._learner.serialize()
        return ModelSnapshot(
            epoch=self._epoch,
            version=self._version,
            stream_id=stream_id,
            schema_version=self._schema.version,
            bits=spec.bits,
            arguments=spec.command(),
            indices=b"",
            values=b"",
            workspace=workspace,
            workspace_digest=workspace_digest(workspace),
        )

    def _note_user(self, entry: Any) -> None:  # noqa: ANN401 - the union, or None
        """Leave users to the loop of the surface's own model."""

    def _show(self, now_ms: int) -> None:
        self._metrics.model_version.labels(self.model).set(self._version)
