"""The archiver: outcomes are what the learner learned, archived once, whatever happens in between."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bandit.joining import Joined
from service import processes
from service.adapters.archive_files import read_rows, reading
from service.adapters.parquet_archive import ParquetArchive
from service.archive import Archiver
from service.config import ArchiveConfig
from service.errors import StoreUnavailable
from service.learn import LearnerLoop
from service.messages import Decision, Heartbeat, encode, journal_decoder
from service.metrics import Metrics
from tests.unit.test_learn import CONFIG, HAPPENINGS, World, _drain, _write

ARCHIVE = ArchiveConfig(flush_s=1e9, flush_entries=3, journal_keep_s=1e-3)
# What is done to the archiver between entries.
TROUBLE = st.lists(
    st.sampled_from(["step", "step", "flush", "crash", "crash before state", "crash after state", "disk full", "away"]),
    max_size=20,
)
Row = tuple[str, int, str, float, str, int, int]


class Crash(BaseException):
    """The archiver's process ends here."""


class Recording(LearnerLoop):
    """Keeps what it is given to learn, late rewards too."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.joined: list[Row] = []

    def _learn(self, joined: Joined[Any]) -> None:
        item_id = joined.payload.item_ids[joined.slot]
        self.joined.append(
            (joined.event_id, joined.slot, item_id, joined.reward, joined.kind, joined.at_ms, joined.delay_ms)
        )
        super()._learn(joined)


class Files(ParquetArchive):
    """An archive whose next state can fail to be written, before it is or after."""

    fail: BaseException | None = None
    happens = False

    def _write_state(self, state: Any) -> None:
        fail, self.fail = self.fail, None
        if fail is None or self.happens:
            super()._write_state(state)
        if fail is not None:
            raise fail


def archiver_of(world: World, folder: Path, archive: ArchiveConfig = ARCHIVE) -> tuple[Archiver, Files]:
    files = Files(folder)
    config = msgspec.structs.replace(CONFIG, archive=archive)
    return (
        Archiver(
            config=config,
            journal=world.journal,
            models=world.models,
            archive=files,
            metrics=Metrics(),
            clock=lambda: world.now_ms,
        ),
        files,
    )


async def learned(world: World) -> list[Row]:
    """What one undisturbed learner joins, in order."""
    loop = Recording(
        config=CONFIG,
        model="m",
        journal=world.journal,
        models=world.models,
        users=world.users,
        metrics=Metrics(),
        clock=lambda: 0,
    )
    await loop.start()
    await _drain(loop)
    await loop.save()
    return loop.joined


def archived(folder: Path) -> list[Row]:
    names = ["event_id", "slot", "item_id", "reward", "kind", "at_unix_ms", "delay_ms"]
    with reading(folder):
        return [tuple(row[name] for name in names) for _, row in read_rows(folder, "outcomes", names)]  # type: ignore[misc]


async def _disturbed(world: World, folder: Path, limit: int, trouble: list[str]) -> None:
    world.journal.limit = limit
    archiver, files = archiver_of(world, folder)
    for what in trouble:
        files.happens = what == "crash after state"
        files.fail = OSError(28, "full") if what == "disk full" else Crash() if what.startswith("crash ") else None
        try:
            if what == "crash":
                raise Crash
            await (archiver.flush() if what == "flush" else archiver.step())
        except OSError:
            continue
        except Crash:
            archiver, files = archiver_of(world, folder)
    files.fail = None
    world.journal.limit = 1_000
    for _ in range(4):
        await archiver.step()
    await archiver.flush()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HAPPENINGS, TROUBLE, st.integers(1, 6), st.integers(1, 3))
async def test_outcomes_are_what_the_learner_joined_in_its_order_whatever_happens_to_the_archiver(
    happenings: list[Any], trouble: list[str], limit: int, n_partitions: int
) -> None:
    world = World(n_partitions)
    await _write(world, happenings)
    # Nothing may be trimmed before both have read it, so the learner starts when the archiver is done.
    with tempfile.TemporaryDirectory() as folder:
        await _disturbed(world, Path(folder), limit, trouble)
        expected = await learned(world)
        assert archived(Path(folder)) == expected
        drawn = Counter((event_id, slot) for event_id, slot, *_, kind, _, _ in expected if kind != "late")
        assert not drawn or max(drawn.values()) == 1


async def test_the_stories_of_the_strategy_are_rich_enough_to_tell() -> None:
    """Late, duplicated, reordered and aggregated rewards are in the comparison above; this one has them all at once."""
    world = World()
    await world.happen("e0", slot=0, client_id="before")
    await world.decide("e0")
    await world.happen("e0", slot=1, client_id="c")
    await world.happen("e0", slot=1, client_id="c")
    await world.decide("e1", surface="slow")
    for value in (3.0, 4.0):
        await world.happen("e1", event_type="play", slot=0, value=value)
    world.now_ms += 7_000
    await world.happen("e0", slot=0, client_id="after")
    world.now_ms += 60_000
    await world.beat()
    with tempfile.TemporaryDirectory() as folder:
        await _disturbed(world, Path(folder), 2, [])
        rows = archived(Path(folder))
        assert rows == await learned(world)
    assert Counter(kind for *_, kind, _, _ in rows) == {"reward": 3, "late": 1, "default": 1}
    assert [reward for event_id, slot, _, reward, kind, *_ in rows if (event_id, slot) == ("e1", 0)] == [
        pytest.approx(0.7)
    ]


async def test_an_event_that_had_its_decision_does_not_wait_for_another_after_a_restart() -> None:
    """Its decision is closed and before the oldest open entry, so that rereading does not find it."""
    world = World()
    await world.decide("e0")
    world.now_ms += 10_000
    await world.decide("open", surface="slow")
    world.now_ms += 5_000
    await world.happen("e0", slot=0)
    world.now_ms += 7_000
    await world.beat()
    with tempfile.TemporaryDirectory() as folder:
        archiver, _ = archiver_of(world, Path(folder))
        await archiver.step()
        await archiver.flush()
        world.now_ms += 1_000
        await world.journal.append(0, [encode(await _decision(world, "e0"))])
        world.now_ms += 60_000
        await world.beat()
        archiver, _ = archiver_of(world, Path(folder))
        await archiver.step()
        await archiver.flush()
        assert archived(Path(folder)) == await learned(world)


async def _decision(world: World, event_id: str) -> Decision:
    """A decision of the journal, as when a caller uses its id again after the claim has expired."""
    for _, payload in (await world.journal.read({0: "0-0"}, count=100, block_ms=0))[0]:
        entry = journal_decoder.decode(payload)
        if isinstance(entry, Decision) and entry.event_id == event_id:
            return entry
    raise AssertionError(event_id)


async def test_the_journal_is_kept_from_the_archivers_oldest_open_entry_on() -> None:
    """The learner is done with everything, the archiver is behind with a decision open: a restart must find it."""
    world = World()
    await world.decide("e0")
    world.now_ms += 1_000
    await world.beat()
    with tempfile.TemporaryDirectory() as folder:
        archiver, _ = archiver_of(world, Path(folder))
        await archiver.step()
        world.now_ms += 40_000
        await world.beat()
        assert len(await learned(world)) == 2
        await archiver.flush()
        kept = await world.journal.read({0: "0-0"}, count=100, block_ms=0)
        kinds = [type(journal_decoder.decode(payload)) for _, payload in kept[0]]
        assert kinds == [Decision, Heartbeat, Heartbeat]
        archiver, _ = archiver_of(world, Path(folder))
        await archiver.step()
        await archiver.flush()
        assert [kind for *_, kind, _, _ in archived(Path(folder))] == ["default", "default"]
        kept = await world.journal.read({0: "0-0"}, count=100, block_ms=0)
        assert len(kept[0]) == 1


async def test_an_idle_archiver_trims_what_has_become_old_enough() -> None:
    world = World()
    keep = msgspec.structs.replace(ARCHIVE, flush_s=1.0, journal_keep_s=300.0)
    await world.decide("e0")
    await world.happen("e0", slot=0)
    world.now_ms += 100_000
    await world.beat()
    await learned(world)
    with tempfile.TemporaryDirectory() as folder:
        archiver, _ = archiver_of(world, Path(folder), keep)
        world.now_ms += 2_000
        await archiver.step()
        assert len((await world.journal.read({0: "0-0"}, count=100, block_ms=0))[0]) == 3
        world.now_ms += 299_000
        await archiver.step()
        kept = await world.journal.read({0: "0-0"}, count=100, block_ms=0)
        assert [type(journal_decoder.decode(payload)) for _, payload in kept[0]] == [Heartbeat]


async def test_an_outage_between_archiving_and_trimming_archives_nothing_twice() -> None:
    world = World()
    await world.decide("e0")
    await world.happen("e0", slot=0)
    with tempfile.TemporaryDirectory() as folder:
        archiver, _ = archiver_of(world, Path(folder))
        loads, world.models.load_progress = world.models.load_progress, _away  # type: ignore[method-assign]
        for _ in range(2):
            try:
                await archiver.step()
                await archiver.flush()
            except StoreUnavailable:
                pass
        world.models.load_progress = loads  # type: ignore[method-assign]
        await archiver.flush()
        assert len(archived(Path(folder))) == 1
        with reading(Path(folder)):
            assert len(list(read_rows(Path(folder), "events", ["event_id"]))) == 1


async def _away(_: str) -> bytes | None:
    raise StoreUnavailable("away")


async def test_a_clock_that_goes_back_does_not_keep_entries_from_the_archive(tmp_path: Path) -> None:
    world = World()
    world.now_ms = 10_000_000
    archiver, _ = archiver_of(world, tmp_path, ArchiveConfig(flush_s=10.0, flush_entries=1_000))
    await world.decide("e0")
    world.now_ms -= 3_600_000
    await archiver.step()
    assert ParquetArchive(tmp_path).position(0) != "0-0"


async def test_an_archiver_that_is_told_to_end_while_the_store_is_away_ends_in_good_order(tmp_path: Path) -> None:
    world = World()
    archiver, _ = archiver_of(world, tmp_path)
    await world.decide("e0")
    await archiver.step()
    stop = asyncio.Event()
    stop.set()

    async def away(model: str) -> bytes:
        raise StoreUnavailable("away")

    world.models.load_progress = away  # type: ignore[method-assign]
    await processes._archive(archiver, stop)
    assert ParquetArchive(tmp_path).position(0) != "0-0"
