"""Follow the streams that every API worker applies: items, their statistics, weight deltas and configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import msgspec
import structlog

from service.config import ConfigError
from service.errors import StoreUnavailable
from service.failpoints import reach
from service.item_pairs import ITEM_PAIRS_STREAM
from service.item_statistics import ITEM_STATS_STREAM
from service.items_view import ITEMS_STREAM, ItemsView
from service.journal_reader import entry_order
from service.live_config import CONFIG_STREAM, LiveConfig
from service.messages import (
    ConfigOverride,
    ModelSnapshot,
    WeightDelta,
    item_change_decoder,
    item_pairs_decoder,
    item_stats_decoder,
)
from service.metrics import Metrics
from service.ports import ChangeLog, Entry, ModelStore
from service.turns import Turns

_BATCH = 1_000
_BLOCK_MS = 1_000
_RETRY_S = 0.2
# Vectors moved between two looks at the streams.
_MOVE_STEPS = 4

# While a snapshot is loaded its stream is not read; the others are looked after so often.
_LOADING_BLOCK_MS = 20
# A snapshot that did not help is loaded again after so long, and twice as long each time.
_FIRST_RELOAD_S, _LAST_RELOAD_S = 0.1, 5.0

_log = structlog.get_logger("hone.follow")


class SnapshotView(ModelSnapshot, frozen=True, kw_only=True):
    """A snapshot whose arrays are views of what was read: copying them would hold the interpreter."""

    indices: memoryview  # type: ignore[assignment] # read only
    values: memoryview  # type: ignore[assignment] # read only
    workspace: memoryview = memoryview(b"")  # type: ignore[assignment] # read only


_override_decoder = msgspec.msgpack.Decoder(ConfigOverride)
_delta_decoder = msgspec.msgpack.Decoder(WeightDelta)
_snapshot_decoder = msgspec.msgpack.Decoder(SnapshotView)

Built = TypeVar("Built")


class Followed(Protocol[Built]):
    """A model that is kept up to date."""

    name: str

    @property
    def version(self) -> int:
        """Return the version that is served."""

    def build(self, snapshot: ModelSnapshot) -> Built:
        """Return what a snapshot is served from, in any thread."""

    def serve(self, built: Built) -> None:
        """Serve it from now on."""

    def apply(self, delta: WeightDelta) -> bool:
        """Apply a change; False when the snapshot is needed."""


class Follower:
    """Keeps one worker's view of items and models up to date."""

    def __init__(
        self,
        *,
        log: ChangeLog,
        models: ModelStore,
        items: ItemsView,
        served: Mapping[str, Followed[Any]],
        live: LiveConfig,
        metrics: Metrics,
    ) -> None:
        self._log = log
        self._models = models
        self._items = items
        self._live = live
        self._served = {models.weights_stream(name): model for name, model in served.items()}
        self._after = {
            ITEMS_STREAM: items.position,
            ITEM_STATS_STREAM: items.statistics.position,
            ITEM_PAIRS_STREAM: items.pairs.position,
            CONFIG_STREAM: "0-0",
            **dict.fromkeys(self._served, "0-0"),
        }
        self._metrics = metrics
        self._applied = asyncio.Condition()
        self._loads: dict[str, asyncio.Task[None]] = {}
        # Snapshots loaded since the last delta that could be applied, by stream.
        self._n_loads: dict[str, int] = {}

    async def catch_up(self) -> None:
        """Load snapshots and read every stream to its present end; a worker serves after this."""
        for stream in self._served:
            await self._load_snapshot(stream, otherwise="0-0")
        self._n_loads.clear()
        await self.apply_waiting()

    async def apply_waiting(self) -> None:
        """Apply what is in the streams now, and return at their present end; not while `run` follows them."""
        while await self._read(block_ms=0):
            pass

    async def run(self) -> None:
        """Follow for ever; failed reads are counted and tried again."""
        try:
            while True:
                try:
                    await self._read(block_ms=_BLOCK_MS)
                except StoreUnavailable as error:
                    self._metrics.follower_retries.inc()
                    _log.warning("follow.retry", error=str(error))
                    await asyncio.sleep(_RETRY_S)
        finally:
            for task in self._loads.values():
                task.cancel()

    async def apply_own(self, entry_id: str) -> None:
        """Return once the items stream was applied up to an entry, so that the writer's own worker shows it at once."""
        async with self._applied:
            await self._applied.wait_for(lambda: entry_order(self._items.position) >= entry_order(entry_id))

    async def _read(self, *, block_ms: int) -> int:
        """Apply what came and return the number of entries, those of a model that waits for its snapshot left out.

        Without `block_ms`, wait for snapshots too, but for none that has to be loaded again.
        """
        after = {stream: entry_id for stream, entry_id in self._after.items() if stream not in self._loads}
        block_ms = min(block_ms, _LOADING_BLOCK_MS) if self._loads else block_ms
        # The store is asked whether more came, and is not waited for.
        block_ms = min(block_ms, 1) if self._items.n_moves else block_ms
        entries = await self._log.read(after, count=_BATCH, block_ms=block_ms)
        turns = Turns()
        for entry in entries:
            # A new item may cost milliseconds of index: requests must not wait for a whole batch of them.
            await turns.rest_if_due()
            if entry.stream == ITEMS_STREAM:
                self._apply_item(entry)
                self._after[entry.stream] = entry.entry_id
            elif entry.stream == ITEM_STATS_STREAM:
                self._apply_statistics(entry)
                self._after[entry.stream] = entry.entry_id
            elif entry.stream == ITEM_PAIRS_STREAM:
                self._apply_pairs(entry)
                self._after[entry.stream] = entry.entry_id
            elif entry.stream == CONFIG_STREAM:
                self._apply_override(entry)
                self._after[entry.stream] = entry.entry_id
            elif entry.stream not in self._loads:
                self._apply_delta(entry)
        self._metrics.catalogue_items.set(len(self._items.catalogue))
        async with self._applied:
            self._applied.notify_all()
        for _ in range(_MOVE_STEPS):
            if not self._items.n_moves:
                break
            await turns.rest_if_due()
            self._metrics.item_vectors_moved.inc(self._items.move_step())
        waiting = self._loads.keys() & self._n_loads.keys()
        awaited = [task for stream, task in self._loads.items() if stream not in waiting]
        if awaited and not block_ms:
            await asyncio.wait(awaited)
        for stream in [stream for stream, task in self._loads.items() if task.done()]:
            self._loads.pop(stream).result()
        return sum(entry.stream not in waiting for entry in entries)

    def _apply_delta(self, entry: Entry) -> None:
        stream = entry.stream
        reach("follower.delta")
        if self._served[stream].apply(_delta_decoder.decode(entry.payload)):
            self._after[stream] = entry.entry_id
            self._n_loads.pop(stream, None)
            return
        # Past this delta only with the snapshot: if it does not come, the delta is read again.
        delay_s = 0.0
        if n_loads := self._n_loads.get(stream):
            self._metrics.model_snapshots_stale.inc()
            delay_s = min(_FIRST_RELOAD_S * 2 ** (n_loads - 1), _LAST_RELOAD_S)
        self._loads[stream] = asyncio.create_task(
            self._load_snapshot(stream, otherwise=entry.entry_id, delay_s=delay_s)
        )

    def _apply_item(self, entry: Entry) -> None:
        reach("follower.item")
        try:
            self._items.apply(entry.entry_id, item_change_decoder.decode(entry.payload))
        except (msgspec.MsgspecError, ValueError) as error:
            # Refused at the door by every worker of this version; an older or newer one may have written it.
            _log.error("follow.item_refused", entry_id=entry.entry_id, error=str(error))

    def _apply_statistics(self, entry: Entry) -> None:
        try:
            if not self._items.statistics.apply(entry.entry_id, item_stats_decoder.decode(entry.payload)):
                _log.warning("follow.replaced_learner", entry_id=entry.entry_id)
        except (msgspec.MsgspecError, ValueError) as error:
            _log.error("follow.statistics_refused", entry_id=entry.entry_id, error=str(error))

    def _apply_pairs(self, entry: Entry) -> None:
        try:
            if not self._items.pairs.apply(entry.entry_id, item_pairs_decoder.decode(entry.payload)):
                _log.warning("follow.replaced_learner", entry_id=entry.entry_id)
        except (msgspec.MsgspecError, ValueError) as error:
            _log.error("follow.pairs_refused", entry_id=entry.entry_id, error=str(error))

    def _apply_override(self, entry: Entry) -> None:
        try:
            self._live.apply(_override_decoder.decode(entry.payload))
        except (msgspec.MsgspecError, ConfigError) as error:
            # Checked when it was set; since then the file may have changed. What is effective stays so.
            self._metrics.overrides_refused.inc()
            _log.error("follow.override_refused", entry_id=entry.entry_id, error=str(error))

    async def _load_snapshot(self, stream: str, *, otherwise: str, delay_s: float = 0.0) -> None:
        """Serve the snapshot and read on from it; without one, read on from `otherwise`."""
        if delay_s:
            await asyncio.sleep(delay_s)
        model = self._served[stream]
        reach("follower.snapshot")
        stored = await self._models.load_snapshot(model.name)
        if stored is None:
            self._after[stream] = otherwise
            return
        self._n_loads[stream] = self._n_loads.get(stream, 0) + 1
        snapshot = _snapshot_decoder.decode(stored)
        if snapshot.version <= model.version:
            # It would take back what is served; the delta that asked for it is read again.
            _log.warning("follow.stale_snapshot", model=model.name, version=snapshot.version, served=model.version)
            return
        built = await asyncio.to_thread(model.build, snapshot)
        reach("follower.serve")
        model.serve(built)
        self._after[stream] = snapshot.stream_id
        _log.info("follow.snapshot", model=model.name, version=snapshot.version)
