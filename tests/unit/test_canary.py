"""A canary: who gets it, when it is judged, and that a bad one ends without anybody watching."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy.stats import binom

from bandit.features import Feature, FeatureSchema
from retrieval.catalogue import Catalogue
from retrieval.items import Item
from service.adapters.memory_store import MemoryChangeLog, MemoryJournal, MemoryModelStore, MemoryUserStates
from service.adapters.memory_streams import MemoryStore
from service.adapters.parquet_archive import ParquetArchive
from service.canary import Canaries, CanaryWatch, began_at, canary_key, read_rewards
from service.config import Canary, Config, ModelConfig, SourceConfig, StoreConfig, SurfaceConfig
from service.config_writer import ConfigWriter
from service.items_view import ItemsView
from service.live_config import LiveConfig
from service.messages import ConfigChange, ConfigOverride, ItemUpsert, ModelSnapshot, Outcome, encode, journal_decoder
from service.metrics import Metrics
from service.ports import ArchiveBatch, OpenJoins, OutcomeRow
from service.promote_evidence import Bounds, RewardedSlot, canary_difference
from service.recommend import Recommender
from service.retriever import Retriever
from service.rule_columns import AttributeColumns
from service.served_model import ServedModel
from service.spool import Spool
from service.wire import RecommendRequest
from simulators.logged_world import LoggedWorld, better_world

START_MS = 1_795_000_000_000
MODELS = ("m", "challenger")
SCHEMA = FeatureSchema(features=[Feature(name="id", namespace="item", source="id")])


def _config(canary: Canary | None = None) -> Config:
    surface = SurfaceConfig(model="m", sources=[SourceConfig(name="popular", quota=5)], canary=canary)
    return Config(features=SCHEMA, models={m: ModelConfig(bits=10) for m in MODELS}, surfaces={"home": surface})


# --- who gets it ---------------------------------------------------------------------------------------------------


def _recommender(folder: Path, canary: Canary | None) -> Recommender:
    config, store, metrics = _config(canary), MemoryStore(lambda: START_MS), Metrics()
    items = ItemsView(SCHEMA, Retriever(Catalogue(), None), AttributeColumns({}))
    for n in range(5):
        items.apply(f"{n + 1}-0", ItemUpsert(item=Item(id=f"i{n}")))
    return Recommender(
        live=LiveConfig(config),
        items=items,
        models={name: ServedModel(name, config.model_spec(name), metrics) for name in MODELS},
        explorers={},
        users=MemoryUserStates(store, StoreConfig()),
        journal=MemoryJournal(store),
        spool=Spool(folder, MemoryJournal(store), metrics),
        metrics=metrics,
        clock=lambda: START_MS,
        salt=b"salt",
    )


def _in_canary(folder: Path, canary: Canary | None, users: Sequence[str | None]) -> set[int]:
    """Return which of the users the other model scores for; requests of nobody differ by their event ids."""
    recommender, surface = _recommender(folder, canary), _config(canary).surfaces["home"]
    return {
        n
        for n, user_id in enumerate(users)
        if recommender._model_of(RecommendRequest(surface="home", user_id=user_id), surface, f"e{n}") == "challenger"
    }


USERS = [f"u{n}" for n in range(4_000)]


@pytest.mark.parametrize("users", [USERS, [None] * len(USERS)])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_a_canary_gets_its_share(tmp_path: Path, users: Sequence[str | None], share: float) -> None:
    """A binomial band with a false-alarm rate of 1e-4."""
    n_canary = len(_in_canary(tmp_path, Canary(model="challenger", share=share, artefact="a"), users))
    assert binom.ppf(5e-5, len(users), share) <= n_canary <= binom.ppf(1 - 5e-5, len(users), share)


def test_without_a_canary_everybody_gets_the_surfaces_own_model(tmp_path: Path) -> None:
    assert _in_canary(tmp_path, None, USERS) == set()


def test_a_user_keeps_the_model_and_a_larger_share_takes_nobody_away(tmp_path: Path) -> None:
    small = _in_canary(tmp_path, Canary(model="challenger", share=0.1, artefact="a"), USERS)
    assert small == _in_canary(tmp_path, Canary(model="challenger", share=0.1, artefact="a"), USERS)
    assert small < _in_canary(tmp_path, Canary(model="challenger", share=0.3, artefact="a"), USERS)


def test_who_gets_it_is_drawn_anew_for_another_artefact(tmp_path: Path) -> None:
    """Two independent draws share a ninth of the users at a third each; false alarm 1e-4."""
    share = 1 / 3
    first, second = (_in_canary(tmp_path, Canary(model="challenger", share=share, artefact=a), USERS) for a in "ab")
    n, chance = len(USERS), share**2
    assert binom.ppf(5e-5, n, chance) <= len(first & second) <= binom.ppf(1 - 5e-5, n, chance)


async def test_what_is_logged_names_the_model_that_scored(tmp_path: Path) -> None:
    canary = Canary(model="challenger", share=0.5, artefact="a")
    recommender = _recommender(tmp_path, canary)
    members = _in_canary(tmp_path, canary, USERS[:20])
    assert 0 < len(members) < 20
    state = await recommender._users.fetch("nobody")
    for n, user_id in enumerate(USERS[:20]):
        request = RecommendRequest(surface="home", user_id=user_id, n=2)
        for _ in range(2):
            decision = recommender._decide(request, recommender._live.current, state, START_MS, [])
            assert decision.model == ("challenger" if n in members else "m")


# --- what it earned, and the end of a bad one ----------------------------------------------------------------------


class Trial:
    """A stack's archive and live configuration with a canary on it, in a simulated world."""

    def __init__(self, folder: Path, declared: Canary | None = None) -> None:
        self.now_ms = START_MS
        self.config = _config(declared)
        store = MemoryStore(lambda: self.now_ms)
        self.journal, self.models = MemoryJournal(store), MemoryModelStore(store)
        self.writer = ConfigWriter(
            self.config, log=MemoryChangeLog(store), journal=self.journal, clock=lambda: self.now_ms
        )
        self.folder = folder
        self.archive = ParquetArchive(folder)
        self.canaries = Canaries(self.config, folder=folder, models=self.models, writer=self.writer)
        self.watch = CanaryWatch(self.canaries, clock=lambda: self.now_ms)

    async def begin(self, *, artefact: str = "a", share: float = 0.3) -> None:
        epoch = await self.models.take_epoch("challenger")
        await self.models.publish_snapshot("challenger", epoch, encode(_snapshot(artefact)))
        canary = {"model": "challenger", "share": share, "artefact": artefact, "unit_s": 60.0}
        await self.writer.put(canary_key("home"), canary, author="me", reason="trial")

    def serve(self, world: LoggedWorld, challenger: LoggedWorld, *, n: int, share: float = 0.3, seed: int = 1) -> None:
        """Archive what users earned of both, until an hour after the last decision."""
        rng = np.random.default_rng(seed)
        logs = {"m": world.log(n, seed=seed), "challenger": challenger.log(n, seed=seed)}
        rows = []
        # Past the first seconds, in which workers may not have followed yet.
        began_ms = self.now_ms + 10_000
        for number in range(n):
            model = "challenger" if rng.random() < share else "m"
            outcome, at_ms = logs[model][number], began_ms + number * 100
            rows.append(_outcome(model, f"u{number}", at_ms, outcome.reward))
        self.now_ms = began_ms + n * 100 + 3_600_000
        batch = ArchiveBatch(
            positions={0: f"{self.now_ms}-0"},
            entries={0: []},
            outcomes=[OutcomeRow(partition=0, journal_id=f"{r.at_unix_ms}-0", ordinal=0, outcome=r) for r in rows],
            joins=OpenJoins(),
        )
        self.archive.write(batch)

    async def look(self) -> Canary | None:
        """Let a minute pass and the watch look; return the canary that is left."""
        self.now_ms += 60_000
        await self.watch.step()
        return (await self.writer.effective()).current.config.surfaces["home"].canary

    async def changes(self) -> list[ConfigChange]:
        entries = (await self.journal.read({0: "0-0"}, count=1_000, block_ms=0))[0]
        decoded = [journal_decoder.decode(payload) for _, payload in entries]
        return [entry for entry in decoded if isinstance(entry, ConfigChange)]


def _snapshot(artefact: str) -> ModelSnapshot:
    return ModelSnapshot(
        epoch=1,
        version=1,
        stream_id="0-0",
        schema_version=SCHEMA.version,
        bits=10,
        arguments=[],
        indices=b"",
        values=b"",
        artefact=artefact,
    )


def _outcome(model: str, user: str, at_ms: int, reward: float, *, kind: str = "reward") -> Outcome:
    return Outcome(
        event_id=f"e-{user}-{at_ms}",
        slot=0,
        item_id="i",
        reward=reward,
        kind=kind,
        at_unix_ms=at_ms,
        delay_ms=0,
        surface="home",
        model=model,
        decision_journal_id=f"{at_ms}-0",
        decided_at_unix_ms=at_ms,
        user_key=user,
        propensity=0.5,
        branch="greedy",
        is_explored=False,
    )


WORLD = better_world(seed=3, gain=0.6)
# What each segment likes best, shown to it.
RIGHT = LoggedWorld(WORLD.rewards, WORLD.rewards, WORLD.exploration)


async def test_a_canary_that_earns_less_is_ended_by_the_watch_and_the_audit_log_says_why(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    await trial.begin()
    # The live model knows the world; the one on trial shows everybody the same.
    trial.serve(RIGHT, WORLD, n=2_500)
    assert await trial.look() is None
    started, ended = await trial.changes()
    assert (started.author, ended.author, ended.key, ended.new) == ("me", "hone", canary_key("home"), None)
    assert ended.reason.startswith("canary is worse: -")
    # Once ended it is not judged again.
    assert await trial.look() is None
    assert len(await trial.changes()) == 2


@pytest.mark.parametrize("challenger", [WORLD, RIGHT])
async def test_a_canary_that_is_no_worse_goes_on(tmp_path: Path, challenger: LoggedWorld) -> None:
    trial = Trial(tmp_path)
    await trial.begin()
    trial.serve(WORLD, challenger, n=2_500)
    assert await trial.look() is not None
    (running,) = await trial.canaries.running()
    assert (await trial.canaries.difference(running)).is_better == (challenger is RIGHT)


async def test_a_canary_whose_model_goes_on_from_something_else_is_ended(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    await trial.begin()
    assert await trial.look() is not None
    epoch = await trial.models.take_epoch("challenger")
    await trial.models.publish_snapshot("challenger", epoch, encode(_snapshot("b")))
    assert await trial.look() is None
    assert (await trial.changes())[-1].reason == "challenger no longer goes on from a"


async def test_a_clock_that_went_back_does_not_stop_the_watch(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    await trial.begin()
    assert await trial.look() is not None
    trial.serve(RIGHT, WORLD, n=2_500)
    # All was archived; then the machine's clock turns out to have been an hour ahead.
    trial.now_ms = START_MS - 3_600_000
    assert await trial.look() is None


async def test_a_canary_of_no_artefact_goes_on_whatever_its_model_goes_on_from(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    await trial.begin()
    await trial.writer.put(canary_key("home"), {"model": "challenger"}, author="me", reason="by hand")
    assert await trial.look() == Canary(model="challenger")


async def test_another_canary_that_was_set_meanwhile_is_not_ended_for_the_first(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    await trial.begin()
    (running,) = await trial.canaries.running()
    trial.now_ms += 1_000
    await trial.begin(artefact="b")
    assert not await trial.canaries.end(running, author="me", reason="old")
    assert await trial.canaries.of("b") is not None


async def test_a_canary_that_the_file_declares_is_served_and_not_judged(tmp_path: Path) -> None:
    trial = Trial(tmp_path, declared=Canary(model="challenger"))
    assert await trial.canaries.running() == []
    assert await trial.look() is not None
    # Nor after one that was laid over it has gone.
    await trial.begin()
    await trial.writer.put(canary_key("home"), None, author="me", reason="")
    assert await trial.look() == Canary(model="challenger")
    assert len(await trial.changes()) == 2


def test_a_change_of_the_share_begins_the_comparison_anew() -> None:
    def override(key: str, at_ms: int) -> ConfigOverride:
        return ConfigOverride(key=key, value=0.2, author="", at_unix_ms=at_ms)

    key = canary_key("home")
    history = [override(key, 1), override(f"{key}.share", 5), override("surfaces.home.canary_of_another", 9)]
    assert began_at(history, "home") == 5
    assert began_at(history[:1], "home") == 1
    removed = ConfigOverride(key=key, value=None, author="", at_unix_ms=7)
    assert began_at([*history, removed], "home") is None
    assert began_at(history, "similar") is None


def test_a_declared_canary_whose_live_share_is_taken_away_is_the_files_again() -> None:
    def override(value: float | None, at_ms: int) -> ConfigOverride:
        return ConfigOverride(key=f"{canary_key('home')}.share", value=value, author="", at_unix_ms=at_ms)

    assert began_at([override(0.2, 5)], "home") == 5
    assert began_at([override(0.2, 5), override(None, 6)], "home") is None


def test_only_outcomes_of_the_surface_of_both_models_and_in_time_count(tmp_path: Path) -> None:
    rows = [
        _outcome("m", "u1", START_MS - 1, 1.0),
        _outcome("m", "", START_MS + 1, 0.5),
        _outcome("challenger", "u2", START_MS + 2, 0.25),
        _outcome("other", "u3", START_MS + 3, 1.0),
        _outcome("m", "u4", START_MS + 4, 1.0, kind="late"),
        msgspec.structs.replace(_outcome("m", "u5", START_MS + 5, 1.0), surface="similar"),
    ]
    outcomes = [OutcomeRow(partition=0, journal_id=f"{r.at_unix_ms}-0", ordinal=0, outcome=r) for r in rows]
    ParquetArchive(tmp_path).write(
        ArchiveBatch(positions={0: f"{START_MS + 9}-0"}, entries={0: []}, outcomes=outcomes, joins=OpenJoins())
    )
    found = list(read_rewards(tmp_path, "home", MODELS, from_ms=START_MS))
    assert found == [
        (START_MS + 1, f"e--{START_MS + 1}", "m", 0.5),
        (START_MS + 2, "u2", "challenger", 0.25),
    ]


class _Counted(RewardedSlot):
    """A slot that says how many of its kind there are."""

    n_alive = 0

    def __del__(self) -> None:
        """Count one less."""
        _Counted.n_alive -= 1


def test_of_a_long_canary_no_more_is_held_than_the_first_while_of_each_user() -> None:
    most = 0

    def slots() -> Iterator[RewardedSlot]:
        nonlocal most
        for n in range(5_000):
            _Counted.n_alive += 1
            yield _Counted(START_MS + n * 1_000, f"u{n % 5}", MODELS[n % 5 % 2], 0.5)
            most = max(most, _Counted.n_alive)

    canary = Canary(model="challenger", share=0.3, unit_s=60.0)
    bounds = canary_difference(slots(), canary=canary, until_ms=2**60, rewards_in=(0.0, 1.0), confidence=0.98)
    assert bounds.n == 5
    assert most < 100


def test_a_canary_is_compared_alike_whatever_the_order_of_its_slots() -> None:
    rng = np.random.default_rng(4)
    slots = [
        RewardedSlot(START_MS + n * 500, f"u{user}", MODELS[user % 2], float(rng.random()))
        for n, user in enumerate(rng.integers(0, 200, 5_000))
    ]
    canary = Canary(model="challenger", share=0.5, unit_s=60.0)

    def difference(order: Sequence[int]) -> Bounds:
        some = (slots[n] for n in order)
        return canary_difference(some, canary=canary, until_ms=2**60, rewards_in=(0.0, 1.0), confidence=0.98)

    in_time = difference(range(len(slots)))
    assert in_time.n == 200
    shuffled = difference(rng.permutation(len(slots)).tolist())
    assert (shuffled.value, shuffled.low, shuffled.high) == pytest.approx((in_time.value, in_time.low, in_time.high))
