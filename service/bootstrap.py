"""Wire the service: every dependency made in one place and passed on."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog
from redis.asyncio import Redis
from threadpoolctl import threadpool_limits

from retrieval.bundle import load_bundle
from retrieval.catalogue import Catalogue
from service.adapters.child_check import check_in_child
from service.adapters.embedded_store import store_url
from service.adapters.parquet_archive import ParquetArchive, archived_position
from service.adapters.redis_store import (
    RedisChangeLog,
    RedisHealthBoard,
    RedisJournal,
    RedisModelStore,
    RedisUserStates,
    connect,
)
from service.archive import Archiver
from service.canary import Canaries, CanaryWatch
from service.catalogue_writer import CatalogueWriter
from service.config import Config, explorer_of
from service.config_writer import ConfigWriter
from service.count_items import ItemCounting, counting_model
from service.due import is_due
from service.durable_files import sync_folder, write_synced
from service.explain import Explainer
from service.feedback import Feedback
from service.follow import Follower
from service.health import HealthWatch
from service.health_report import HealthDesk
from service.impressions import ImpressionWriter
from service.index_swap import IndexSwap
from service.items_view import ItemsView
from service.learn import LearnerLoop
from service.learn_explorer import ExplorerLoop
from service.live_config import LiveConfig
from service.metrics import Metrics
from service.ports import UserStates
from service.recommend import Recommender
from service.retriever import Retriever
from service.rule_columns import AttributeColumns, attribute_kinds
from service.served_explorer import ServedExplorer
from service.served_model import ServedModel
from service.spool import Spool

# Writes and blocking reads may take longer than a request is allowed to wait.
_WRITE_TIMEOUT_S = 5.0
# Rankings of the catalogue follow its changes after this long, and time itself (ages, decay) after a minute.
_RANKING_S = 0.5
_RANKING_MAX_AGE_MS = 60_000

_log = structlog.get_logger("hone.bootstrap")


def wall_clock_ms() -> int:
    """Return unix milliseconds."""
    return time.time_ns() // 1_000_000


def load_salt(config: Config) -> bytes:
    """Return the configured salt, or the one of the data folder, made at first use."""
    if config.salt:
        return config.salt.encode()
    path = config.data_path / "salt"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Link a complete file into place, so that processes that start together agree on one salt.
    fresh = path.with_name(f"salt.{os.getpid()}")
    fresh.touch(0o600)
    # A salt that a power loss emptied would change every user key.
    write_synced(fresh, secrets.token_hex(16).encode("ascii"))
    with suppress(FileExistsError):
        os.link(fresh, path)
    sync_folder(path.parent)
    fresh.unlink()
    return path.read_text(encoding="ascii").encode()


def load_retriever(config: Config) -> Retriever:
    """Return a retriever on the current bundle, or one without vectors when none was built yet.

    Raises:
        BundleError: the current bundle is damaged.
    """
    root = index_root(config)
    if not (root / "current").exists():
        _log.warning("bootstrap.no_index", hint="hone index build makes one; popular, fresh and random still work")
        return Retriever(Catalogue(), None)
    key = config.artefact_key.encode() or None
    return Retriever(Catalogue(), load_bundle(root, hmac_key=key))


def index_root(config: Config) -> Path:
    """Return the folder of the bundles."""
    return config.data_path / "index"


@dataclass(slots=True)
class Worker:
    """One API worker: its use cases and what keeps them current."""

    config: Config
    live: LiveConfig
    metrics: Metrics
    items: ItemsView
    models: dict[str, ServedModel]
    recommender: Recommender
    feedback: Feedback
    explainer: Explainer
    writer: CatalogueWriter
    health: HealthDesk
    follower: Follower
    index_swap: IndexSwap
    users: UserStates
    spool: Spool
    _clients: list[object]
    # What runs beside requests for as long as the worker does.
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _is_closing: bool = False

    async def start(self) -> None:
        """Catch up with the streams, drain leftover spools, and follow."""
        await self.follower.catch_up()
        shipping = self.spool.start()
        self.items.retriever.rankings = self.items.build_rankings(wall_clock_ms())
        self._tasks = [
            shipping,
            asyncio.create_task(self.follower.run(), name="follower"),
            asyncio.create_task(self._rank(), name="rankings"),
            asyncio.create_task(self.index_swap.run(), name="index"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._tell_of_end)

    @property
    def is_following(self) -> bool:
        """Return whether streams are applied, the catalogue ranked, the current index served and the spool shipped."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    def _tell_of_end(self, task: asyncio.Task[None]) -> None:
        """Log and count a task that ended while the worker runs, or by an error; `/readyz` is 503 from then on."""
        error = None if task.cancelled() else task.exception()
        if error is None and self._is_closing:
            return
        self.metrics.tasks_stopped.labels(task.get_name()).inc()
        _log.error("worker.task_stopped", task=task.get_name(), error=str(error or "it just ended"), exc_info=error)

    async def _rank(self) -> None:
        """Rank the catalogue again, in a thread, when it has changed or a while has passed."""
        ranked, ranked_at_ms = self.items.ranked_state, wall_clock_ms()
        while True:
            await asyncio.sleep(_RANKING_S)
            state, now_ms = self.items.ranked_state, wall_clock_ms()
            if state != ranked or is_due(now_ms, since_ms=ranked_at_ms, every_ms=_RANKING_MAX_AGE_MS):
                retriever = self.items.retriever
                retriever.rankings = await asyncio.to_thread(self.items.build_rankings, now_ms, retriever)
                ranked, ranked_at_ms = state, now_ms

    async def close(self) -> None:
        """Ship the spool and close connections."""
        self._is_closing = True
        # The spool ends by itself, when all is shipped.
        for task in self._tasks[1:]:
            task.cancel()
        if self._tasks[1:]:
            await asyncio.wait(self._tasks[1:])
        await self.spool.close()
        for client in self._clients:
            await client.aclose()  # type: ignore[attr-defined]


def build_worker(config: Config) -> Worker:
    """Wire one API worker on the configured store."""
    # A product split over threads waits for the slower core: on a busy machine 20 ms instead of 0.3.
    threadpool_limits(1, "blas")
    metrics = Metrics()
    salt = load_salt(config)
    url = store_url(config)
    fast = connect(url, timeout_s=config.store.timeout_s)
    # A failing pipeline closes its connections: stream writes have a client of their own, and so have blocking reads.
    writes = connect(url, timeout_s=_WRITE_TIMEOUT_S)
    reads = connect(url, timeout_s=None)
    journal = RedisJournal(writes, n_partitions=config.store.partitions)
    # Only a request that waits for a slate must do without a user whom the store is slow to give.
    users, patient_users = RedisUserStates(fast, config.store), RedisUserStates(writes, config.store)
    items = ItemsView(config.features, load_retriever(config), AttributeColumns(attribute_kinds(config)))
    live = LiveConfig(config)
    served = {name: ServedModel(name, config.model_spec(name), metrics) for name in config.ranking_models}
    explorer_names = {explorer_of(surface) for surface in config.surfaces.values()} - {""}
    explorers = {name: ServedExplorer(name, config.explorer_spec(name), metrics) for name in sorted(explorer_names)}
    shown = ImpressionWriter(patient_users, metrics)
    spool = Spool(config.data_path / "spool", journal, metrics, on_shipped=shown.add_shipped)
    return Worker(
        config=config,
        live=live,
        metrics=metrics,
        items=items,
        models=served,
        recommender=Recommender(
            live=live,
            items=items,
            models=served,
            explorers=explorers,
            users=users,
            journal=journal,
            spool=spool,
            metrics=metrics,
            clock=wall_clock_ms,
            salt=salt,
        ),
        feedback=Feedback(
            config=config,
            users=users,
            journal=journal,
            spool=spool,
            metrics=metrics,
            clock=wall_clock_ms,
            salt=salt,
        ),
        explainer=Explainer(config=config, journal=journal, models=RedisModelStore(writes), log=RedisChangeLog(writes)),
        writer=CatalogueWriter(
            schema=config.features,
            log=RedisChangeLog(writes),
            users=patient_users,
            clock=wall_clock_ms,
        ),
        health=HealthDesk(
            board=RedisHealthBoard(fast),
            served={**served, **explorers},
            n_items=lambda: len(items.catalogue),
            metrics=metrics,
            clock=wall_clock_ms,
        ),
        follower=Follower(
            log=RedisChangeLog(reads),
            models=RedisModelStore(reads),
            items=items,
            served={**served, **explorers},
            live=live,
            metrics=metrics,
        ),
        index_swap=IndexSwap(
            index_root(config),
            hmac_key=config.artefact_key.encode() or None,
            items=items,
            metrics=metrics,
            clock=wall_clock_ms,
        ),
        users=patient_users,
        spool=spool,
        _clients=[fast, writes, reads],
    )


def writing_client(config: Config) -> Redis:
    """Return a client of the configured store for a process that answers no requests."""
    return connect(store_url(config), timeout_s=_WRITE_TIMEOUT_S)


def build_learner(config: Config, model: str, metrics: Metrics, client: Redis) -> LearnerLoop | ExplorerLoop:
    """Wire the learner of one model; that of the first model that ranks counts the items of all."""
    if config.models[model].arguments:
        return ExplorerLoop(
            config=config,
            model=model,
            journal=RedisJournal(client, n_partitions=config.store.partitions),
            models=RedisModelStore(client),
            users=RedisUserStates(client, config.store),
            metrics=metrics,
            clock=wall_clock_ms,
            check=check_in_child,
        )
    return LearnerLoop(
        config=config,
        model=model,
        journal=RedisJournal(client, n_partitions=config.store.partitions),
        models=RedisModelStore(client),
        users=RedisUserStates(client, config.store),
        metrics=metrics,
        clock=wall_clock_ms,
        counting=ItemCounting(config=config, log=RedisChangeLog(client)) if model == counting_model(config) else None,
    )


def build_archiver(config: Config, metrics: Metrics) -> Archiver:
    """Wire the archiver."""
    client = writing_client(config)
    return Archiver(
        config=config,
        journal=RedisJournal(client, n_partitions=config.store.partitions),
        models=RedisModelStore(client),
        archive=ParquetArchive(config.data_path / "archive"),
        metrics=metrics,
        clock=wall_clock_ms,
    )


def build_canary_watch(config: Config) -> CanaryWatch:
    """Wire the watch of canaries."""
    client = writing_client(config)
    models, log = RedisModelStore(client), RedisChangeLog(client)
    journal = RedisJournal(client, n_partitions=config.store.partitions)
    writer = ConfigWriter(config, log=log, journal=journal, clock=wall_clock_ms)
    canaries = Canaries(config, folder=config.data_path / "archive", models=models, writer=writer)
    return CanaryWatch(canaries, clock=wall_clock_ms)


def build_health_watch(config: Config) -> HealthWatch:
    """Wire the health watch."""
    client = connect(store_url(config), timeout_s=_WRITE_TIMEOUT_S)
    return HealthWatch(
        config=config,
        journal=RedisJournal(client, n_partitions=config.store.partitions),
        log=RedisChangeLog(client),
        models=RedisModelStore(client),
        board=RedisHealthBoard(client),
        archived=partial(archived_position, config.data_path / "archive"),
        state_path=config.data_path / "health" / "state.msgpack",
        clock=wall_clock_ms,
    )
