"""The production use cases of one worker, one learner and one archiver on memory adapters, under simulated time.

Nothing here decides, learns or logs by itself: it makes the parts, moves the clock and gives each its turn, in an order
that depends on simulated time alone. So a run repeats bit for bit.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from bandit.explorer import ExplorerSpec
from bandit.learner import Learner
from retrieval.catalogue import Catalogue
from retrieval.items import Item
from service.adapters.memory_store import MemoryChangeLog, MemoryJournal, MemoryModelStore, MemoryUserStates
from service.adapters.memory_streams import MemoryStore
from service.adapters.parquet_archive import ParquetArchive
from service.archive import Archiver
from service.catalogue_writer import CatalogueWriter
from service.config import Config, explorer_of
from service.count_items import ItemCounting
from service.due import is_due
from service.feedback import Feedback
from service.follow import Follower
from service.impressions import ImpressionWriter
from service.items_view import ItemsView
from service.learn import LearnerLoop
from service.learn_explorer import ExplorerLoop
from service.live_config import LiveConfig
from service.messages import Checkpoint, Heartbeat, ModelSnapshot, encode
from service.metrics import Metrics
from service.recommend import Recommender
from service.retriever import Retriever
from service.rule_columns import AttributeColumns, attribute_kinds
from service.served_explorer import ServedExplorer
from service.served_model import ServedModel
from service.spool import Spool
from service.wire import EventBody, RecommendRequest, RecommendResponse
from simulators.loop_config import MODEL, SURFACE, Training
from simulators.loop_vectors import Click, LoopVectors

_RANKING_MS = 500
_TRIM_MS = 60_000
# What an archiver reads in one step.
_ARCHIVER_BATCH = 1_000


async def _passes(spec: ExplorerSpec, model_bytes: bytes) -> bool:
    """Let an explorer be published untried: the one worker that there is loads it at once, in this very process."""
    return True


class LoopService:
    """One whole service in this process.

    Args:
        config: as a real service reads it.
        salt: of randomness and user keys.
        start_ms: unix milliseconds at which simulated time begins.
        spool_folder: where the spool's file is; trained vectors are kept beside it.
        archive_folder: where the log is written as the production archive; None for nowhere.
        frozen: model to serve without learning; None learns from nothing.
        training: of item vectors; None for a service without.
        before: clicks of the time before, for the first training.
    """

    def __init__(
        self,
        config: Config,
        *,
        salt: bytes,
        start_ms: int,
        spool_folder: Path,
        archive_folder: Path | None,
        frozen: ModelSnapshot | None,
        training: Training | None = None,
        before: Iterable[Click] = (),
    ) -> None:
        self.now_ms = start_ms
        self._config = config
        store = MemoryStore(self._clock)
        metrics = Metrics()
        log, users = MemoryChangeLog(store), MemoryUserStates(store, config.store)
        self._journal = MemoryJournal(store, n_partitions=config.store.partitions)
        self._models = MemoryModelStore(store)
        self.items = ItemsView(config.features, Retriever(Catalogue(), None), AttributeColumns(attribute_kinds(config)))
        self._served = ServedModel(MODEL, config.model_spec(MODEL), metrics)
        explorer = explorer_of(config.surfaces[SURFACE])
        explorers = {explorer: ServedExplorer(explorer, config.explorer_spec(explorer), metrics)} if explorer else {}
        self._frozen = frozen
        live = LiveConfig(config)
        self._spool = Spool(
            spool_folder, self._journal, metrics, on_shipped=ImpressionWriter(users, metrics).add_shipped
        )
        self._recommender = Recommender(
            live=live,
            items=self.items,
            models={MODEL: self._served},
            explorers=explorers,
            users=users,
            journal=self._journal,
            spool=self._spool,
            metrics=metrics,
            clock=self._clock,
            salt=salt,
            new_event_id=lambda now_ms: self._event_id,
            # Latencies are part of the log, and the log is to repeat.
            timer=lambda: 0.0,
        )
        self._event_id = ""
        self._feedback = Feedback(
            config=config,
            users=users,
            journal=self._journal,
            spool=self._spool,
            metrics=metrics,
            clock=self._clock,
            salt=salt,
        )
        self._writer = CatalogueWriter(schema=config.features, log=log, users=users, clock=self._clock)
        self._follower = Follower(
            log=log,
            models=self._models,
            items=self.items,
            served={MODEL: self._served, **explorers},
            live=live,
            metrics=metrics,
        )
        self._explorer_learner: ExplorerLoop | None = None
        if explorer:
            self._explorer_learner = ExplorerLoop(
                config=config,
                model=explorer,
                journal=self._journal,
                models=self._models,
                users=users,
                metrics=metrics,
                clock=self._clock,
                check=_passes,
            )
        self._learner = LearnerLoop(
            config=config,
            model=MODEL,
            journal=self._journal,
            models=self._models,
            users=users,
            metrics=metrics,
            clock=self._clock,
            counting=ItemCounting(config=config, log=log),
        )
        self._archiver: Archiver | None = None
        if archive_folder is not None:
            self._archiver = Archiver(
                config=config,
                journal=self._journal,
                models=self._models,
                archive=ParquetArchive(archive_folder),
                metrics=metrics,
                clock=self._clock,
            )
        self._vectors: LoopVectors | None = None
        if training is not None:
            self._vectors = LoopVectors(
                training,
                before=before,
                folder=spool_folder.with_name("index"),
                items=self.items,
                metrics=metrics,
                clock=self._clock,
                again=frozen is None,
            )
        self._n_written = self._n_learned = self._n_explorer_learned = self._n_archived = 0
        self._ranked: tuple[str, ...] = ()
        self._ranked_at_ms = self._trimmed_at_ms = start_ms

    def _clock(self) -> int:
        return self.now_ms

    async def start(self) -> None:
        """Start learner, follower and spool."""
        if self._frozen is None:
            await self._learner.start()
            if self._explorer_learner is not None:
                await self._explorer_learner.start()
        else:
            self._served.serve(self._served.build(self._frozen))
        self._spool.start()
        await self._follower.catch_up()

    async def close(self) -> None:
        """Ship the spool and remove it."""
        await self._spool.close()

    async def put_items(self, items: Sequence[Item], *, deleted: Sequence[str] = ()) -> None:
        """Change the catalogue; the next request sees it."""
        await self._writer.put_items(items)
        for item_id in deleted:
            await self._writer.delete_item(item_id)
        await self._follower.apply_waiting()

    async def train(self) -> None:
        """Train the first vectors, of the items that are there."""
        if self._vectors is not None:
            await self._vectors.train()

    async def recommend(self, request: RecommendRequest, *, event_id: str) -> RecommendResponse:
        """Answer a request under an id of the simulation's."""
        self._event_id = event_id
        response = await self._recommender.recommend(request)
        self._n_written += 1
        return response

    async def report(self, events: Sequence[EventBody]) -> None:
        """Take events, which come after what they are about has been shipped."""
        await self._ship()
        if events:
            self._n_written += (await self._feedback.accept(events)).accepted
            if self._vectors is not None:
                self._vectors.note(events)

    async def turn(self) -> None:
        """Let everything that runs beside requests do what there is to do now."""
        await self._ship()
        if self._frozen is None:
            while self._n_learned < self._n_written:
                self._n_learned += await self._learner.step()
            while self._explorer_learner is not None and self._n_explorer_learned < self._n_written:
                self._n_explorer_learned += await self._explorer_learner.step()
            await self._follower.apply_waiting()
        if self._archiver is not None:
            while self._n_written - self._n_archived >= _ARCHIVER_BATCH:
                await self._archiver.step()
                self._n_archived += _ARCHIVER_BATCH
        if self._vectors is not None:
            await self._vectors.train_if_due()
        self._rank()
        if self._archiver is None and is_due(self.now_ms, since_ms=self._trimmed_at_ms, every_ms=_TRIM_MS):
            self._trimmed_at_ms = self.now_ms
            await self._journal.trim(0, f"{self.now_ms}-0")

    async def finish(self) -> None:
        """Close every window, learn and archive what follows."""
        window_ms = math.ceil(1000.0 * max(s.reward.window_s for s in self._config.surfaces.values()))
        await self.turn()
        self.now_ms += 2 * window_ms
        await self._journal.append(0, [encode(Heartbeat(at_unix_ms=self.now_ms))])
        self._n_written += 1
        await self.turn()
        if self._archiver is not None:
            while self._n_archived < self._n_written:
                await self._archiver.step()
                self._n_archived += _ARCHIVER_BATCH
            await self._archiver.flush()

    async def _ship(self) -> None:
        while self._spool.n_waiting:  # noqa: ASYNC110 - nobody tells when the last one is shipped
            await asyncio.sleep(0)

    async def snapshot(self) -> ModelSnapshot:
        """Return the model as it was learned so far, to serve `frozen`."""
        if self._frozen is not None:
            return self._frozen
        await self._learner.save()
        stored = await self._models.load_checkpoint(MODEL)
        assert stored is not None
        checkpoint = msgspec.msgpack.decode(stored, type=Checkpoint)
        spec = self._config.model_spec(MODEL)
        weights = Learner(spec, checkpoint.workspace).all_weights()
        return ModelSnapshot(
            epoch=checkpoint.epoch,
            version=checkpoint.model_version,
            stream_id="0-0",
            schema_version=checkpoint.schema_version,
            bits=spec.bits,
            arguments=spec.arguments(),
            indices=weights.indices.astype("<u4").tobytes(),
            values=weights.values.astype("<f4").tobytes(),
        )

    def _rank(self) -> None:
        """Rank the catalogue again when it has changed, as a worker does."""
        state = self.items.ranked_state
        if state != self._ranked and is_due(self.now_ms, since_ms=self._ranked_at_ms, every_ms=_RANKING_MS):
            self.items.retriever.rankings = self.items.build_rankings(self.now_ms)
            self._ranked, self._ranked_at_ms = state, self.now_ms
