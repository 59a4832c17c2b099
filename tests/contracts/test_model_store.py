"""The contract of ModelStore, run on every adapter."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from redis.asyncio import Redis

from service.adapters.redis_store import RedisModelStore
from service.errors import Fenced, StoreUnavailable
from service.messages import Checkpoint, LearnerProgress, ModelSnapshot, encode
from service.ports import ModelStore
from tests.contracts.adapters import Adapters


def _snapshot(stream_id: str, *, version: int = 1) -> bytes:
    return encode(
        ModelSnapshot(
            epoch=1,
            version=version,
            stream_id=stream_id,
            schema_version="s",
            bits=10,
            arguments=[],
            indices=b"",
            values=b"",
        )
    )


def _checkpoint(workspace: bytes, *, weight_norm: float = 0.0) -> bytes:
    return encode(
        Checkpoint(
            epoch=1,
            model_version=1,
            schema_version="s",
            positions={"0": "5-1"},
            oldest_open={"0": ""},
            workspace=workspace,
            n_learned=0,
            loss_sum=0.0,
            counters={},
            weight_norm=weight_norm,
        )
    )


async def _state(models: ModelStore, model: str = "m") -> tuple[object, ...]:
    loads = (models.load_checkpoint, models.load_snapshot, models.load_earlier_snapshot, models.last_delta)
    return tuple([await load(model) for load in loads])


async def test_a_new_model_has_nothing(adapters: Adapters) -> None:
    assert await _state(adapters.models()) == (None, None, None, None)


async def test_epochs_rise_by_one_for_each_model(adapters: Adapters) -> None:
    models = adapters.models()
    assert [await models.take_epoch("m") for _ in range(3)] == [1, 2, 3]
    assert await models.take_epoch("other") == 1


async def test_the_holder_of_the_epoch_replaces_checkpoint_and_snapshot(adapters: Adapters) -> None:
    models = adapters.models()
    epoch = await models.take_epoch("m")
    whole = _checkpoint(bytes(range(256)), weight_norm=2.5)
    for checkpoint, version in ((_checkpoint(b"one"), 1), (whole, 2)):
        await models.save_checkpoint("m", epoch, checkpoint)
        await models.publish_snapshot("m", epoch, _snapshot("0-0", version=version))
    assert await _state(models) == (whole, _snapshot("0-0", version=2), None, None)
    expected = LearnerProgress(positions={"0": "5-1"}, weight_norm=2.5, oldest_open={"0": ""})
    assert await models.load_progress("m") == expected
    assert await models.load_progress("other") is None


async def test_deltas_are_followed_in_order_on_the_models_stream(adapters: Adapters) -> None:
    models = adapters.models()
    epoch = await models.take_epoch("m")
    ids = [await models.publish_delta("m", epoch, payload) for payload in (b"a", b"b", b"c")]
    stream = models.weights_stream("m")
    followed = await adapters.change_log().read({stream: "0-0"}, count=10, block_ms=0)
    assert [(entry.entry_id, entry.payload) for entry in followed] == list(zip(ids, (b"a", b"b", b"c"), strict=True))
    assert await models.last_delta("m") == (ids[2], b"c")


async def test_a_newer_epoch_refuses_every_write_of_the_older(adapters: Adapters) -> None:
    models = adapters.models()
    old = await models.take_epoch("m")
    await models.save_checkpoint("m", old, _checkpoint(b"kept"))
    delta_id = await models.publish_delta("m", old, b"kept")
    await models.publish_snapshot("m", old, _snapshot("0-0"))
    before, progress = await _state(models), await models.load_progress("m")
    new = await models.take_epoch("m")
    writes = [
        lambda: models.save_checkpoint("m", old, _checkpoint(b"stale", weight_norm=9.0)),
        lambda: models.publish_delta("m", old, b"stale"),
        lambda: models.publish_snapshot("m", old, _snapshot(delta_id, version=9)),
    ]
    for write in writes:
        with pytest.raises(Fenced):
            await write()
    assert (await _state(models), await models.load_progress("m")) == (before, progress)
    await models.save_checkpoint("m", new, _checkpoint(b"fresh"))
    assert await models.load_checkpoint("m") == _checkpoint(b"fresh")


async def test_a_writer_without_an_epoch_is_refused(adapters: Adapters) -> None:
    with pytest.raises(Fenced):
        await adapters.models().save_checkpoint("m", 0, _checkpoint(b"x"))
    with pytest.raises(Fenced):
        await adapters.models().publish_delta("m", 1, b"x")


async def test_one_earlier_snapshot_is_kept_with_the_deltas_since(adapters: Adapters) -> None:
    models = adapters.models()
    epoch = await models.take_epoch("m")
    ids = [await models.publish_delta("m", epoch, payload) for payload in (b"a", b"b", b"c", b"d")]
    stream = models.weights_stream("m")

    async def kept() -> tuple[bytes | None, list[bytes]]:
        left = await adapters.change_log().read({stream: "0-0"}, count=10, block_ms=0)
        return await models.load_earlier_snapshot("m"), [entry.payload for entry in left]

    assert await kept() == (None, [b"a", b"b", b"c", b"d"])
    await models.publish_snapshot("m", epoch, _snapshot(ids[1], version=1))
    assert await kept() == (None, [b"a", b"b", b"c", b"d"])
    await models.publish_snapshot("m", epoch, _snapshot(ids[2], version=2))
    # The one a snapshot ends with stays: a restarted learner reads its version.
    assert await kept() == (_snapshot(ids[1], version=1), [b"b", b"c", b"d"])
    await models.publish_snapshot("m", epoch, _snapshot(ids[3], version=3))
    assert await kept() == (_snapshot(ids[2], version=2), [b"c", b"d"])
    assert await models.load_snapshot("m") == _snapshot(ids[3], version=3)
    assert await models.last_delta("m") == (ids[3], b"d")


async def test_a_snapshot_that_is_written_twice_leaves_the_earlier_one(adapters: Adapters) -> None:
    models = adapters.models()
    epoch = await models.take_epoch("m")
    ids = [await models.publish_delta("m", epoch, payload) for payload in (b"a", b"b", b"c")]
    await models.publish_snapshot("m", epoch, _snapshot(ids[0], version=1))
    for version in (2, 2, 3):
        await models.publish_snapshot("m", epoch, _snapshot(ids[2], version=version))
        assert await models.load_snapshot("m") == _snapshot(ids[2], version=version)
        assert await models.load_earlier_snapshot("m") == _snapshot(ids[0], version=1)
    left = await adapters.change_log().read({models.weights_stream("m"): "0-0"}, count=10, block_ms=0)
    assert [entry.payload for entry in left] == [b"a", b"b", b"c"]


async def test_a_follower_reads_on_from_the_snapshots_position(adapters: Adapters) -> None:
    models = adapters.models()
    epoch = await models.take_epoch("m")
    ids = [await models.publish_delta("m", epoch, payload) for payload in (b"a", b"b")]
    await models.publish_snapshot("m", epoch, _snapshot(ids[1]))
    new_id = await models.publish_delta("m", epoch, b"c")
    found = await adapters.change_log().read({models.weights_stream("m"): ids[1]}, count=10, block_ms=0)
    assert [entry.entry_id for entry in found] == [new_id]


async def test_a_lease_lasts_as_long_as_it_was_taken_for(adapters: Adapters) -> None:
    models = adapters.models()
    epoch = await models.take_epoch("m")
    assert await models.lease_holder("m") is None
    await models.hold_lease("m", epoch, lease_ms=60_000)
    assert await models.lease_holder("m") == epoch
    assert await models.lease_holder("other") is None
    await models.hold_lease("m", epoch, lease_ms=50)
    await adapters.pass_ms(80)
    assert await models.lease_holder("m") is None


async def test_a_released_lease_is_free_at_once(adapters: Adapters) -> None:
    models = adapters.models()
    epoch = await models.take_epoch("m")
    await models.hold_lease("m", epoch, lease_ms=60_000)
    await models.release_lease("m", epoch)
    assert await models.lease_holder("m") is None


async def test_an_older_epoch_cannot_touch_the_lease_of_the_newer(adapters: Adapters) -> None:
    models = adapters.models()
    old = await models.take_epoch("m")
    new = await models.take_epoch("m")
    await models.hold_lease("m", new, lease_ms=60_000)
    for write in (lambda: models.hold_lease("m", old, lease_ms=60_000), lambda: models.release_lease("m", old)):
        with pytest.raises(Fenced):
            await write()
    assert await models.lease_holder("m") == new


async def test_a_snapshot_of_many_pieces_comes_back_whole_while_others_are_written(adapters: Adapters) -> None:
    models = adapters.models()
    epoch = await models.take_epoch("m")
    snapshots = [
        msgspec.msgpack.encode({"version": version, "stream_id": "0-0", "padding": bytes([version]) * 2_000_000})
        for version in range(11)
    ]
    await models.publish_snapshot("m", epoch, snapshots[0])
    assert await models.load_snapshot("m") == snapshots[0]
    for turn in range(1, 11, 2):
        loading = asyncio.ensure_future(models.load_snapshot("m"))
        for snapshot in snapshots[turn : turn + 2]:
            await asyncio.sleep(0.001)
            await models.publish_snapshot("m", epoch, snapshot)
        assert await loading in snapshots


async def test_models_do_not_share_anything(adapters: Adapters) -> None:
    models = adapters.models()
    await models.take_epoch("m")
    epoch = await models.take_epoch("m")
    other = await models.take_epoch("other")
    await models.save_checkpoint("m", epoch, _checkpoint(b"m"))
    await models.save_checkpoint("other", other, _checkpoint(b"other"))
    await models.publish_delta("other", other, b"delta")
    assert await _state(models) == (_checkpoint(b"m"), None, None, None)
    assert await models.load_checkpoint("other") == _checkpoint(b"other")


async def test_an_artefact_never_changes_once_it_is_there(adapters: Adapters) -> None:
    models = adapters.models()
    assert (await models.load_artefact("m", "a"), await models.artefact_ids("m")) == (None, [])
    for artefact_id, content in (("b", b"b"), ("a", bytes(range(256))), ("a", b"other")):
        await models.put_artefact("m", artefact_id, content)
    assert await models.load_artefact("m", "a") == bytes(range(256))
    assert await models.artefact_ids("m") == ["a", "b"]
    assert (await models.load_artefact("other", "a"), await models.artefact_ids("other")) == (None, [])


async def test_every_call_to_a_store_that_is_away_raises_store_unavailable(nowhere: Redis) -> None:
    models = RedisModelStore(nowhere)
    calls = [
        lambda: models.take_epoch("m"),
        lambda: models.hold_lease("m", 1, lease_ms=1),
        lambda: models.release_lease("m", 1),
        lambda: models.lease_holder("m"),
        lambda: models.save_checkpoint("m", 1, _checkpoint(b"")),
        lambda: models.load_progress("m"),
        lambda: models.load_checkpoint("m"),
        lambda: models.publish_delta("m", 1, b""),
        lambda: models.publish_snapshot("m", 1, _snapshot("0-0")),
        lambda: models.last_delta("m"),
        lambda: models.load_snapshot("m"),
        lambda: models.put_artefact("m", "a", b""),
        lambda: models.load_artefact("m", "a"),
        lambda: models.artefact_ids("m"),
        lambda: models.load_earlier_snapshot("m"),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable):
            await call()
