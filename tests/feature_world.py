"""A small world on the production use cases: two workers that follow at different lags, a learner, an archiver."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bandit.features import Feature, FeatureSchema
from bandit.rewards import EventReward, RewardPolicy
from bandit.rules import SeenDemotion
from retrieval.catalogue import Catalogue
from retrieval.items import Item
from service.adapters.parquet_archive import ParquetArchive
from service.archive import Archiver
from service.config import ArchiveConfig, Config, ModelConfig, SourceConfig, StoreConfig, SurfaceConfig
from service.count_items import ItemCounting
from service.feature_check import CheckReport, FeatureChecker
from service.feedback import Feedback
from service.follow import Follower
from service.impressions import ImpressionWriter
from service.inspect_log import read_archive
from service.item_history import ItemHistory
from service.items_view import ITEMS_STREAM, ItemsView
from service.learn import LearnerLoop
from service.live_config import LiveConfig
from service.messages import Decision, Heartbeat, ItemDelete, ItemUpsert, UserProfile, encode, item_change_decoder
from service.metrics import Metrics
from service.numerics import keyed_digest
from service.offline_features import OfflineStore
from service.ports import ChangeLog, Journal, ModelStore, UserStates
from service.recommend import Recommender
from service.retriever import Retriever
from service.rule_columns import AttributeColumns
from service.served_model import ServedModel
from service.spool import Spool
from service.wire import EventBody, RecommendRequest, RecommendResponse

SALT = b"salt"
MODEL = "m"
START_MS = 1_795_000_000_000
GENRES = ["Drama", "Crime", "Comedy", "War", "Noir"]
SCHEMA = FeatureSchema(
    features=[
        Feature(name="device", namespace="context", source="device", default="none"),
        Feature(name="hour", namespace="context", source="hour", kind="numeric", edges=[6, 12, 18]),
        Feature(name="taste", namespace="user", source="recent_genres", kind="weighted", limit=5),
        Feature(name="country", namespace="user", source="country"),
        Feature(name="history", namespace="user", source="n_recent", kind="counter", limit=4),
        Feature(name="length", namespace="user", source="session_length", kind="numeric", scale=0.1),
        Feature(name="place", namespace="user", source="session_position", kind="numeric"),
        Feature(name="since_start", namespace="user", source="session_s", kind="recency", first_edge=10.0),
        Feature(name="since_last", namespace="user", source="since_last_s", kind="recency", window_s=3_600.0),
        Feature(name="last", namespace="user", source="last_action", default="nothing"),
        Feature(name="shown", namespace="user", source="n_shown", kind="counter"),
        Feature(name="slot", namespace="position", source="slot"),
        Feature(name="genre", namespace="item", source="genres", kind="multi"),
        Feature(name="id", namespace="item", source="id"),
        Feature(name="source", namespace="dynamic", source="source"),
        Feature(name="seen", namespace="dynamic", source="n_seen", kind="numeric", edges=[1, 2, 4], ttl_s=3_600.0),
        Feature(name="ago", namespace="dynamic", source="last_shown_s", kind="recency", window_s=7_200.0, factor=4.0),
        Feature(name="shows", namespace="dynamic", source="impressions_now", kind="counter", limit=12),
        Feature(name="hits", namespace="dynamic", source="popularity_now", kind="numeric", scale=0.01),
        Feature(name="earned", namespace="dynamic", source="rewards_now", kind="numeric", scale=0.01),
        Feature(name="age", namespace="dynamic", source="age_days", kind="numeric", edges=[1, 7, 30], default=-1.0),
        Feature(
            name="ctr",
            namespace="dynamic",
            source="popularity_now",
            kind="ratio",
            per="impressions_now",
            prior=(1.0, 20.0),
        ),
    ],
    interactions=[("user", "item"), ("context", "item"), ("user", "dynamic")],
    half_life_s=1_800.0,
    impressions_window_s=7_200.0,
    session_gap_s=600.0,
)


def build_config(*, n_partitions: int = 1) -> Config:
    """Return the world's configuration."""
    surface = SurfaceConfig(
        model=MODEL,
        n_candidates=8,
        sources=[SourceConfig(name="popular", quota=5), SourceConfig(name="random", quota=5)],
        seen="keep",
        rules=[SeenDemotion(penalty=0.01)],
        reward=RewardPolicy(
            events={
                "click": EventReward(base=1.0),
                "skip": EventReward(base=-0.25),
                "play": EventReward(per_unit=0.001),
            },
            negative_window_s=30.0,
            window_s=300.0,
        ),
    )
    short = msgspec.structs.replace(
        surface, reward=RewardPolicy(events={"click": EventReward(base=0.5)}, window_s=120.0)
    )
    return Config(
        features=SCHEMA,
        models={MODEL: ModelConfig(bits=14, checkpoint_s=1e9)},
        surfaces={"home": surface, "strip": short},
        store=StoreConfig(partitions=n_partitions, impressions_limit=40, recent_limit=5, timeout_s=30.0),
        archive=ArchiveConfig(flush_s=0.0, flush_entries=1, journal_keep_s=1e6),
    )


@dataclass
class Ports:
    """The adapters of one store."""

    journal: Journal
    log: ChangeLog
    users: UserStates
    models: ModelStore


class GatedJournal:
    """A journal that takes decisions only while its gate is open, so that events come before them."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.n_partitions = journal.n_partitions
        self.gate = asyncio.Event()
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def ship(self, shipments: Sequence[Any]) -> Any:
        await self.gate.wait()
        return await self._journal.ship(shipments)


@dataclass
class TestWorker:
    """One API worker without HTTP."""

    recommender: Recommender
    feedback: Feedback
    follower: Follower
    items: ItemsView
    spool: Spool
    journal: GatedJournal

    __test__ = False

    async def shipped(self) -> None:
        """Wait until everything that was decided is in the journal, and its impressions in the user's state."""
        while self.spool.n_waiting:  # noqa: ASYNC110 - the spool has no event for it
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)

    async def follow(self) -> None:
        while await self.follower._read(block_ms=0):
            pass
        self.items.retriever.rankings = self.items.build_rankings(START_MS)


@dataclass
class World:
    """Everything, on one clock that the test moves."""

    config: Config
    ports: Ports
    folder: Path
    rng: random.Random
    now_ms: int = START_MS
    later: list[tuple[int, int, EventBody]] = field(default_factory=list)
    item_changes: int = 0
    n_decided: int = 0

    async def start(self, spoil: Callable[[TestWorker, TestWorker], None] | None = None) -> None:
        self.profiles = {f"u{n}": UserProfile(country="DE" if n % 2 else "FR") for n in range(0, 40, 3)}
        await self.ports.users.put_profiles(self.profiles)
        self.live = {f"i{n}" for n in range(60)}
        for item_id in sorted(self.live):
            await self.put(item_id)
        self.workers = [self._worker("a"), self._worker("b")]
        if spoil is not None:
            spoil(*self.workers)
        for worker in self.workers:
            await worker.follower.catch_up()
            worker.spool.start()
        self.archiver = Archiver(
            config=self.config,
            journal=self.ports.journal,
            models=self.ports.models,
            archive=ParquetArchive(self.folder / "archive"),
            metrics=Metrics(),
            clock=lambda: self.now_ms,
        )
        await self.restart_learner()

    async def restart_learner(self) -> None:
        """Start a learner from the last checkpoint, as after a crash."""
        counting = ItemCounting(config=self.config, log=self.ports.log)
        self.learner = LearnerLoop(
            config=self.config,
            model=MODEL,
            journal=self.ports.journal,
            models=self.ports.models,
            users=self.ports.users,
            metrics=Metrics(),
            clock=lambda: self.now_ms,
            counting=counting,
        )
        await self.learner.start()

    async def put(self, item_id: str) -> None:
        self.item_changes += 1
        item = Item(
            id=item_id,
            attributes={"genres": self.rng.sample(GENRES, 2)},
            available_at_unix_ms=None if item_id.endswith("7") else self.now_ms - self.rng.randrange(10**9 * 5),
        )
        await self.ports.log.append(ITEMS_STREAM, [encode(ItemUpsert(item=item))])

    async def decide(self, worker: TestWorker) -> RecommendResponse:
        n = self.rng.randrange(50)
        request = RecommendRequest(
            surface=self.rng.choice(["home", "home", "strip"]),
            user_id=f"u{n}" if n < 40 else None,
            context={"device": self.rng.choice(["tv", "phone"])} if self.rng.random() < 0.7 else {},
            n=self.rng.choice([1, 1, 2, 3]),
        )
        answer = await worker.recommender.recommend(request)
        self.n_decided += 1
        for item in answer.items:
            if self.rng.random() < 0.25:
                self._plan(answer, item.item_id, item.slot, request.user_id)
        return answer

    def _plan(self, answer: RecommendResponse, item_id: str, slot: int, user_id: str | None) -> None:
        """Let something happen at once or later, once or twice, told in different ways."""
        body = EventBody(
            type=self.rng.choice(["click", "click", "skip", "play", "view"]),
            id=f"c{self.rng.getrandbits(60)}",
            event_id=answer.event_id,
            item_id=item_id if (by_item := self.rng.random() < 0.5) else None,
            slot=slot if not by_item or self.rng.random() < 0.5 else None,
            user_id=user_id if self.rng.random() < 0.5 else None,
            value=float(self.rng.randrange(1, 900)),
        )
        for _ in range(self.rng.choice([1, 1, 2, 3])):
            delay_ms = self.rng.choice([0, 0, 200, 5_000, 60_000, 200_000, 400_000])
            self.later.append((self.now_ms + delay_ms, self.rng.getrandbits(30), body))

    async def happen(self) -> None:
        """Report what is due, in no particular order."""
        due = [entry for entry in self.later if entry[0] <= self.now_ms]
        self.later = [entry for entry in self.later if entry[0] > self.now_ms]
        self.rng.shuffle(due)
        for _, _, body in due:
            await self.rng.choice(self.workers).feedback.accept([body])

    async def run(self, n_decisions: int) -> None:
        """Decide, with everything else happening in between."""
        a, b = self.workers
        for step in range(n_decisions):
            self.now_ms += self.rng.choice([1, 40, 400, 900, 900])
            if step % 997 == 400:
                self.now_ms += 700_000
            if step % 90 == 10:
                b.journal.gate.clear()
            if step % 90 == 60:
                b.journal.gate.set()
            await self.decide(self.rng.choice(self.workers))
            await self.happen()
            if step % 8 == 0:
                await self.learner.step()
                await a.follow()
            if step % 41 == 0:
                await b.follow()
            if step % 173 == 0:
                await self._change_items()
            if step % 500 == 499:
                await self.archiver.step()
            if step % 1_500 == 700:
                await self.learner.save()
            if step % 1_500 == 900:
                await self.restart_learner()
        await self.settle()

    async def _change_items(self) -> None:
        await self.put(self.rng.choice(sorted(self.live)))
        gone = self.rng.choice(sorted(self.live))
        if self.rng.random() < 0.3:
            await self.ports.log.append(ITEMS_STREAM, [encode(ItemDelete(item_id=gone))])
            if self.rng.random() < 0.7:
                await self.put(gone)
            else:
                self.live.discard(gone)

    async def settle(self) -> None:
        """Ship, learn and archive all there is."""
        for worker in self.workers:
            worker.journal.gate.set()
        for worker in self.workers:
            await worker.shipped()
        self.now_ms += 5_000
        for partition in range(self.ports.journal.n_partitions):
            await self.ports.journal.append(partition, [encode(Heartbeat(at_unix_ms=self.now_ms))])
        while await self.learner.step():
            pass
        for _ in range(4):
            await self.archiver.step()
        await self.archiver.flush()

    async def close(self) -> None:
        for worker in self.workers:
            await worker.spool.close()

    def archived(self) -> list[Decision]:
        return list(read_archive(self.folder / "archive"))

    async def check(self, decisions: Sequence[Decision], config: Config | None = None) -> CheckReport:
        """Compare the three paths."""
        items = ItemHistory()
        after = "0-0"
        while changes := await self.ports.log.read({ITEMS_STREAM: after}, count=1_000, block_ms=0):
            for change in changes:
                items.add(change.entry_id, item_change_decoder.decode(change.payload))
            after = changes[-1].entry_id
        store = OfflineStore(config or self.config, self.folder / "archive")
        profiles = {keyed_digest(user_id, salt=SALT): profile for user_id, profile in self.profiles.items()}
        try:
            checker = FeatureChecker(config or self.config, store=store, items=items, profiles=profiles, salt=SALT)
            return checker.check(decisions)
        finally:
            store.close()

    def _worker(self, name: str) -> TestWorker:
        metrics = Metrics()
        items = ItemsView(SCHEMA, Retriever(Catalogue(), None), AttributeColumns({}))
        served = {MODEL: ServedModel(MODEL, self.config.model_spec(MODEL), metrics)}
        journal = GatedJournal(self.ports.journal)
        shown = ImpressionWriter(self.ports.users, metrics)
        spool = Spool(self.folder / f"spool-{name}", journal, metrics, on_shipped=shown.add_shipped)
        shared: dict[str, Any] = {
            "users": self.ports.users,
            "journal": journal,
            "spool": spool,
            "metrics": metrics,
            "clock": lambda: self.now_ms,
            "salt": SALT,
        }
        live = LiveConfig(self.config)
        return TestWorker(
            recommender=Recommender(live=live, items=items, models=served, explorers={}, **shared),
            feedback=Feedback(config=self.config, **shared),
            follower=Follower(
                log=self.ports.log, models=self.ports.models, items=items, served=served, live=live, metrics=metrics
            ),
            items=items,
            spool=spool,
            journal=journal,
        )
