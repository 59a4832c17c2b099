"""A promoted model is adopted at its place in the journal, the same whatever crashes, and can be taken back."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import numpy as np
import pytest

from bandit.learner import Learner
from bandit.vw_format import encode as encode_features
from service.adoption import predecessor_id
from service.errors import Fenced, StoreUnavailable
from service.journal_reader import position_of
from service.messages import Artefact, Checkpoint, ModelSnapshot, Promotion, encode
from service.model_registry import ArtefactError, Manifest, build_artefact, misfit, open_artefact
from tests.unit.test_learn import CONFIG, MODEL, SCHEMA, Crash, Reader, World

SPEC = CONFIG.model_spec(MODEL)


def _trained(reward: float = 1.0) -> Learner:
    learner = Learner(SPEC)
    for n in range(30):
        shared = {"context": encode_features("context", {f"device={n % 3}": 1.0})}
        learner.learn(shared, {"item": encode_features("item", {f"id=i{n % 5}": 1.0})}, reward=reward, propensity=0.5)
    return learner


def _manifest(learner: Learner, **changed: Any) -> Manifest:
    fields = {
        "artefact": "a",
        "model": MODEL,
        "kind": "retrained",
        "parent": "",
        "arguments": SPEC.arguments(),
        "bits": SPEC.bits,
        "schema_version": SCHEMA.version,
        "created_at": "2026-11-23T00:00:00+00:00",
        "workspace_sha256": hashlib.sha256(learner.serialize()).hexdigest(),
    }
    return Manifest(**(fields | changed))


def _artefact(learner: Learner, **changed: Any) -> bytes:
    return build_artefact(_manifest(learner, **changed), learner.serialize(), hmac_key=None)


async def _promote(world: World, stored: bytes, *, artefact: str = "a", checksum: str | None = None) -> str:
    """Store an artefact, enter its promotion, and return the entry's id."""
    await world.models.put_artefact(MODEL, artefact, stored)
    promotion = Promotion(
        at_unix_ms=world.now_ms,
        model=MODEL,
        artefact=artefact,
        checksum=checksum or hashlib.sha256(stored).hexdigest(),
        stage="full",
        author="test",
        reason="",
    )
    return (await world.journal.append(0, [encode(promotion)]))[0]


async def _learn_some(world: World, prefix: str) -> None:
    for n in range(6):
        world.now_ms += 500
        await world.decide(f"{prefix}{n}", user=n % 3)
        await world.happen(f"{prefix}{n}", slot=0)
    world.now_ms += 60_000
    await world.beat()


def _weights(learner: Learner) -> tuple[bytes, bytes]:
    weights = learner.all_weights()
    return weights.indices.tobytes(), weights.values.tobytes()


async def _checkpoint(world: World) -> Checkpoint:
    stored = await world.models.load_checkpoint(MODEL)
    assert stored is not None
    return msgspec.msgpack.decode(stored, type=Checkpoint)


async def _saved(world: World) -> tuple[bytes, bytes]:
    return _weights(Learner(SPEC, (await _checkpoint(world)).workspace))


async def test_a_promoted_model_is_the_artefact_and_every_worker_serves_it() -> None:
    world, candidate = World(), _trained()
    loop = world.loop()
    await loop.start()
    reader = Reader.of(world)
    await reader.follower.catch_up()
    await _learn_some(world, "before")
    await loop.step()
    await _promote(world, _artefact(candidate))
    await loop.step()
    await loop.save()
    while await reader.follower._read(block_ms=0):
        pass
    assert await _saved(world) == _weights(candidate)
    assert (await _checkpoint(world)).artefact == "a"
    expected = np.zeros(1 << SPEC.bits, dtype=np.float32)
    weights = candidate.all_weights()
    expected[weights.indices] = weights.values
    assert np.array_equal(reader.served._table.weights, expected)
    assert reader.served.version == loop.version


async def test_learning_goes_on_from_the_artefact_with_what_was_open() -> None:
    world, candidate = World(), _trained()
    loop = world.loop()
    await loop.start()
    await world.decide("open", n_slots=1)
    await _promote(world, _artefact(candidate))
    await world.happen("open", slot=0)
    await loop.step()
    await loop.save()
    expected = Learner(SPEC, candidate.serialize())
    shared = {
        "context": encode_features("context", {"device=0": 1.0}),
        "position": SCHEMA.encode("position", {"slot": 0}),
    }
    expected.learn(shared, {"item": encode_features("item", {"id=i0": 1.0})}, reward=1.0, propensity=0.75)
    assert await _saved(world) == _weights(expected)


async def test_what_a_promotion_replaces_is_kept_and_can_be_gone_back_to() -> None:
    world = World()
    loop = world.loop()
    await loop.start()
    await _learn_some(world, "d")
    while await loop.step():
        pass
    await loop.save()
    before = await _saved(world)
    entry_id = await _promote(world, _artefact(_trained()))
    await loop.step()
    name = predecessor_id(position_of(0, entry_id))
    stored = await world.models.load_artefact(MODEL, name)
    assert stored is not None
    assert open_artefact(stored, hmac_key=None).manifest.kind == "predecessor"
    await _promote(world, stored, artefact=name)
    await loop.step()
    await loop.save()
    assert await _saved(world) == before


@pytest.mark.parametrize("batch", [1, 3, 1_000])
async def test_a_crash_around_a_promotion_gives_the_model_of_no_crash(batch: int) -> None:
    states = []
    for n_crashes in (0, 5):
        world = World()
        world.journal.limit = batch
        loop = world.loop()
        await loop.start()
        for round_ in range(3):
            await _learn_some(world, f"r{round_}-")
            await _promote(world, _artefact(_trained(reward=round_ / 2), artefact=f"a{round_}"), artefact=f"a{round_}")
            await _learn_some(world, f"s{round_}-")
            if round_ < n_crashes:
                # Whatever was applied since the last checkpoint is applied again by the next learner.
                await loop.step()
                loop = world.loop()
                await loop.start()
                await loop.step()
                await loop.save()
                await loop.step()
                loop = world.loop()
                await loop.start()
        while await loop.step():
            pass
        await loop.save()
        states.append((await world.state(), (await _checkpoint(world)).artefact))
    assert states[0] == states[1]
    assert states[0][1] == "a2"


async def test_an_outage_while_an_artefact_is_fetched_or_its_predecessor_stored_loses_no_entry() -> None:
    states = []
    for fails in (False, True):
        world = World()
        loop = world.loop()
        await loop.start()
        await _learn_some(world, "a")
        await _promote(world, _artefact(_trained()))
        await _learn_some(world, "b")
        if fails:
            load, put = world.models.load_artefact, world.models.put_artefact

            async def away(*_: Any) -> Any:
                raise StoreUnavailable("away")

            world.models.load_artefact = away
            with pytest.raises(StoreUnavailable):
                await loop.step()
            world.models.load_artefact, world.models.put_artefact = load, away
            with pytest.raises(StoreUnavailable):
                await loop.step()
            with pytest.raises(StoreUnavailable):
                await loop.save()
            world.models.put_artefact = put
        while await loop.step():
            pass
        await loop.save()
        states.append(await world.state())
        assert len(await world.models.artefact_ids(MODEL)) == 2
    assert states[0] == states[1]


async def test_a_crash_before_the_predecessor_is_stored_stores_it_later() -> None:
    world = World()
    loop = world.loop()
    await loop.start()
    await _learn_some(world, "a")
    await _promote(world, _artefact(_trained()))

    async def crash(*_: Any) -> None:
        raise Crash

    put, world.models.put_artefact = world.models.put_artefact, crash
    with pytest.raises(Crash):
        await loop.step()
    world.models.put_artefact = put
    loop = world.loop()
    await loop.start()
    while await loop.step():
        pass
    assert [name for name in await world.models.artefact_ids(MODEL) if name.startswith("before-")]


@pytest.mark.parametrize("batch", [1, 1_000])
async def test_an_artefact_that_is_promoted_taken_back_and_promoted_again_is_adopted_however_entries_are_read(
    batch: int,
) -> None:
    world, candidate = World(), _trained()
    world.journal.limit = batch
    loop = world.loop()
    await loop.start()
    await _promote(world, _artefact(candidate))
    await _promote(world, _artefact(_trained(reward=0.2), artefact="b"), artefact="b")
    await _promote(world, _artefact(candidate))
    while await loop.step():
        pass
    await loop.save()
    assert (await world.counters()).get("promotion_refused", 0) == 0
    assert ((await _checkpoint(world)).artefact, await _saved(world)) == ("a", _weights(candidate))


async def test_what_was_replaced_is_stored_only_once_its_successor_is_published() -> None:
    world = World()
    loop = world.loop()
    await loop.start()
    await _promote(world, _artefact(_trained()))
    world.models.fail = StoreUnavailable("away")
    with pytest.raises(StoreUnavailable):
        await loop.step()
    assert await world.models.artefact_ids(MODEL) == ["a"]
    await loop.step()
    assert len(await world.models.artefact_ids(MODEL)) == 2
    stored = await world.models.load_snapshot(MODEL)
    assert stored is not None
    assert msgspec.msgpack.decode(stored, type=ModelSnapshot).artefact == "a"


async def test_evidence_for_a_predecessor_is_later_than_everything_it_has_learned() -> None:
    world = World()
    loop = world.loop()
    await loop.start()
    await _learn_some(world, "d")
    entry_id = await _promote(world, _artefact(_trained()))
    await loop.step()
    position = position_of(0, entry_id)
    stored = await world.models.load_artefact(MODEL, predecessor_id(position))
    assert stored is not None
    assert open_artefact(stored, hmac_key=None).manifest.to_ms == position[0] + 1


async def test_a_takeover_at_a_promotion_leaves_the_model_and_the_predecessor_of_no_takeover() -> None:
    """The old learner applies the entry and is fenced when it publishes: the new one applies it for good."""
    states = []
    for is_taken_over in (False, True):
        world = World()
        loop = world.loop()
        await loop.start()
        await _learn_some(world, "a")
        entry_id = await _promote(world, _artefact(_trained()))
        await _learn_some(world, "b")
        if is_taken_over:
            newer = world.loop()
            await newer.start()
            with pytest.raises(Fenced):
                await loop.step()
            assert await world.models.artefact_ids(MODEL) == ["a"]
            loop = newer
        while await loop.step():
            pass
        await loop.save()
        kept = await world.models.load_artefact(MODEL, predecessor_id(position_of(0, entry_id)))
        assert kept is not None
        opened = open_artefact(kept, hmac_key=None)
        states.append((await world.state(), _weights(Learner(SPEC, opened.workspace)), opened.manifest.n_rows))
    assert states[0] == states[1]


@pytest.mark.parametrize("wrong", ["checksum", "missing", "damaged", "schema"])
async def test_an_artefact_that_cannot_be_trusted_is_refused_and_counted(wrong: str) -> None:
    world = World()
    loop = world.loop()
    await loop.start()
    await _learn_some(world, "a")
    stored = _artefact(_trained(), **({"schema_version": "other"} if wrong == "schema" else {}))
    if wrong == "damaged":
        artefact = msgspec.msgpack.decode(stored, type=Artefact)
        stored = encode(msgspec.structs.replace(artefact, workspace=artefact.workspace[:-1] + b"x"))
    await _promote(world, stored, checksum="0" * 64 if wrong == "checksum" else None)
    if wrong == "missing":
        world.models._artefacts.clear()
    while await loop.step():
        pass
    await loop.save()
    assert (await world.counters())["promotion_refused"] == 1
    undisturbed = World()
    other = undisturbed.loop()
    await other.start()
    await _learn_some(undisturbed, "a")
    while await other.step():
        pass
    await other.save()
    assert await _saved(world) == await _saved(undisturbed)


async def test_a_promotion_of_another_model_changes_nothing() -> None:
    world = World()
    loop = world.loop()
    await loop.start()
    promotion = Promotion(
        at_unix_ms=1, model="other", artefact="a", checksum="", stage="full", author="", reason="promotion"
    )
    await world.journal.append(0, [encode(promotion)])
    await loop.step()
    await loop.save()
    checkpoint = await _checkpoint(world)
    assert (checkpoint.artefact, checkpoint.counters.get("promotion_refused", 0)) == ("", 0)


async def test_a_snapshot_says_what_the_model_goes_on_from() -> None:
    world = World()
    loop = world.loop()
    await loop.start()
    await _promote(world, _artefact(_trained()))
    await loop.step()
    stored = await world.models.load_snapshot(MODEL)
    assert stored is not None
    assert msgspec.msgpack.decode(stored, type=ModelSnapshot).artefact == "a"


def test_every_byte_of_a_signed_artefact_is_protected() -> None:
    learner = _trained()
    stored = build_artefact(_manifest(learner), learner.serialize(), hmac_key=b"key")
    assert open_artefact(stored, hmac_key=b"key").manifest.artefact == "a"
    rng = np.random.default_rng(3)
    for place in rng.integers(len(stored), size=200).tolist():
        damaged = bytearray(stored)
        damaged[place] ^= 1 << int(rng.integers(8))
        try:
            opened = open_artefact(bytes(damaged), hmac_key=b"key")
        except ArtefactError:
            continue
        # Only the envelope's own version may differ unseen: what is loaded is what was signed.
        assert (opened.manifest, opened.workspace) == (_manifest(learner), learner.serialize())
    with pytest.raises(ArtefactError, match="wrongly signed"):
        open_artefact(stored, hmac_key=b"other")
    with pytest.raises(ArtefactError, match="not signed"):
        open_artefact(_artefact(learner), hmac_key=b"key")


def test_a_model_goes_on_at_its_own_learning_rate_and_refuses_another_shape() -> None:
    learner = _trained()
    faster = [*SPEC.arguments()]
    faster[faster.index("-l") + 1] = "0.5"
    faster[faster.index("--power_t") + 1] = "0.5"
    assert misfit(_manifest(learner, arguments=faster), SPEC) == ""
    assert "arguments" in misfit(_manifest(learner, arguments=[*faster, "-q", "UI"]), SPEC)
    assert "arguments" in misfit(_manifest(learner, arguments=[*faster, "--noconstant"]), SPEC)
    assert "bits" in misfit(_manifest(learner, bits=13), SPEC)
