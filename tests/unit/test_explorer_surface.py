"""A surface that explores with a VW explorer: exact propensities from the log alone, learned whole, published whole."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from bandit.exploration import Epsilon, Exploration, Softmax, SquareCB, VwExplorer
from bandit.explorer import Explorer
from bandit.features import Feature, FeatureSchema
from bandit.policy import WeightTable
from bandit.rewards import EventReward, RewardPolicy
from bandit.rules import Discovery, MaxPer, Pinned
from retrieval.catalogue import Catalogue
from retrieval.items import Item
from service.adapters.child_check import check_in_child
from service.adapters.memory_store import MemoryChangeLog, MemoryJournal, MemoryModelStore, MemoryUserStates
from service.adapters.memory_streams import MemoryStore
from service.audit import audit_decision
from service.config import Campaign, Config, ModelConfig, SourceConfig, StoreConfig, SurfaceConfig
from service.decision_record import inputs_digest, unpack_shortlisted
from service.explain import Explainer, explain
from service.follow import Follower
from service.items_view import ItemsView
from service.learn import LearnerLoop, ModelLoop
from service.learn_explorer import ExplorerLoop
from service.live_config import LiveConfig
from service.messages import (
    Checkpoint,
    Decision,
    DecisionSummary,
    Event,
    Heartbeat,
    ItemUpsert,
    ModelSnapshot,
    encode,
    journal_decoder,
)
from service.metrics import Metrics
from service.ports import Shipment
from service.recommend import Recommender
from service.retriever import Retriever
from service.rule_columns import AttributeColumns
from service.served_explorer import ServedExplorer
from service.served_model import ServedModel
from service.wire import InlineAction, RecommendRequest

N_ITEMS, N_SLOTS, SHORTLIST = 60, 4, 8
EXPLORER = VwExplorer(model="explorer", shortlist=SHORTLIST, uniform_share=0.1)
SCHEMA = FeatureSchema(
    features=[
        Feature(name="device", namespace="context", source="device"),
        Feature(name="slot", namespace="position", source="slot"),
        Feature(name="id", namespace="item", source="id"),
        Feature(name="genres", namespace="item", source="genres", kind="multi"),
        Feature(name="source", namespace="dynamic", source="source"),
    ],
    interactions=[("context", "item")],
)


def _config(arguments: str = "--cb_explore_adf --bag 4", exploration: Exploration = EXPLORER) -> Config:
    return Config(
        features=SCHEMA,
        models={
            "m": ModelConfig(bits=12, learning_rate=0.1, checkpoint_s=1e9),
            "explorer": ModelConfig(bits=12, learning_rate=0.1, arguments=arguments, checkpoint_s=2.0, publish_s=5.0),
        },
        surfaces={
            "home": SurfaceConfig(
                model="m",
                sources=[SourceConfig(name="random", quota=30)],
                n_candidates=30,
                exploration=exploration,
                rules=[MaxPer(column="creator", limit=1, window=2), Pinned(), Discovery(share=0.3)],
                campaigns=[Campaign(item_id="i00", kind="pin", slot=1)],
                reward=RewardPolicy(events={"click": EventReward(base=1.0)}, negative_window_s=1.0, window_s=5.0),
            )
        },
    )


@pytest.fixture(autouse=True)
def _event_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws are keyed by event ids: with ids that are no chance, no run differs from another."""
    ids = (f"e{n:06}" for n in itertools.count())
    monkeypatch.setattr("service.recommend.build_event_id", lambda _now_ms: next(ids))


class Journal(MemoryJournal):
    """Reads never wait, and bring as few entries as a test wants."""

    limit = 1_000

    async def read(self, after: Any, *, count: int, block_ms: int) -> Any:
        return await super().read(after, count=min(count, self.limit), block_ms=0)


class Spool:
    """Keeps what was written to it."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def append(self, entry: Any) -> None:
        self.entries.append(entry)


async def _passes(_spec: Any, _model: bytes) -> bool:
    return True


class World:
    """A worker and the learners of its models on one store."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or _config()
        self.now_ms = 1_000_000
        self.store = MemoryStore(lambda: self.now_ms)
        self.journal, self.models = Journal(self.store), MemoryModelStore(self.store)
        self.users, self.metrics = MemoryUserStates(self.store, StoreConfig()), Metrics()
        self.numbers = itertools.count()
        self.spool = Spool()
        self.items = ItemsView(SCHEMA, Retriever(Catalogue(), None), AttributeColumns({}))
        for n in range(N_ITEMS):
            item = Item(id=f"i{n:02}", attributes={"genres": [f"g{n % 7}", f"g{n % 5}"]}, creator=f"c{n % 11}")
            self.items.apply(f"{n + 1}-0", ItemUpsert(item=item))
        self.model = ServedModel("m", self.config.model_spec("m"), self.metrics)
        self.explorer = ServedExplorer("explorer", self.config.explorer_spec("explorer"), self.metrics)
        self.follower = Follower(
            log=MemoryChangeLog(self.store),
            models=self.models,
            items=self.items,
            served={"m": self.model, "explorer": self.explorer},
            live=LiveConfig(self.config),
            metrics=self.metrics,
        )
        self.recommender = self.recommender_of(self.config)

    def recommender_of(self, config: Config) -> Recommender:
        return Recommender(
            live=LiveConfig(config),
            items=self.items,
            models={"m": self.model},
            explorers={"explorer": self.explorer},
            users=self.users,
            journal=self.journal,
            spool=self.spool,  # type: ignore[arg-type]
            metrics=self.metrics,
            clock=lambda: self.now_ms,
            salt=b"salt",
            # What is drawn hangs on it.
            new_event_id=lambda now_ms: f"e{next(self.numbers)}",
        )

    def learner(self, check: Any = _passes, kind: type[ExplorerLoop] = ExplorerLoop) -> ExplorerLoop:
        return kind(check=check, **self._wiring("explorer"))

    def linear(self) -> LearnerLoop:
        return LearnerLoop(**self._wiring("m"))

    def _wiring(self, model: str) -> dict[str, Any]:
        return {
            "config": self.config,
            "model": model,
            "journal": self.journal,
            "models": self.models,
            "users": self.users,
            "metrics": Metrics(),
            "clock": lambda: self.now_ms,
        }

    async def decide(self, device: str = "tv", **fields: Any) -> Decision:
        request = RecommendRequest(surface="home", context={"device": device}, n=N_SLOTS, **fields)
        await self.recommender.recommend(request)
        entry = self.spool.entries.pop()
        decision = journal_decoder.decode(entry.payload)
        assert isinstance(decision, Decision)
        summary = DecisionSummary(digest="d", surface="home", user_id=None, item_ids=[])
        await self.journal.ship(
            [Shipment(event_id=decision.event_id, summary=encode(summary), entry=entry.payload, ttl_ms=10**9)]
        )
        return decision

    async def click(self, decision: Decision, slot: int) -> None:
        event = Event(
            accepted_at_unix_ms=self.now_ms,
            client_id=f"{decision.event_id}-{slot}",
            event_type="click",
            event_id=decision.event_id,
            user_id=None,
            user_key="",
            item_id=None,
            slot=slot,
            value=1.0,
            client_unix_ms=None,
        )
        await self.journal.append(0, [encode(event)])

    async def live(self, n: int, liked: str = "g3") -> list[Decision]:
        """Decide `n` times; whoever is shown the liked genre clicks it."""
        made = []
        for turn in range(n):
            self.now_ms += 300
            decision = await self.decide(device=["tv", "web"][turn % 2])
            for slot, record in enumerate(decision.slots):
                if liked in self.items.catalogue.item(record.item_id).attributes["genres"]:
                    await self.click(decision, slot)
            made.append(decision)
        return made

    async def settle(self, *loops: Any) -> None:
        self.now_ms += 6_000
        for loop in loops:
            while await loop.step():
                pass
            # A journal that was idle for a second gets a heartbeat, which closes the windows.
            self.now_ms += 1_000
            await loop.step()
            while await loop.step():
                pass


def _drawn(decision: Decision) -> list[int]:
    return [slot for slot, record in enumerate(decision.slots) if record.reason != "pinned"]


async def test_the_log_alone_gives_every_propensity_bit_for_bit() -> None:
    world = World()
    learner = world.learner()
    await learner.start()
    await world.live(60)
    await world.settle(learner)
    await world.follower.catch_up()
    for decision in await world.live(60):
        assert audit_decision(decision) == []
        assert decision.versions.explorer == world.explorer.version > 0
        for slot in _drawn(decision):
            pmf = np.frombuffer(decision.slots[slot].explorer_pmf, dtype="<f8")
            shortlist = np.frombuffer(decision.slots[slot].shortlist, dtype="<u4")
            assert len(pmf) == len(shortlist) <= SHORTLIST
            assert abs(pmf.sum() - 1.0) < 1e-12
            floor = 0.1 / decision.slots[slot].n_feasible
            assert decision.slots[slot].propensity >= floor
        assert decision.slots[1].explorer_pmf == decision.slots[1].shortlist == b""


async def test_a_slot_is_drawn_from_the_pmf_of_the_served_explorer() -> None:
    world = World()
    decision = await world.decide()
    explorer = Explorer(world.config.explorer_spec("explorer"), world.explorer._explorer.serialize())
    assert decision.shortlisted is not None
    features = unpack_shortlisted(decision.shortlisted)
    shared = {name: SCHEMA.encode("context", {"device": "tv"}) for name in ("context",)}
    shared["position"] = SCHEMA.encode("position", {"slot": 0})
    for slot in _drawn(decision):
        record = decision.slots[slot]
        shortlist = np.frombuffer(record.shortlist, dtype="<u4").tolist()
        said = explorer.pmf(shared, [features[action] for action in shortlist])
        assert said.tolist() == np.frombuffer(record.explorer_pmf, dtype="<f8").tolist()


@pytest.mark.parametrize("what", ["swapped", "replaced", "short", "shortlist", "gone"])
async def test_a_changed_explorer_pmf_is_caught(what: str) -> None:
    world = World(_config("--cb_explore_adf --squarecb"))
    learner = world.learner()
    await learner.start()
    await world.live(60)
    await world.settle(learner)
    await world.follower.catch_up()
    decision = await world.decide()
    record = decision.slots[0]
    pmf = np.frombuffer(record.explorer_pmf, dtype="<f8")
    assert len(set(pmf.tolist())) > 1
    changed: dict[str, dict[str, Any]] = {
        "swapped": {"explorer_pmf": pmf[::-1].tobytes()},
        "replaced": {"explorer_pmf": np.full(len(pmf), 1.0 / len(pmf)).tobytes()},
        "short": {"explorer_pmf": pmf[:-1].tobytes()},
        "shortlist": {"shortlist": np.frombuffer(record.shortlist, dtype="<u4")[::-1].tobytes()},
        "gone": {"explorer_pmf": b""},
    }
    slots = [msgspec.structs.replace(record, **changed[what]), *decision.slots[1:]]
    altered = msgspec.structs.replace(decision, slots=slots)
    assert audit_decision(altered)
    # Even by a forger who seals the inputs again.
    altered = msgspec.structs.replace(altered, inputs_digest=inputs_digest(altered))
    assert audit_decision(altered)


async def test_described_actions_are_explored_too() -> None:
    world = World()
    described = [InlineAction(id=f"x{n}", attributes={"genres": ["g1"]}) for n in range(5)]
    decision = await world.decide(candidates=["i05", "i06", *described])
    assert audit_decision(decision) == []
    assert decision.shortlisted is not None
    assert len(unpack_shortlisted(decision.shortlisted)) == 7


async def test_the_explanation_says_what_the_explorer_said() -> None:
    world = World()
    decision = await world.decide()
    explained = explain(decision, WeightTable(world.config.model_spec("m")))
    for slot in _drawn(decision):
        said = explained.slots[slot].explorer
        assert said.model == "explorer"
        assert len(said.shortlist_pmf) == SHORTLIST
        assert sum(said.shortlist_pmf.values()) == pytest.approx(1.0)
        parts = explained.slots[slot].arithmetic
        shown = said.shortlist_pmf.get(decision.slots[slot].item_id, 0.0)
        assert parts["shortlist"] == pytest.approx(0.9 * shown, abs=1e-12)
        assert "from the explorer" in explained.slots[slot].in_words
        assert "no additive form" in said.in_words
    assert explained.slots[1].explorer is None


async def test_a_model_that_became_an_explorer_explains_everything_but_its_scores() -> None:
    world = World()
    decision = await world.decide()
    models = {**world.config.models, "m": world.config.models["explorer"]}
    changed = msgspec.structs.replace(world.config, models=models, surfaces={})
    log = MemoryChangeLog(world.store)
    explainer = Explainer(config=changed, journal=world.journal, models=world.models, log=log)
    explained = await explainer.explain(decision.event_id)
    assert "no additive form" in explained.weights.in_words
    assert explained.weights.version is None
    assert all(slot.score_terms == [] and slot.score_sum is None for slot in explained.slots)
    assert [slot.propensity for slot in explained.slots] == [slot.propensity for slot in decision.slots]


async def test_the_explorer_learns_what_is_liked_and_is_served_whole() -> None:
    world = World(_config("--cb_explore_adf --softmax --lambda 10"))
    learner = world.learner()
    await learner.start()
    await world.follower.catch_up()
    before = _share_of_liked([await world.decide() for _ in range(60)], world)
    for _ in range(4):
        await world.live(100)
        await world.settle(learner)
        await world.follower._read(block_ms=0)
    after = _share_of_liked([await world.decide() for _ in range(60)], world)
    assert learner._learner.n_learned == 60 * 3 + 400 * 3
    assert after > 1.5 * before
    assert world.metrics.registry.get_sample_value("hone_model_gaps_total") == 0.0


def _share_of_liked(decisions: list[Decision], world: World) -> float:
    """Return what the explorer gives to the liked genre, over what an even hand would."""
    given = even = 0.0
    for decision in decisions:
        for slot in _drawn(decision):
            record = decision.slots[slot]
            shortlist = np.frombuffer(record.shortlist, dtype="<u4").tolist()
            items = [world.items.catalogue.item(decision.candidates.ids[action]) for action in shortlist]
            liked = np.array(["g3" in item.attributes["genres"] for item in items])
            given += float(np.frombuffer(record.explorer_pmf, dtype="<f8")[liked].sum())
            even += float(liked.mean())
    return given / even


async def test_an_explorer_is_published_at_a_bounded_rate_and_only_when_it_learned() -> None:
    world = World()
    learner = world.learner()
    await learner.start()
    versions = set()
    for _ in range(40):
        await world.live(2)
        while await learner.step():
            pass
        versions.add(learner.version)
    # 24 seconds at one publication in five; each announces itself.
    assert 4 <= len(versions) <= 6
    await world.settle(learner)
    # The heartbeat closed the last windows: what they taught is published when it is due.
    await world.settle(learner)
    still = learner.version
    await world.settle(learner)
    assert learner.version == still


class CheckpointsAnywhere(ExplorerLoop):
    """Goes on undisturbed and checkpoints whenever it is due: right for what VW serialises whole."""

    def _after_entry(self, position: Any) -> None:
        self._cut = None

    async def save(self) -> None:
        await ModelLoop.save(self)


async def _models_of_two_runs(options: str, kind: type[ExplorerLoop]) -> tuple[list[list[float]], list[list[float]]]:
    """Return an explorer's pmfs after one journal: of a learner that never stopped, and of one that often did."""
    world = World(_config(f"--cb_explore_adf {options}"))
    await world.live(120)
    world.now_ms += 6_000
    await world.journal.append(0, [encode(Heartbeat(at_unix_ms=world.now_ms))])
    world.journal.limit = 5

    async def run(*, crash_after: set[int]) -> list[list[float]]:
        world.models = MemoryModelStore(MemoryStore(lambda: world.now_ms))
        learner = world.learner(kind=kind)
        await learner.start()
        for step in range(80):
            world.now_ms += 700
            await learner.step()
            if step in crash_after:
                learner = world.learner(kind=kind)
                await learner.start()
        assert learner._learner.n_learned == 120 * 3
        return [learner._learner.pmf(*probe).tolist() for probe in _probes()]

    return await run(crash_after=set()), await run(crash_after={2, 5, 6, 17, 30})


@pytest.mark.parametrize("options", ["--bag 10", "--cover 3", "--rnd 3", "--squarecb", "--first 50"])
async def test_a_crash_anywhere_gives_the_explorer_of_no_crash(options: str) -> None:
    undisturbed, crashed = await _models_of_two_runs(options, ExplorerLoop)
    assert len({tuple(row) for row in undisturbed}) > 1 or options == "--first 50"
    assert crashed == undisturbed


async def test_without_cuts_a_crash_would_change_an_explorer_that_keeps_random_numbers() -> None:
    # Event ids are drawn anew, and ten bags give a pmf in tenths: now and then two different models say the same.
    for _ in range(8):
        undisturbed, crashed = await _models_of_two_runs("--bag 10", CheckpointsAnywhere)
        if crashed != undisturbed:
            return
    raise AssertionError("a crash never changed the model")


def _probes() -> list[Any]:
    items = [SCHEMA.encode("item", {"id": f"i{n:02}", "genres": [f"g{n % 7}", f"g{n % 5}"]}) for n in range(N_ITEMS)]
    return [
        ({"context": SCHEMA.encode("context", {"device": device})}, [{"item": item} for item in items[at : at + 8]])
        for device in ("tv", "web")
        for at in range(0, 50, 5)
    ]


async def test_checkpoints_are_of_cuts_and_advance_with_the_journal() -> None:
    world = World()
    learner = world.learner()
    await learner.start()
    await world.live(20)
    await world.settle(learner)
    await learner.save()
    stored = await world.models.load_checkpoint("explorer")
    assert stored is not None
    checkpoint = msgspec.msgpack.decode(stored, type=Checkpoint)
    assert checkpoint.n_learned > 0
    assert checkpoint.positions


async def test_a_model_that_fails_in_the_child_is_not_published() -> None:
    async def fails(_spec: Any, _model: bytes) -> bool:
        return False

    world = World()
    learner = world.learner(check=fails)
    await learner.start()
    await world.follower.catch_up()
    served = world.explorer.version
    await world.live(30)
    await world.settle(learner)
    await world.follower._read(block_ms=0)
    assert world.explorer.version == served
    assert learner._metrics.registry.get_sample_value("hone_explorer_refused_total") >= 1.0


async def test_a_child_checks_a_model_and_a_damaged_one_ends_nothing_but_the_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    spec = _config().explorer_spec("explorer")
    model = Explorer(spec).serialize()
    assert await check_in_child(spec, model)
    assert not await check_in_child(spec, b"")
    assert not await check_in_child(spec, bytes(100))


@pytest.mark.parametrize(
    ("field", "value"),
    [("workspace", b"damaged"), ("schema_version", "other"), ("arguments", ["--cb_explore_adf"])],
)
async def test_a_snapshot_that_cannot_be_used_leaves_the_served_explorer(field: str, value: Any) -> None:
    world = World()
    learner = world.learner()
    await learner.start()
    stored = await world.models.load_snapshot("explorer")
    assert stored is not None
    snapshot = msgspec.msgpack.decode(stored, type=ModelSnapshot)
    world.explorer.serve(world.explorer.build(snapshot))
    served = world.explorer.version
    assert served == snapshot.version
    world.explorer.serve(world.explorer.build(msgspec.structs.replace(snapshot, version=99, **{field: value})))
    assert world.explorer.version == served
    assert world.metrics.registry.get_sample_value("hone_explorer_refused_total") == 1.0
    assert audit_decision(await world.decide()) == []


async def test_decisions_of_an_explorer_teach_the_ranking_model_as_before() -> None:
    world = World()
    linear, learner = world.linear(), world.learner()
    await linear.start()
    await learner.start()
    await world.live(20)
    await world.settle(linear, learner)
    assert linear._learner.n_learned == learner._learner.n_learned == 20 * 3


async def test_decisions_made_before_the_explorer_teach_it_nothing() -> None:
    world = World()
    world.recommender = world.recommender_of(_config(exploration=Epsilon()))
    learner = world.learner()
    await learner.start()
    await world.live(5)
    await world.settle(learner)
    assert learner._learner.n_learned == 0


async def test_closed_form_policies_change_live_and_the_model_stays() -> None:
    """Exploration is no part of what makes a model: the same weights serve, and go on learning, under every policy."""
    world = World(_config(exploration=Epsilon()))
    linear = world.linear()
    await linear.start()
    await world.follower.catch_up()
    n_learned = 0
    policies: list[Exploration] = [
        Epsilon(rate=0.3),
        Softmax(uniform_share=0.1),
        SquareCB(gamma=20.0, uniform_share=0.1),
        EXPLORER,
    ]
    for policy in policies:
        changed = _config(exploration=policy)
        assert changed.model_spec("m") == world.config.model_spec("m")
        before = world.model._table.weights.copy()
        version = world.model.version
        world.recommender = world.recommender_of(changed)
        decisions = await world.live(10)
        assert (world.model._table.weights == before).all()
        assert {decision.versions.model for decision in decisions} == {version}
        assert all(decision.exploration == policy and audit_decision(decision) == [] for decision in decisions)
        await world.settle(linear)
        await world.follower._read(block_ms=0)
        n_learned += 10 * 3
        assert linear._learner.n_learned == n_learned
    # A learner that starts under another policy goes on from the same checkpoint.
    await linear.save()
    world.config = _config(exploration=Softmax())
    restarted = world.linear()
    await restarted.start()
    assert restarted._learner.n_learned == n_learned
    assert (restarted._learner._weights == linear._learner._weights).all()


@pytest.mark.parametrize(
    ("surface", "message"),
    [
        ({"model": "explorer"}, "is an explorer and cannot rank"),
        ({"exploration": VwExplorer(model="nobody")}, r"names explorer 'nobody', declared with arguments are \['exp"),
        ({"exploration": VwExplorer(model="m")}, "names explorer 'm'"),
    ],
)
def test_a_surface_ranks_with_a_linear_model_and_explores_with_an_explorer(surface: Any, message: str) -> None:
    declared = _config()
    with pytest.raises(ValueError, match=message):
        Config(models=declared.models, surfaces={"home": SurfaceConfig(**{"model": "m", **surface})})


def test_an_explorers_table_is_small_unless_said_otherwise() -> None:
    assert ModelConfig(arguments="--cb_explore_adf --bag 5").bits == 18
    assert ModelConfig().bits == 20
    with pytest.raises(ValueError, match="cannot be set"):
        ModelConfig(arguments="--cb_explore_adf -f /tmp/x")
    with pytest.raises(ValueError, match="at most 50"):
        VwExplorer(model="m", shortlist=51)
