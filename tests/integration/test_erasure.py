"""A user asks to be forgotten: store, journal and archive forget, and everything goes on without them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from service.adapters.archive_files import SCHEMAS, n_erased, read_rows, reading
from service.export import Exporter, Selection
from service.messages import Decision, Event, journal_decoder
from service.numerics import keyed_digest
from tests.feature_world import SALT, World
from tests.integration.test_feature_identity import memory_world


async def _world(folder: Path) -> tuple[World, str]:
    """A world whose journal is kept for ten minutes, and the key of a user who was just erased from it."""
    world = memory_world(folder, seed=5, n_partitions=2)
    archive = msgspec.structs.replace(world.config.archive, journal_keep_s=600.0)
    world.config = msgspec.structs.replace(world.config, archive=archive)
    await world.start()
    await world.run(120)
    for _ in range(3):
        # What is open when the erasure comes.
        await world.decide(world.workers[0])
        world.now_ms += 1
    for worker in world.workers:
        await worker.shipped()
    world.now_ms += 1
    ids = {keyed_digest(f"u{n}", salt=SALT): f"u{n}" for n in range(40)}
    keys = Counter(key for decision in await _journaled(world, Decision) if (key := decision.user_key))
    key = keys.most_common(1)[0][0]
    await world.workers[0].feedback.erase(ids[key])
    await world.ports.users.erase(ids[key], at_unix_ms=world.now_ms)
    return world, key


async def _journaled(world: World, kind: type[Any]) -> list[Any]:
    found = await world.ports.journal.read({0: "0-0", 1: "0-0"}, count=100_000, block_ms=0)
    entries = [journal_decoder.decode(payload) for of_partition in found.values() for _, payload in of_partition]
    return [entry for entry in entries if isinstance(entry, kind)]


def _rows(folder: Path, kind: str) -> list[dict[str, object]]:
    with reading(folder):
        return [row for _, row in read_rows(folder, kind, SCHEMAS[kind].names)]


async def test_an_erased_user_is_in_no_file_and_every_replay_says_what_is_missing(tmp_path: Path) -> None:
    world, key = await _world(tmp_path)
    folder = world.folder / "archive"
    of_user = {decision.event_id for decision in await _journaled(world, Decision) if decision.user_key == key}
    assert len(of_user) > 3
    world.now_ms += 400_000
    await world.settle()
    await world.archiver.step()
    for kind in ("decisions", "events", "outcomes"):
        rows = _rows(folder, kind)
        assert len(rows) > 30
        assert not [row for row in rows if row["user_key"] == key or row["event_id"] in of_user]
    assert n_erased(folder, "decisions") == len(of_user)
    assert len(world.archived()) == world.n_decided - len(of_user)
    assert [row["type"] for row in _rows(folder, "control")].count("erasure") == 2
    report = Exporter(world.config, folder).write(tmp_path / "out", "dsjson-training", Selection())
    assert report.n_erased == len(of_user)
    assert not report.left_out["no_decision"]
    # The learner passes over the entry.
    assert "entry_unreadable" not in world.learner._joiner.counters
    await world.close()


async def test_the_journal_forgets_the_user_when_it_is_trimmed(tmp_path: Path) -> None:
    world, key = await _world(tmp_path)

    async def of_user() -> int:
        return sum(entry.user_key == key for entry in await _journaled(world, Decision | Event))

    assert await of_user() > 3
    world.now_ms += 400_000
    await world.settle()
    await world.learner.save()
    await world.archiver.step()
    assert await of_user() > 3, "kept for ten minutes, for explanations and audits"
    world.now_ms += 600_000
    await world.archiver.step()
    assert await of_user() == 0
    await world.close()
