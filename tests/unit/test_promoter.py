"""What a promotion must show, what it may not touch, and what exactly is taken back."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bandit.learner import Learner
from retrieval.items import Item
from service.adapters.memory_store import MemoryChangeLog, MemoryJournal, MemoryModelStore
from service.adapters.memory_streams import MemoryStore
from service.adapters.parquet_archive import ParquetArchive
from service.adoption import predecessor_id
from service.canary import Canaries, canary_key
from service.config import Canary, Config
from service.config_writer import ConfigWriter
from service.errors import InvalidRequest, NotFound
from service.items_view import ITEMS_STREAM
from service.journal_reader import entry_id_of, position_of
from service.messages import (
    Checkpoint,
    Decision,
    ItemUpsert,
    JournalEntry,
    ModelSnapshot,
    Promotion,
    encode,
    journal_decoder,
)
from service.model_commands import ModelCommands
from service.model_registry import ArtefactError, Manifest, ModelRegistry, OpenedArtefact, Score, build_artefact
from service.model_registry import open_artefact as open_stored
from service.ports import ArchiveBatch, OpenJoins
from service.promote import ENTROPY, Entered, Evidence, Gate, Promoter, earlier_entropies, share_of_error
from service.promote_evidence import Bounds, shared_confidence
from service.retrain_training import RetrainConfiguration, spec_of, train, training_rows
from service.training_rows import JoinedDecision, Outcome, whole_decisions
from simulators.logged_world import MODEL, better_world
from tests.archived_world import outcome_row

WORLD = better_world(seed=1, gain=0.6)
LOG = WORLD.log(4_000, seed=6)
CUT_MS = LOG[2_000].payload.decided_at_unix_ms
CONFIGURATION = RetrainConfiguration(learning_rate=0.01, interactions=[("context", "item")], clip=50.0)
NOW_MS = LOG[-1].payload.decided_at_unix_ms + 1


def _config(folder: Path) -> Config:
    config = WORLD.config
    # A challenger of the same shape, another that serves a surface of its own.
    models = {name: config.models[MODEL] for name in (MODEL, "challenger", "spare", "playlist")}
    surfaces = {**config.surfaces, "other": msgspec.structs.replace(config.surfaces["home"], model="playlist")}
    return msgspec.structs.replace(config, data_dir=str(folder), models=models, surfaces=surfaces)


@cache
def _trained() -> tuple[bytes, int]:
    rows = list(training_rows(LOG[:2_000], schema=WORLD.config.features, weighting="ips"))
    spec = spec_of(WORLD.config, MODEL, CONFIGURATION)
    learner, n_rows = train(rows.copy, spec=spec, configuration=CONFIGURATION)
    return learner.serialize(), n_rows


class Desk:
    """A promoter on stores in memory, and a learner that adopts what it is told to."""

    def __init__(self, folder: Path) -> None:
        self.now_ms = NOW_MS
        self.config = _config(folder)
        store = MemoryStore(lambda: self.now_ms)
        self.models, self.journal = MemoryModelStore(store), MemoryJournal(store)
        self.items = MemoryChangeLog(store)
        self.writer = ConfigWriter(self.config, log=self.items, journal=self.journal, clock=lambda: self.now_ms)
        self.promoter = Promoter(
            self.config,
            models=self.models,
            journal=self.journal,
            writer=self.writer,
            clock=lambda: self.now_ms,
            author="me",
        )
        self.history: list[tuple[tuple[int, int, int], Promotion]] = []

    async def artefact(self, name: str = "a", *, to_ms: int = CUT_MS, **changed: object) -> OpenedArtefact:
        """Store an artefact that was trained on the first half of the log."""
        spec, (workspace, n_rows) = spec_of(self.config, MODEL, CONFIGURATION), _trained()
        fields = {
            "artefact": name,
            "model": MODEL,
            "kind": "retrained",
            "parent": "",
            "arguments": spec.arguments(),
            "bits": spec.bits,
            "schema_version": spec.schema_version,
            "created_at": "2026-11-24T00:00:00+00:00",
            "workspace_sha256": hashlib.sha256(workspace).hexdigest(),
            "to_ms": to_ms,
            "n_rows": n_rows,
        }
        stored = build_artefact(Manifest(**(fields | changed)), workspace, hmac_key=None)  # type: ignore[arg-type]
        await self.models.put_artefact(MODEL, name, stored)
        return open_stored(stored, hmac_key=None)

    async def serve(self, *, weights: int = 1) -> None:
        """Publish a live model that has learned something, or nothing."""
        epoch = await self.models.take_epoch(MODEL)
        snapshot = ModelSnapshot(
            epoch=epoch,
            version=3,
            stream_id="0-0",
            schema_version=self.config.features.version,
            bits=12,
            arguments=[],
            indices=np.arange(weights, dtype="<u4").tobytes(),
            values=np.ones(weights, dtype="<f4").tobytes(),
        )
        await self.models.publish_snapshot(MODEL, epoch, encode(snapshot))

    async def gates(self, opened: OpenedArtefact, log: list[Outcome] = LOG, **evidence: object) -> dict[str, Gate]:
        def decisions(from_ms: int) -> Iterator[JoinedDecision]:
            return whole_decisions(iter([o for o in log if o.payload.decided_at_unix_ms >= from_ms]))

        known = {"n_skew_values": 5_000, "n_skew_mismatches": 0} | evidence
        found = await self.promoter.gates(opened, Evidence(decisions=decisions, items=WORLD.items(), **known))  # type: ignore[arg-type]
        return {gate.name: gate for gate in found}

    def enter(self, entered: Entered) -> Entered:
        """Note a promotion in the history."""
        self.history.append((entered.position, entered.promotion))
        return entered

    async def adopt(self, entered: Entered, *, learner: Learner | None = None) -> str:
        """Do what a learner does at a promotion: keep what it replaced, by default the trained model."""
        self.enter(entered)
        workspace = _trained()[0] if learner is None else learner.serialize()
        name, digest = predecessor_id(entered.position), hashlib.sha256(workspace).hexdigest()
        made = (await self.artefact()).manifest
        manifest = msgspec.structs.replace(made, artefact=name, kind="predecessor", workspace_sha256=digest)
        await self.models.put_artefact(MODEL, name, build_artefact(manifest, workspace, hmac_key=None))
        return name

    async def promotions(self) -> list[tuple[tuple[int, int, int], Promotion]]:
        """Return the promotions in the journal."""
        entries = (await self.journal.read({0: "0-0"}, count=1_000, block_ms=0)).get(0, [])
        found = [(position_of(0, entry_id), journal_decoder.decode(payload)) for entry_id, payload in entries]
        return [(position, entry) for position, entry in found if isinstance(entry, Promotion)]

    async def checkpoint(self, position: tuple[int, int, int]) -> None:
        """Write a checkpoint that includes an entry."""
        epoch = await self.models.take_epoch(MODEL)
        checkpoint = Checkpoint(
            epoch=epoch,
            model_version=1,
            schema_version="",
            positions={"0": entry_id_of(position)},
            oldest_open={},
            workspace=b"",
            n_learned=0,
            loss_sum=0.0,
            counters={},
        )
        await self.models.save_checkpoint(MODEL, epoch, encode(checkpoint))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# --- gates ---------------------------------------------------------------------------------------------------------


async def test_a_better_artefact_passes_every_gate_on_what_is_later_than_its_training(desk: Desk) -> None:
    await desk.serve()
    gates = await desk.gates(await desk.artefact())
    assert {name: gate.passed for name, gate in gates.items()} == dict.fromkeys(gates, True)
    assert "n = 2000" in gates["advantage"].reason
    assert "99.50% bounds" in gates["advantage"].reason


async def test_decisions_that_it_was_trained_on_are_no_evidence(desk: Desk) -> None:
    await desk.serve()
    gates = await desk.gates(await desk.artefact(), LOG[:2_000])
    assert not gates["advantage"].passed
    assert gates["advantage"].reason == "no archived decision of the model is later than its training"


async def test_propensities_that_cannot_be_right_promote_nothing(desk: Desk) -> None:
    """With a third of the true propensities every candidate looks better, and also worse."""
    await desk.serve()
    wrong = [_with_propensities(outcome, 1 / 3) for outcome in LOG]
    gate = (await desk.gates(await desk.artefact(), wrong))["advantage"]
    assert not gate.passed
    assert not gate.is_refuted
    assert "the bounds cross" in gate.reason


def _with_propensities(outcome: Outcome, factor: float) -> Outcome:
    decision: Decision = outcome.payload
    slots = [msgspec.structs.replace(slot, propensity=slot.propensity * factor) for slot in decision.slots]
    changed = msgspec.structs.replace(decision, slots=slots)
    return type(outcome)(**{f: getattr(outcome, f) for f in outcome.__slots__} | {"payload": changed})


@pytest.mark.parametrize(
    ("low", "high", "passes", "is_refuted"), [(0.01, 0.2, True, False), (-0.2, -0.01, False, True)]
)
async def test_what_a_canary_shows_live_counts_before_the_log(
    desk: Desk, low: float, high: float, passes: bool, is_refuted: bool
) -> None:
    await desk.serve()
    gate = (await desk.gates(await desk.artefact(), canary=Bounds(900, (low + high) / 2, low, high)))["advantage"]
    assert (gate.passed, gate.is_refuted) == (passes, is_refuted)


async def test_features_that_nobody_could_recompute_are_not_taken_for_right(desk: Desk) -> None:
    opened = await desk.artefact()
    await desk.serve(weights=0)
    assert (await desk.gates(opened, [], n_skew_values=0))["skew"].passed
    await desk.serve()
    assert not (await desk.gates(opened, [], n_skew_values=0))["skew"].passed
    assert (await desk.gates(opened, [], n_skew_values=1_000, n_skew_mismatches=1))["skew"].passed
    assert not (await desk.gates(opened, [], n_skew_values=1_000, n_skew_mismatches=2))["skew"].passed


def _manifest(name: str, made_on: str, *, kind: str = "retrained", entropy: float = 0.9, **fields: int) -> Manifest:
    return Manifest(
        artefact=name,
        model=MODEL,
        kind=kind,
        parent="",
        arguments=[],
        bits=1,
        schema_version="",
        created_at=f"{made_on}T00:00:00+00:00",
        workspace_sha256="",
        scores={ENTROPY: Score(value=entropy)},
        **fields,
    )


def test_bounds_are_shared_among_all_that_was_compared_on_the_same_log() -> None:
    # Its evidence begins on the 5th.
    candidate = _manifest("c", "2026-01-08", to_ms=1_767_571_200_000, n_searched=3)
    others = [
        _manifest("before", "2026-01-04", n_searched=100),
        _manifest("since", "2026-01-06", n_searched=4),
        _manifest("later", "2026-01-09", n_searched=1),
        _manifest("replaced", "2026-01-07", kind="predecessor"),
    ]
    # Four were tried before, three now; what came later has a share of its own.
    assert share_of_error(candidate, others) == pytest.approx((1 / 5 - 1 / 8) / 3)
    # Half for the log, half for a canary.
    assert shared_confidence(0.98, share=1 / 8) == pytest.approx(1 - 0.02 / 2 / 8)


def test_however_often_somebody_retrains_the_shares_of_all_tries_are_below_one() -> None:
    """Equal shares of the tries so far would add up to 5.2 after a hundred."""
    rng = np.random.default_rng(1)
    for searched in ([1] * 100, rng.integers(1, 20, 100).tolist()):
        made = [_manifest(f"{n:03}", "2026-01-08", to_ms=1, n_searched=k) for n, k in enumerate(searched)]
        shares = [m.n_searched * share_of_error(m, [o for o in made if o is not m]) for m in made]
        assert 0.98 < sum(shares) < 1.0


def test_the_entropy_of_a_retrain_is_compared_with_those_before_it_and_not_with_itself() -> None:
    candidate = _manifest("c", "2026-01-08", entropy=0.1)
    others = [
        _manifest("b", "2026-01-06", entropy=0.8),
        _manifest("later", "2026-01-09", entropy=0.2),
        _manifest("replaced", "2026-01-05", kind="predecessor", entropy=0.3),
        _manifest("d", "2026-01-07", entropy=0.7),
    ]
    assert earlier_entropies(candidate, others) == [0.8, 0.7]


async def test_one_artefact_that_cannot_be_used_does_not_hide_the_others(desk: Desk) -> None:
    await desk.serve()
    opened = await desk.artefact()
    await desk.models.put_artefact(MODEL, "damaged", b"damaged")
    assert [m.artefact for m in await ModelRegistry(desk.config, desk.models).manifests(MODEL)] == ["a"]
    assert (await desk.gates(opened, []))["fit"].passed
    with pytest.raises(ArtefactError):
        await desk.promoter.find("damaged")


# --- canaries ------------------------------------------------------------------------------------------------------


async def test_a_model_that_serves_cannot_be_put_on_trial(desk: Desk) -> None:
    opened = await desk.artefact()
    for model in (MODEL, "playlist", "unknown"):
        with pytest.raises(InvalidRequest, match="serves nothing else") as refused:
            await desk.promoter.enter_canary(opened, surface="home", model=model, reason="")
        assert refused.value.path == "--canary-model"
    assert await desk.models.artefact_ids("playlist") == []


async def test_a_model_that_is_on_trial_elsewhere_cannot_be_put_on_trial(desk: Desk) -> None:
    opened = await desk.artefact()
    canary = Canary(model="challenger", share=0.1, artefact="x")
    await desk.promoter.start_canary("other", canary, reason="")
    with pytest.raises(InvalidRequest, match=r"there are \['spare'\]"):
        await desk.promoter.enter_canary(opened, surface="home", model="challenger", reason="")
    entered = await desk.promoter.enter_canary(opened, surface="home", model="spare", reason="trial")
    assert (entered.promotion.model, entered.promotion.stage) == ("spare", "canary")
    assert await desk.models.artefact_ids("spare") == ["a"]


async def test_a_model_of_another_shape_cannot_be_put_on_trial(desk: Desk) -> None:
    """Its learner would refuse the promotion, and nobody would learn why."""
    opened = await desk.artefact(bits=11)
    with pytest.raises(InvalidRequest, match="'challenger' cannot go on from a: bits must be") as refused:
        await desk.promoter.enter_canary(opened, surface="home", model="challenger", reason="")
    assert refused.value.path == "--canary-model"
    assert await desk.promotions() == []


async def test_an_artefact_of_another_model_than_the_surfaces_cannot_be_tried_there(desk: Desk) -> None:
    with pytest.raises(InvalidRequest, match="is of model"):
        await desk.promoter.enter_canary(await desk.artefact(), surface="other", model="spare", reason="")


async def test_a_full_promotion_ends_its_own_canary_and_no_other(desk: Desk) -> None:
    opened = await desk.artefact()
    await desk.promoter.start_canary("home", Canary(model="challenger", artefact="a"), reason="")
    await desk.promoter.start_canary("other", Canary(model="spare", artefact="b"), reason="")
    await desk.promoter.promote(opened, reason="better")
    surfaces = (await desk.writer.effective()).current.config.surfaces
    assert (surfaces["home"].canary, surfaces["other"].canary) == (None, Canary(model="spare", artefact="b"))
    assert [o.value for o in await desk.writer.history() if o.key == canary_key("home")][-1] is None


# --- what is taken back --------------------------------------------------------------------------------------------


async def test_a_promotion_counts_as_adopted_by_its_own_entry(desk: Desk) -> None:
    """That the model goes on from the artefact already says nothing: it was promoted before."""
    opened = await desk.artefact()
    first = await desk.promoter.promote(opened, reason="")
    await desk.adopt(first)
    assert await desk.promoter.is_adopted(first)
    again = await desk.promoter.promote(opened, reason="")
    assert not await desk.promoter.is_adopted(again)


async def test_each_rollback_takes_one_more_promotion_back(desk: Desk) -> None:
    opened = await desk.artefact()
    names = [await desk.adopt(await desk.promoter.promote(opened, reason="")) for _ in range(2)]
    for name in reversed(names):
        assert (await desk.promoter.replaced(MODEL, history=desk.history)).manifest.artefact == name
        await desk.adopt(await desk.promoter.roll_back(MODEL, history=desk.history, reason=""))
    with pytest.raises(NotFound, match="no promotion to take back"):
        await desk.promoter.roll_back(MODEL, history=desk.history, reason="")


async def test_two_who_roll_back_at_once_take_the_same_promotion_back(desk: Desk) -> None:
    opened = await desk.artefact()
    older, newer = [await desk.adopt(await desk.promoter.promote(opened, reason="")) for _ in range(2)]
    history = list(desk.history)
    both = [await desk.promoter.roll_back(MODEL, history=history, reason="") for _ in range(2)]
    assert [entered.promotion.artefact for entered in both] == [newer, newer]
    for entered in both:
        await desk.adopt(entered)
    assert (await desk.promoter.replaced(MODEL, history=desk.history)).manifest.artefact == older


async def test_a_promotion_that_the_learner_refused_is_passed_over(desk: Desk) -> None:
    opened = await desk.artefact()
    name = await desk.adopt(await desk.promoter.promote(opened, reason=""))
    refused = desk.enter(await desk.promoter.promote(opened, reason=""))
    await desk.checkpoint(refused.position)
    assert (await desk.promoter.replaced(MODEL, history=desk.history)).manifest.artefact == name


async def test_a_promotion_that_no_learner_has_come_to_cannot_be_taken_back_yet(desk: Desk) -> None:
    opened = await desk.artefact()
    first = await desk.promoter.promote(opened, reason="")
    await desk.adopt(first)
    desk.enter(await desk.promoter.promote(opened, reason=""))
    await desk.checkpoint(first.position)
    with pytest.raises(NotFound, match="not adopted yet"):
        await desk.promoter.roll_back(MODEL, history=desk.history, reason="")


# --- the watch of a model that serves everybody --------------------------------------------------------------------


@pytest.mark.parametrize("is_worse", [True, False])
async def test_a_promoted_model_is_taken_back_when_what_it_replaced_would_be_better(desk: Desk, is_worse: bool) -> None:
    """The log is of a model that shows everybody the same; what it replaced knows each segment, or is the control."""
    desk.now_ms = LOG[2_000].payload.decided_at_unix_ms - 1
    entered = await desk.promoter.promote(await desk.artefact("bad"), reason="")
    if is_worse:
        name = await desk.adopt(entered)
    else:
        name = await desk.adopt(entered, learner=Learner(desk.config.model_spec(MODEL)))
    items = await desk.items.append(ITEMS_STREAM, [encode(ItemUpsert(item=Item(id=i))) for i in WORLD.item_ids])
    _archive(desk, [entered], LOG[2_000:], catalogue=items[-1])
    commands = _commands(desk, clock=lambda: desk.now_ms)
    learner = asyncio.create_task(_adopt_next(desk))
    verdict = await commands.watch_promoted("bad", watch_s=0.0, every_s=0.0, confidence=0.98)
    learner.cancel()
    assert verdict.bounds is not None
    assert verdict.bounds.n == 2_000
    assert verdict.action == ("rollback" if is_worse else "promoted")
    stages = [(p.stage, p.artefact, p.reason.split(":")[0]) for _, p in await desk.promotions()]
    back = [("rollback", name, "what was replaced is better")] if is_worse else []
    assert stages == [("full", "bad", ""), *back]


@pytest.mark.parametrize("is_superseded", [True, False])
async def test_the_watch_of_a_promotion_takes_no_other_promotion_back(desk: Desk, is_superseded: bool) -> None:
    """What the other promotion replaced looks better, and would be taken back in the place of the watched one."""
    began_ms = desk.now_ms = LOG[2_000].payload.decided_at_unix_ms - 1
    opened = await desk.artefact("bad")
    control = Learner(desk.config.model_spec(MODEL))
    entered = [await desk.promoter.promote(opened, reason="") for _ in range(2)]
    # The trained model before the first promotion, the control before the watched one.
    await desk.adopt(entered[0])
    await desk.adopt(entered[1], learner=control)
    items = await desk.items.append(ITEMS_STREAM, [encode(ItemUpsert(item=Item(id=i))) for i in WORLD.item_ids])
    _archive(desk, entered, LOG[2_000:], catalogue=items[-1])
    desk.now_ms = NOW_MS
    n_asked, has_looked = 0, asyncio.Event()

    def clock() -> int:
        nonlocal n_asked
        n_asked += 1
        if n_asked == 2:
            has_looked.set()
        return began_ms

    async def act() -> None:
        await has_looked.wait()
        if is_superseded:
            await desk.adopt(await desk.promoter.promote(opened, reason=""))
        else:
            await desk.adopt(await desk.promoter.roll_back(MODEL, history=desk.history, reason="by hand"))

    watch = _commands(desk, clock=clock).watch_promoted("bad", watch_s=3_600.0, every_s=0.05, confidence=0.98)
    verdict, _ = await asyncio.gather(watch, act())
    assert verdict.action == "ended"
    assert len(await desk.promotions()) == 3


def _commands(desk: Desk, *, clock: Callable[[], int]) -> ModelCommands:
    return ModelCommands(
        desk.config,
        "",
        desk.promoter,
        ModelRegistry(desk.config, desk.models),
        Canaries(desk.config, folder=desk.config.data_path / "archive", models=desk.models, writer=desk.writer),
        desk.journal,  # type: ignore[arg-type]
        desk.items,  # type: ignore[arg-type]
        clock,
        "me",
    )


async def _adopt_next(desk: Desk) -> None:
    """Adopt the next promotion, as a learner does."""
    after = {0: entry_id_of((await desk.promotions())[-1][0])}
    while not (found := (await desk.journal.read(after, count=1, block_ms=50)).get(0, [])):
        pass
    position, promotion = position_of(0, found[0][0]), journal_decoder.decode(found[0][1])
    assert isinstance(promotion, Promotion)
    await desk.adopt(Entered(promotion, position))


def _archive(desk: Desk, entered: list[Entered], log: list[Outcome], *, catalogue: str) -> None:
    """Archive promotions and what was decided after them, with what became of that."""
    entries: list[tuple[str, JournalEntry]] = [(entry_id_of(one.position), one.promotion) for one in entered]
    rows = []
    for joined in log:
        decision = joined.payload
        entry_id = f"{decision.decided_at_unix_ms}-0"
        versions = msgspec.structs.replace(decision.versions, catalogue=catalogue)
        entries.append((entry_id, msgspec.structs.replace(decision, versions=versions)))
        rows.append(outcome_row(joined, entry_id=entry_id))
    batch = ArchiveBatch(positions={0: entries[-1][0]}, entries={0: entries}, outcomes=rows, joins=OpenJoins())
    ParquetArchive(desk.config.data_path / "archive").write(batch)
