"""A small closed loop on journal time: people with a taste in genres, popularity that feeds itself, Hone's own parts.

Slates, exploration, join, learner, weight publishing and health watch are the ones that serve; store, clock and people
are in memory.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from bandit.columns import Columns
from bandit.dynamic import encode_dynamic
from bandit.exploration import Epsilon
from bandit.features import Feature, FeatureSchema
from bandit.health import HealthConfig
from bandit.policy import ActionFeatures
from bandit.randomness import build_generator
from bandit.rewards import EventReward, RewardPolicy
from bandit.slate import ActionSet, SlateWalk, draw_slate
from bandit.vw_format import encode as encode_features
from retrieval.items import Item
from service.adapters.memory_store import (
    MemoryChangeLog,
    MemoryHealthBoard,
    MemoryJournal,
    MemoryModelStore,
    MemoryUserStates,
)
from service.adapters.memory_streams import MemoryStore
from service.config import Config, ModelConfig, SurfaceConfig
from service.decision_record import dynamic_record, pack_actions, record_slot
from service.health import HealthWatch
from service.items_view import ITEMS_STREAM
from service.learn import LearnerLoop
from service.messages import Decision, Event, HealthVerdict, ItemUpsert, ModelSnapshot, Versions, WeightDelta, encode
from service.metrics import Metrics
from service.served_model import ServedModel

GENRES = ("comedy", "crime", "drama", "horror", "musical", "romance", "thriller", "western")
SEGMENTS = ("ann", "bea", "cid", "dan")
N_ITEMS = 48
N_SLOTS = 3
MODEL = "m"
SURFACE = "home"
START_MS = 1_700_000_040_000
_STEP_MS = 1_000
_CLICK_MS = 400

SCHEMA = FeatureSchema(
    features=[
        Feature(name="segment", namespace="context", source="segment"),
        Feature(name="country", namespace="context", source="country"),
        Feature(name="device", namespace="context", source="device"),
        Feature(name="surface", namespace="context", source="surface"),
        Feature(name="genre", namespace="item", source="genres", kind="multi"),
        Feature(name="id", namespace="item", source="id"),
        Feature(name="popular", namespace="dynamic", source="popular", kind="numeric", edges=[0.02, 0.05, 0.1, 0.2]),
    ],
    interactions=[("context", "item")],
)


class World:
    """One run.

    Args:
        rate: exploration rate.
        seed: of people and clicks.
        folder: where the watch keeps its file.
        uniform_share: of exploration.
        interval_s: the watch's interval; a decision is made every second.
    """

    def __init__(
        self, *, rate: float, seed: int, folder: Path, uniform_share: float = 0.25, interval_s: float = 60.0
    ) -> None:
        self.now_ms = START_MS
        self._rng = np.random.default_rng(seed)
        self._salt = seed.to_bytes(4, "little")
        self.countries = {"DE": 0.5, "FR": 0.3, "US": 0.2}
        # What every click probability is multiplied with.
        self.appetite = 1.0
        self.is_reporting = True
        self.is_learning = True
        self.exploration = Epsilon(rate=rate, uniform_share=uniform_share, shortlist=20)
        self.config = Config(
            features=SCHEMA,
            models={MODEL: ModelConfig(bits=14, learning_rate=0.05)},
            surfaces={
                SURFACE: SurfaceConfig(
                    model=MODEL,
                    exploration=self.exploration,
                    reward=RewardPolicy(events={"click": EventReward(base=1.0)}, negative_window_s=10.0),
                )
            },
            health=HealthConfig(
                genre="genre",
                drift=["country"],
                interval_s=interval_s,
                min_slots=int(interval_s),
                window=20,
                reference=60,
                silence_s=60.0,
            ),
        )
        store = MemoryStore(lambda: self.now_ms)
        self.journal = MemoryJournal(store)
        self.log = MemoryChangeLog(store)
        self.models = MemoryModelStore(store)
        self.board = MemoryHealthBoard(store)
        self._folder = folder
        self._learner = LearnerLoop(
            config=self.config,
            model=MODEL,
            journal=self.journal,
            models=self.models,
            users=MemoryUserStates(store, self.config.store),
            metrics=Metrics(),
            clock=lambda: self.now_ms,
        )
        self.served = ServedModel(MODEL, self.config.model_spec(MODEL), Metrics())
        self._read_to = "0-0"
        self.watch = self.build_watch()
        self._ids = [f"i{index:02}" for index in range(N_ITEMS)]
        self._genre = np.arange(N_ITEMS) % len(GENRES)
        self._encoded = ActionFeatures.stack(
            [encode_features("item", SCHEMA.named("item", self._item(index))) for index in range(N_ITEMS)]
        )
        # Each segment loves one genre, likes another, and clicks now and then on the rest.
        self._taste = np.full((len(SEGMENTS), len(GENRES)), 0.5)
        for segment in range(len(SEGMENTS)):
            self._taste[segment, 2 * segment] = 0.9
            self._taste[segment, 2 * segment + 1] = 0.8
        self._clicks = np.zeros(N_ITEMS)
        self._n_made = 0

    def build_watch(self) -> HealthWatch:
        """Return a watch on this world, as a process that starts would."""
        return HealthWatch(
            config=self.config,
            journal=self.journal,
            log=self.log,
            models=self.models,
            board=self.board,
            archived=lambda _: f"{self.now_ms}-0",
            state_path=self._folder / "state.msgpack",
            clock=lambda: self.now_ms,
        )

    async def start(self) -> None:
        """Put the catalogue and start the learner."""
        upserts = [
            encode(ItemUpsert(item=Item(id=item_id, attributes={"genres": [GENRES[genre]]})))
            for item_id, genre in zip(self._ids, self._genre.tolist(), strict=True)
        ]
        await self.log.append(ITEMS_STREAM, upserts)
        await self._learner.start()
        stored = await self.models.load_snapshot(MODEL)
        assert stored is not None
        self.served.serve(self.served.build(msgspec.msgpack.decode(stored, type=ModelSnapshot)))

    async def run(self, n_decisions: int) -> list[HealthVerdict]:
        """Make decisions, one a second, and learn at each; return the verdicts, one an interval."""
        verdicts = []
        for _ in range(n_decisions):
            await self._decide()
            if self.is_learning:
                await self._learn()
            if self._n_made % int(self.config.health.interval_s) == 0:
                await self.watch.step()
                verdicts.append(self.watch.verdict())
        return verdicts

    def break_model(self) -> None:
        """Serve a model that likes least what people like most, and learn no more: a deployment that went wrong."""
        self.is_learning = False
        self.served._table.weights *= -1.0

    def _item(self, index: int) -> dict[str, object]:
        return {"id": self._ids[index], "genres": [GENRES[self._genre[index]]]}

    async def _decide(self) -> None:
        segment = int(self._rng.integers(len(SEGMENTS)))
        country = str(self._rng.choice(list(self.countries), p=list(self.countries.values())))
        event_id = f"e{self._n_made:06}"
        self._n_made += 1
        popular = (self._clicks / max(1.0, self._clicks.sum())).astype(np.float32)
        columns: Columns = {"popular": popular}
        context = {"segment": SEGMENTS[segment], "country": country, "device": "tv", "surface": SURFACE}
        named = {"context": SCHEMA.named("context", context), "user": {}}
        features = {"item": self._encoded, "dynamic": encode_dynamic(SCHEMA, {"popular": popular}, N_ITEMS)}
        scores = self.served.score({name: encode_features(name, of) for name, of in named.items()}, features)
        actions = ActionSet(ids=self._ids, scores=scores, columns=columns)
        walk = SlateWalk(
            actions=actions,
            exploration=self.exploration,
            rules=(),
            now_ms=self.now_ms,
            n_slots=N_SLOTS,
            discovery_positions=(),
        )
        rng = build_generator(salt=self._salt, purpose="slot", surface=SURFACE, event_id=event_id)
        draws = draw_slate(walk, rng.random(N_SLOTS))
        slots = []
        for draw in draws:
            dynamic = SCHEMA.named("dynamic", dynamic_record(columns, draw.action, source="all"))
            of_slot = {"item": SCHEMA.named("item", self._item(draw.action)), "dynamic": dynamic}
            slots.append(record_slot(draw, actions, features=of_slot))
        decision = Decision(
            event_id=event_id,
            decided_at_unix_ms=self.now_ms,
            surface=SURFACE,
            model=MODEL,
            user_id=None,
            user_key="",
            digest="",
            context={},
            seed_item_id=None,
            recent_ids=[],
            features=named,
            versions=Versions(
                model=self.served.version,
                index="",
                catalogue="",
                config="",
                schema=SCHEMA.version,
                item_stats="",
                salt=1,
                numerics="",
            ),
            exploration=self.exploration,
            rules=[],
            discovery_positions=[],
            discovery_probability=1.0,
            candidates=pack_actions(actions, sources=np.zeros(N_ITEMS, dtype=np.uint8), source_names=["all"]),
            slots=slots,
            n_requested=N_SLOTS,
            degraded=[],
            latency_ms={},
        )
        await self.journal.append(0, [encode(decision)])
        self.now_ms += _CLICK_MS
        clicks = []
        for slot, draw in enumerate(draws):
            # People click a little more on what others clicked.
            liking = self._taste[segment, self._genre[draw.action]] + 0.6 * min(0.5, float(popular[draw.action]))
            if self._rng.random() < self.appetite * liking:
                self._clicks[draw.action] += 1.0
                clicks.append(encode(self._click(event_id, slot)))
        if clicks and self.is_reporting:
            await self.journal.append(0, clicks)
        self.now_ms += _STEP_MS - _CLICK_MS

    def _click(self, event_id: str, slot: int) -> Event:
        return Event(
            accepted_at_unix_ms=self.now_ms,
            client_id=f"{event_id}/{slot}",
            event_type="click",
            event_id=event_id,
            user_id=None,
            user_key="",
            item_id=None,
            slot=slot,
            value=1.0,
            client_unix_ms=None,
        )

    async def _learn(self) -> None:
        await self._learner.step()
        weights = self.models.weights_stream(MODEL)
        for entry in await self.log.read({weights: self._read_to}, count=1_000, block_ms=0):
            self._read_to = entry.entry_id
            assert self.served.apply(msgspec.msgpack.decode(entry.payload, type=WeightDelta))
