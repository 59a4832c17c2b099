"""The health watch: read the journal in order, count, judge, publish a verdict that every worker can give."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
import structlog

from bandit.exploration import Exploration
from bandit.features import Feature
from bandit.health import Judgement, judge
from bandit.health_intervals import Interval, IntervalCollector, Shown, ShownSlot
from bandit.joining import Position
from service.change_reader import read_stream
from service.config import Config
from service.due import is_due
from service.feature_records import item_record
from service.items_view import ITEMS_STREAM
from service.joins import PLACED, join_event
from service.journal_reader import START, JournalReader, entry_order, just_before
from service.messages import (
    ConfigChange,
    Erasure,
    Event,
    HealthAlarm,
    HealthState,
    HealthVerdict,
    Heartbeat,
    ItemUpsert,
    Promotion,
    encode,
    item_change_decoder,
)
from service.ports import ChangeLog, HealthBoard, Journal, ModelStore

_BATCH = 1_000
_BLOCK_MS = 500
_PUBLISH_MS = 5_000
# Without renewal for so long, the watch counts as gone.
VERDICT_TTL_MS = 30_000
# How often it is looked at how far the others are.
_LOOK_MS = 15_000
# So many ends of the journal are remembered, to say for how long a reader has been behind.
_MAX_ENDS = 5_000
_PLACED = PLACED | {"discovery"}

_log = structlog.get_logger("hone.health")


class WatchedSlot(msgspec.Struct, frozen=True):
    """What the watch reads of a slot record; the fields mean what they mean there."""

    item_id: str
    branch: str
    reason: str
    features: dict[str, dict[str, float]]


class WatchedDecision(msgspec.Struct, frozen=True, tag_field="type", tag="decision"):
    """What the watch reads of a decision: all but its candidates."""

    event_id: str
    decided_at_unix_ms: int
    surface: str
    user_key: str
    features: dict[str, dict[str, float]]
    exploration: Exploration
    slots: list[WatchedSlot]


class WatchedDelta(msgspec.Struct, frozen=True):
    """What the watch reads of a weight delta."""

    version: int


_entry_decoder = msgspec.msgpack.Decoder(WatchedDecision | Event | Heartbeat | ConfigChange | Erasure | Promotion)
_delta_decoder = msgspec.msgpack.Decoder(WatchedDelta)


class HealthWatch:
    """The one health watch.

    Args:
        archived: how far the archiver is: the last journal id of a partition that is archived.
        state_path: file of what was counted; without it the watch begins with what the journal still holds.
        clock: unix milliseconds; lags and the age of the verdict go by it, everything counted by journal time.
    """

    def __init__(
        self,
        *,
        config: Config,
        journal: Journal,
        log: ChangeLog,
        models: ModelStore,
        archived: Callable[[int], str],
        board: HealthBoard,
        state_path: Path,
        clock: Callable[[], int],
    ) -> None:
        self._config = config
        self._journal = journal
        self._log = log
        self._models = models
        self._archived = archived
        self._board = board
        self._state_path = state_path
        self._clock = clock
        self._genre = _feature(config, config.health.genre, {"item"})
        self._drift = [f for name in config.health.drift if (f := _feature(config, name, {"context", "user"}))]
        self._genres: set[str] = set()
        self._items_read_to = START
        self._newest_ms = 0
        self._published_at_ms = 0
        self._looked_at_ms = 0
        # (clock, journal time that was read to), each later than the one before.
        self._ends: deque[tuple[int, int]] = deque(maxlen=_MAX_ENDS)
        self._lags: dict[str, float] = {}
        self._norms: dict[str, float] = {}
        self._versions: dict[str, int] = {}
        self._versions_before: dict[str, int] = {}
        state = self._load_state()
        self._intervals = state.intervals
        self._since = state.since_unix_ms
        self._collector = self._build_collector(state)
        after = just_before(f"{state.resume_ms}-0") if state.resume_ms else START
        self._reader = JournalReader(journal, dict.fromkeys(range(journal.n_partitions), after))

    async def step(self) -> None:
        """Count what came; look, publish and keep what was counted when it is time.

        Raises:
            StoreUnavailable: call again; nothing that was read is lost.
        """
        await self._read_items()
        for position, payload in await self._reader.read(count=_BATCH, block_ms=_BLOCK_MS):
            self._newest_ms = position[0]
            self._keep(self._apply(position, payload))
        now_ms = self._clock()
        if is_due(now_ms, since_ms=self._looked_at_ms, every_ms=_LOOK_MS):
            self._looked_at_ms = now_ms
            await self._look()
        if is_due(now_ms, since_ms=self._published_at_ms, every_ms=_PUBLISH_MS):
            self._published_at_ms = now_ms
            await self._board.publish(encode(self.verdict()), ttl_ms=VERDICT_TTL_MS)

    def verdict(self) -> HealthVerdict:
        """Return what is wrong now, and since when."""
        judgement = judge(
            self._config.health,
            self._intervals,
            open_intervals=self._collector.open_intervals(),
            now_ms=self._newest_ms,
            n_genres=len(self._genres),
            is_harmful=self._is_harmful,
        )
        self._judge_lags(judgement)
        now_ms = self._clock()
        self._since = {found.name: self._since.get(found.name, now_ms) for found in judgement.findings}
        return HealthVerdict(
            at_unix_ms=now_ms,
            journal_ms=self._newest_ms,
            alarms=[
                HealthAlarm(
                    name=found.name,
                    level=found.level,
                    since_unix_ms=self._since[found.name],
                    value=found.value,
                    limit=found.limit,
                    reason=found.reason,
                )
                for found in judgement.findings
            ],
            values=judgement.values,
            model_versions=dict(self._versions_before),
        )

    def save(self) -> None:
        """Write what was counted.

        Raises:
            OSError: the file could not be written.
        """
        state = HealthState(
            resume_ms=self._collector.resume_ms,
            intervals=self._intervals,
            unfinished=self._collector.unfinished,
            since_unix_ms=self._since,
        )
        self._state_path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._state_path.with_suffix(".partial")
        partial.write_bytes(encode(state))
        partial.rename(self._state_path)

    def _load_state(self) -> HealthState:
        try:
            return msgspec.msgpack.decode(self._state_path.read_bytes(), type=HealthState)
        except FileNotFoundError:
            pass
        except (msgspec.MsgspecError, OSError) as error:
            _log.error("health.state_unreadable", path=str(self._state_path), error=str(error))
        return HealthState(resume_ms=0, intervals=[], unfinished=None, since_unix_ms={})

    def _build_collector(self, state: HealthState) -> IntervalCollector:
        policies = [surface.reward for surface in self._config.surfaces.values()]
        return IntervalCollector(
            interval_ms=int(self._config.health.interval_s * 1000),
            min_slots=self._config.health.min_slots,
            session_gap_ms=int(self._config.features.session_gap_s * 1000),
            negative_ms=int(max((policy.negative_window_s for policy in policies), default=60.0) * 1000),
            from_ms=state.resume_ms,
            unfinished=state.unfinished,
        )

    def _keep(self, closed: list[Interval]) -> None:
        """Add closed intervals, forget what is too old, and write down what was counted."""
        if not closed:
            return
        health = self._config.health
        for interval in closed:
            interval.weight_norms = dict(self._norms)
        self._intervals += closed
        for interval in self._intervals[: -health.window][-len(closed) :]:
            interval.items = {}
        del self._intervals[: -(health.window + health.reference)]
        try:
            self.save()
        except OSError as error:
            # A watch that starts again would count the journal from an older state; this one goes on.
            _log.error("health.unsaved", path=str(self._state_path), error=str(error))

    def _apply(self, position: Position, payload: bytes) -> list[Interval]:
        try:
            entry = _entry_decoder.decode(payload)
        except msgspec.MsgspecError as error:
            # The learner counts it; here it only moves time.
            _log.error("health.unreadable", position=position, error=str(error))
            return self._collector.advance(position)
        if isinstance(entry, WatchedDecision):
            shown = self._shown(entry)
            return self._collector.advance(position) if shown is None else self._collector.add_decision(position, shown)
        if isinstance(entry, Event):
            return self._collector.add_event(
                position,
                join_event(entry),
                is_reward=any(self._worths(entry.event_type, entry.value)),
                is_feedback=entry.event_type in self._config.health.feedback,
            )
        return self._collector.advance(position)

    def _shown(self, decision: WatchedDecision) -> Shown | None:
        surface = self._config.surfaces.get(decision.surface)
        if surface is None:
            return None
        # A policy with a declared rate has a greedy branch; of the others, what is not a best action is explored.
        by_branch = decision.exploration.explore_rate is not None
        slots = [
            ShownSlot(
                item_id=slot.item_id,
                is_explored=slot.branch != "greedy" if by_branch else slot.reason == "explore",
                is_uniform=slot.branch == "uniform",
                is_placed=slot.reason in _PLACED,
                genres=_values_of(self._genre, slot.features.get("item", {})) if self._genre else (),
            )
            for slot in decision.slots
        ]
        values = {f.name: "|".join(_values_of(f, decision.features.get(f.namespace, {}))) for f in self._drift}
        return Shown(
            event_id=decision.event_id,
            user_key=decision.user_key,
            policy=surface.reward,
            slots=slots,
            values={name: value or "(none)" for name, value in values.items()},
            decided_at_ms=decision.decided_at_unix_ms,
        )

    def _worths(self, event_type: str, value: float) -> list[bool]:
        """Return for each surface whether an event of a type is a reward there."""
        return [s.reward.reward(event_type, value) is not None for s in self._config.surfaces.values()]

    def _is_harmful(self, event_type: str) -> bool:
        worths = [s.reward.reward(event_type, 1.0) for s in self._config.surfaces.values()]
        return any(worth is not None and worth < 0.0 for worth in worths)

    async def _read_items(self) -> None:
        """Learn which genres the catalogue has; one that is gone counts until the watch starts again."""
        if self._genre is None:
            return
        async for change in read_stream(self._log, ITEMS_STREAM, after=self._items_read_to):
            self._items_read_to = change.entry_id
            try:
                item = item_change_decoder.decode(change.payload)
                if isinstance(item, ItemUpsert):
                    named = self._genre.encode(self._genre.value_in(item_record(item.item)))
                    self._genres.update(_values_of(self._genre, named))
            except (msgspec.MsgspecError, ValueError) as error:
                _log.error("health.item_unreadable", entry_id=change.entry_id, error=str(error))

    async def _look(self) -> None:
        """See how far the others are: what they have read, norms of the weights, versions that workers should have."""
        if not self._ends or self._ends[-1][1] < self._newest_ms:
            self._ends.append((self._clock(), self._newest_ms))
        self._lags["archiver"] = self._lag(map(self._archived, range(self._journal.n_partitions)), slack_s=0.0)
        self._versions_before, self._versions = self._versions, {}
        for model, settings in self._config.models.items():
            progress = await self._models.load_progress(model)
            positions = progress.positions.values() if progress else ()
            # An explorer's checkpoint is of the last multiple of this on journal time, however long the journal rests.
            self._lags[f"learner:{model}"] = self._lag(positions, slack_s=settings.checkpoint_s)
            newest = await self._models.last_delta(model)
            if newest is not None:
                self._versions[model] = _delta_decoder.decode(newest[1]).version
            if progress and progress.weight_norm:
                self._norms[model] = progress.weight_norm

    def _lag(self, positions: Iterable[str], *, slack_s: float) -> float:
        """Return for how many seconds the journal has been past what was read up to given ids."""
        applied_ms = max((entry_order(position)[0] for position in positions), default=0) + slack_s * 1000
        behind_since_ms = next((at_ms for at_ms, end_ms in self._ends if end_ms > applied_ms), None)
        return 0.0 if behind_since_ms is None else (self._clock() - behind_since_ms) / 1000

    def _judge_lags(self, judgement: Judgement) -> None:
        health = self._config.health
        for reader, lag_s in self._lags.items():
            kind, _, model = reader.partition(":")
            limit = health.learner_lag_s if model else health.archiver_lag_s + self._config.archive.flush_s
            name = f"{kind}_lag:{model}" if model else f"{kind}_lag"
            judgement.values[name] = lag_s
            if lag_s > limit:
                reason = f"the {kind} has been behind the journal for {lag_s:.0f} s: it is down, stuck or too slow"
                judgement.add(name, level="alarm", value=lag_s, limit=limit, reason=reason)


def _feature(config: Config, name: str, namespaces: set[str]) -> Feature | None:
    declared = (f for f in config.features.features if f.namespace in namespaces and f.name == name)
    return next(declared, None)


def _values_of(feature: Feature, named: Mapping[str, float]) -> list[str]:
    """Return the values of one feature among the named features of its namespace."""
    prefix = f"{feature.name}="
    return [name.removeprefix(prefix) for name in named if name.startswith(prefix)]
