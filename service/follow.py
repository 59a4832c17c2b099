"""Follow the streams that every API worker applies: items, their statistics, weight deltas and configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

import msgspec
import structlog

from service.config import ConfigError
from service.errors import StoreUnavailable
from service.item_statistics import ITEM_STATS_STREAM
from service.items_view import ITEMS_STREAM, ItemsView
from service.journal_reader import entry_order
from service.live_config import CONFIG_STREAM, LiveConfig
from service.messages import ConfigOverride, ModelSnapshot, WeightDelta, item_change_decoder, item_stats_decoder
from service.metrics import Metrics
from service.ports import ChangeLog, Entry, ModelStore

_BATCH = 1_000
_BLOCK_MS = 1_000
_RETRY_S = 0.2
# Entries are applied for so long before requests get a turn.
_TURN_S = 0.002

_log = structlog.get_logger("hone.follow")
_override_decoder = msgspec.msgpack.Decoder(ConfigOverride)
_delta_decoder = msgspec.msgpack.Decoder(WeightDelta)
_snapshot_decoder = msgspec.msgpack.Decoder(ModelSnapshot)


class Followed(Protocol):
    """A model that is kept up to date."""

    name: str

    def load(self, snapshot: ModelSnapshot) -> None:
        """Replace everything."""

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
        served: Mapping[str, Followed],
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
            CONFIG_STREAM: "0-0",
            **dict.fromkeys(self._served, "0-0"),
        }
        self._metrics = metrics
        self._applied = asyncio.Condition()

    async def catch_up(self) -> None:
        """Load snapshots and read every stream to its present end; a worker serves after this."""
        for stream in self._served:
            await self._load_snapshot(stream, otherwise="0-0")
        more = True
        while more:
            more = bool(await self._read(block_ms=0))

    async def run(self) -> None:
        """Follow for ever; failed reads are counted and tried again."""
        while True:
            try:
                await self._read(block_ms=_BLOCK_MS)
            except StoreUnavailable as error:
                self._metrics.follower_retries.inc()
                _log.warning("follow.retry", error=str(error))
                await asyncio.sleep(_RETRY_S)

    async def apply_own(self, entry_id: str) -> None:
        """Return once the items stream was applied up to an entry, so that the writer's own worker shows it at once."""
        async with self._applied:
            await self._applied.wait_for(lambda: entry_order(self._items.position) >= entry_order(entry_id))

    async def _read(self, *, block_ms: int) -> int:
        entries = await self._log.read(self._after, count=_BATCH, block_ms=block_ms)
        loop = asyncio.get_running_loop()
        turn_began_s = loop.time()
        for entry in entries:
            if loop.time() - turn_began_s > _TURN_S:
                # A new item costs milliseconds of index: requests must not wait for a whole batch of them.
                await asyncio.sleep(0)
                turn_began_s = loop.time()
            if entry.stream == ITEMS_STREAM:
                self._apply_item(entry)
                self._after[entry.stream] = entry.entry_id
            elif entry.stream == ITEM_STATS_STREAM:
                self._apply_statistics(entry)
                self._after[entry.stream] = entry.entry_id
            elif entry.stream == CONFIG_STREAM:
                self._apply_override(entry)
                self._after[entry.stream] = entry.entry_id
            elif entry_order(entry.entry_id) > entry_order(self._after[entry.stream]):
                if self._served[entry.stream].apply(_delta_decoder.decode(entry.payload)):
                    self._after[entry.stream] = entry.entry_id
                else:
                    # Past this delta only with the snapshot: if the store is away now, it is read again.
                    await self._load_snapshot(entry.stream, otherwise=entry.entry_id)
        self._metrics.catalogue_items.set(len(self._items.catalogue))
        async with self._applied:
            self._applied.notify_all()
        return len(entries)

    def _apply_item(self, entry: Entry) -> None:
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

    def _apply_override(self, entry: Entry) -> None:
        try:
            self._live.apply(_override_decoder.decode(entry.payload))
        except (msgspec.MsgspecError, ConfigError) as error:
            # Checked when it was set; since then the file may have changed. What is effective stays so.
            self._metrics.overrides_refused.inc()
            _log.error("follow.override_refused", entry_id=entry.entry_id, error=str(error))

    async def _load_snapshot(self, stream: str, *, otherwise: str) -> None:
        """Serve the snapshot and read on from it; without one, read on from `otherwise`."""
        model = self._served[stream]
        stored = await self._models.load_snapshot(model.name)
        if stored is None:
            self._after[stream] = otherwise
            return
        snapshot = _snapshot_decoder.decode(stored)
        model.load(snapshot)
        self._after[stream] = snapshot.stream_id
        _log.info("follow.snapshot", model=model.name, version=snapshot.version)
