"""The watch itself: who is behind, what cannot be read, what survives."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from service.errors import StoreUnavailable
from service.health import HealthWatch, _entry_decoder
from service.health_report import fetch_verdict
from service.messages import Checkpoint, HealthVerdict, Heartbeat, WeightDelta, encode
from service.processes import _watch
from tests.make_golden import VALUES
from tests.statistical.collapse_world import MODEL, World


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return World(rate=0.1, seed=1, folder=tmp_path)


async def _beat(world: World, *, seconds: int) -> None:
    """Let time pass: an entry, and a look of the watch."""
    world.now_ms += seconds * 1_000
    await world.journal.append(0, [encode(Heartbeat(at_unix_ms=world.now_ms))])
    await world.watch.step()


def _checkpoint(world: World, *, learned_at_ms: int) -> bytes:
    checkpoint = Checkpoint(
        epoch=1,
        model_version=1,
        schema_version="",
        positions={"0": f"{learned_at_ms}-0"},
        oldest_open={},
        workspace=b"",
        n_learned=0,
        loss_sum=0.0,
        counters={},
    )
    return encode(checkpoint)


async def test_a_learner_that_stands_still_is_an_alarm_until_it_has_caught_up(world: World) -> None:
    epoch = await world.models.take_epoch(MODEL)
    await world.models.save_checkpoint(MODEL, epoch, _checkpoint(world, learned_at_ms=world.now_ms))
    for _ in range(4):
        await _beat(world, seconds=20)
    assert [alarm.name for alarm in world.watch.verdict().alarms] == []
    for _ in range(3):
        await _beat(world, seconds=20)
    (alarm,) = world.watch.verdict().alarms
    assert (alarm.name, alarm.level) == (f"learner_lag:{MODEL}", "alarm")
    since = alarm.since_unix_ms
    await _beat(world, seconds=20)
    assert world.watch.verdict().alarms[0].since_unix_ms == since
    await world.models.save_checkpoint(MODEL, epoch, _checkpoint(world, learned_at_ms=world.now_ms))
    await _beat(world, seconds=20)
    assert world.watch.verdict().alarms == []


async def test_a_journal_that_rests_leaves_nobody_behind(world: World) -> None:
    epoch = await world.models.take_epoch(MODEL)
    await world.models.save_checkpoint(MODEL, epoch, _checkpoint(world, learned_at_ms=world.now_ms))
    await _beat(world, seconds=20)
    await world.models.save_checkpoint(MODEL, epoch, _checkpoint(world, learned_at_ms=world.now_ms))
    world.now_ms += 8 * 3_600_000
    await _beat(world, seconds=1)
    assert world.watch.verdict().alarms == []


async def test_the_archiver_is_watched_as_the_learner_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.watch, "_archived", lambda _: "0-0")
    for _ in range(9):
        await _beat(world, seconds=20)
    assert "archiver_lag" in [alarm.name for alarm in world.watch.verdict().alarms]


async def test_the_norm_of_the_weights_and_the_version_to_be_served_are_read_off_what_is_published(
    world: World,
) -> None:
    epoch = await world.models.take_epoch(MODEL)
    delta = WeightDelta(epoch=epoch, base_version=4, version=5, indices=b"", values=b"")
    await world.models.publish_delta(MODEL, epoch, encode(delta))
    saved = msgspec.msgpack.decode(_checkpoint(world, learned_at_ms=world.now_ms), type=Checkpoint)
    await world.models.save_checkpoint(MODEL, epoch, encode(msgspec.structs.replace(saved, weight_norm=5.0)))
    await _beat(world, seconds=20)
    assert world.watch._norms == {MODEL: 5.0}
    # A follower needs a moment: what it should serve by now is what had been published one look before.
    assert world.watch.verdict().model_versions == {}
    await _beat(world, seconds=20)
    assert world.watch.verdict().model_versions == {MODEL: 5}


async def test_the_watch_reads_no_whole_model(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def too_much(model: str) -> bytes:
        raise AssertionError(f"the watch read all of {model}")

    epoch = await world.models.take_epoch(MODEL)
    await world.models.save_checkpoint(MODEL, epoch, _checkpoint(world, learned_at_ms=world.now_ms))
    monkeypatch.setattr(world.models, "load_checkpoint", too_much)
    monkeypatch.setattr(world.models, "load_snapshot", too_much)
    await _beat(world, seconds=20)
    assert world.watch.verdict().values[f"learner_lag:{MODEL}"] == 0.0


@pytest.mark.parametrize("name", ["event", "heartbeat", "config_change", "erasure", "promotion", "decision"])
def test_every_kind_of_journal_entry_can_be_read(name: str) -> None:
    _entry_decoder.decode(encode(VALUES[name]))


async def test_an_entry_that_cannot_be_read_stops_nothing(world: World) -> None:
    await world.journal.append(0, [b"\xc1"])
    await _beat(world, seconds=1)
    assert world.watch.verdict().journal_ms == world.now_ms


async def test_a_state_file_that_is_damaged_is_begun_anew(world: World, tmp_path: Path) -> None:
    world.watch.save()
    (tmp_path / "state.msgpack").write_bytes(b"\x93")
    assert world.build_watch().verdict().alarms == []


async def test_a_full_disk_costs_nothing_that_was_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(_watch: HealthWatch) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(HealthWatch, "save", save)
    await world.start()
    verdicts = await world.run(180)
    # Two minutes are closed, the third is still open.
    assert len(world.watch._intervals) == 2
    assert verdicts[-1].journal_ms > 0


async def test_the_verdict_is_published_for_every_worker(world: World) -> None:
    await _beat(world, seconds=1)
    stored = await world.board.fetch()
    assert stored is not None
    assert msgspec.msgpack.decode(stored, type=HealthVerdict) == await fetch_verdict(world.board, now_ms=world.now_ms)


async def test_a_watch_that_fails_ends_alone_and_one_without_a_store_waits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    async def step(_watch: HealthWatch) -> None:
        nonlocal calls
        calls += 1
        raise StoreUnavailable("away") if calls == 1 else RuntimeError("a bug")

    monkeypatch.setattr(HealthWatch, "step", step)
    await _watch(world.watch, asyncio.Event())
    assert calls == 2
