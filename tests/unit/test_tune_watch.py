"""`hone tune --live --every`: looks come on time, go on after a restart, keep to the budget, and are all on record."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from bandit.exploration import Epsilon, Softmax
from service.adapters.memory_store import MemoryChangeLog, MemoryJournal
from service.adapters.memory_streams import MemoryStore
from service.cli import app
from service.config import Config
from service.config_writer import ConfigWriter
from service.errors import StoreUnavailable
from service.inspect_features import archive_folder
from simulators.closed_loop import START_MS, run_loop
from simulators.loop_config import SURFACE, build_config
from simulators.tune.live import Branches, Terms, choose_rate, weigh
from simulators.tune.watch import Look, LookJournal, StopSignal, journal_path, look, seen, watch
from simulators.worlds.named import QUICK_SETTINGS
from tests.unit.test_tune_live import branches
from tests.unit.test_tune_worlds import PAYS

HOUR_S = 3_600.0
HOUR_MS = 3_600_000
TERMS = Terms(budget=0.05, low=0.02, high=0.3)
# In a slot: what is given up at a rate is half of the rate of the reward, so that the budget allows 0.1.
GREEDY, EXPLORE, ALLOWED = 0.3, 0.15, 0.1


class Clock:
    """Simulated time that passes only by waiting, and stops the watch at an end."""

    def __init__(self, now_ms: int = 0, *, until_ms: int = 0) -> None:
        self.now_ms = now_ms
        self.until_ms = until_ms

    def __call__(self) -> int:
        return self.now_ms

    def wait(self, seconds: float) -> bool:
        self.now_ms += round(1000.0 * seconds)
        return self.now_ms >= self.until_ms


class Site:
    """A surface that is visited every two seconds, at whatever rate was set last; it explores as it is told."""

    def __init__(self, rate: float, terms: Terms, *, seed: int = 3) -> None:
        self.rate, self.terms, self.n_changes = rate, terms, 0
        self._seed = seed
        self._began_ms = 0
        self.log = self._new_log()

    def take(self, at_ms: int) -> Look:
        n = (at_ms - self._began_ms) // 2_000
        part = self.log.decision < n
        slots = Branches(self.log.decision[part], self.log.is_greedy[part], self.log.reward[part])
        confidence = self.terms.of_change(self.n_changes)
        found = weigh(slots, rate=self.rate, rewards_in=(0.0, 1.0), confidence=confidence)
        change = choose_rate(found, self.terms)
        if change.changes:
            self.rate, self.n_changes, self._began_ms = change.rate, self.n_changes + 1, at_ms
            self.log = self._new_log()
        return seen(found, change, surface=SURFACE, terms=self.terms, confidence=confidence, at_ms=at_ms)

    def _new_log(self) -> Branches:
        return branches(60_000, self.rate, greedy=GREEDY, explore=EXPLORE, seed=self._seed + 100 * self.n_changes)


def watched(
    take: Callable[[int], Look], folder: Path, clock: Clock, *, terms: Terms = TERMS, every_s: float = HOUR_S
) -> list[Look]:
    """The looks of one process, from its start to when its clock stops it."""
    looks: list[Look] = []
    with LookJournal(folder / "looks.ndjson", under=folder) as journal:
        watch(
            take,
            journal,
            surface=SURFACE,
            terms=terms,
            every_s=every_s,
            clock=clock,
            wait=clock.wait,
            tell=looks.append,
        )
    return looks


def misses(looks: Sequence[Look]) -> int:
    """How many looks did not hold the truth within their bounds."""
    n = 0
    for one in looks:
        assert one.rate is not None
        assert one.greedy is not None
        assert one.given_up is not None
        truth = one.rate * (GREEDY - EXPLORE)
        n += not (one.greedy[0] <= GREEDY <= one.greedy[1] and one.given_up[0] <= truth <= one.given_up[1])
    return n


def test_over_days_and_a_restart_the_rate_is_raised_and_never_above_the_budget(tmp_path: Path) -> None:
    """Bounds hold at every look of both processes."""
    site = Site(0.04, TERMS)
    looks = watched(site.take, tmp_path, Clock(until_ms=20 * HOUR_MS + 1))
    looks += watched(site.take, tmp_path, Clock(20 * HOUR_MS + 100, until_ms=32 * HOUR_MS))
    assert [one.at_unix_ms for one in looks] == [hour * HOUR_MS for hour in range(32)]
    assert site.rate > 0.05
    assert all(one.set_rate <= ALLOWED for one in looks if one.set_rate is not None)
    assert misses(looks) == 0


def test_bounds_hold_at_every_look_where_those_for_one_look_do_not(tmp_path: Path) -> None:
    """Three logs, at 1e-5 each; the negative control is the usual 95% interval, asked as often."""
    sure = replace(TERMS, confidence=1.0 - 2e-5)
    n_missed_by_usual = 0
    for seed in (10, 11, 12):
        folder = tmp_path / str(seed)
        folder.mkdir()
        site = Site(0.04, sure, seed=seed)
        log = site.log
        assert misses(watched(site.take, folder, Clock(until_ms=16 * HOUR_MS), terms=sure)) == 0
        for hour in range(1, 16):
            reward = log.reward[(log.decision < hour * 1_800) & log.is_greedy]
            margin = 1.96 * float(reward.std()) / math.sqrt(len(reward))
            n_missed_by_usual += abs(float(reward.mean()) - GREEDY) > margin
    assert n_missed_by_usual > 0


def test_every_look_is_on_record_and_the_next_process_goes_on_from_it(tmp_path: Path) -> None:
    site = Site(0.08, TERMS)
    looks = watched(site.take, tmp_path, Clock(until_ms=2 * HOUR_MS))
    assert len(looks) == 2
    lines = (tmp_path / "looks.ndjson").read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=Look) for line in lines] == looks
    # Half an hour later the next look is due in another half; after a day without a process it is taken once.
    clock = Clock(HOUR_MS + HOUR_MS // 2, until_ms=3 * HOUR_MS)
    assert [one.at_unix_ms for one in watched(site.take, tmp_path, clock)] == [2 * HOUR_MS]
    clock = Clock(26 * HOUR_MS, until_ms=28 * HOUR_MS)
    assert [one.at_unix_ms // HOUR_MS for one in watched(site.take, tmp_path, clock)] == [26, 27]


def quiet(at_ms: int) -> Look:
    return Look(at_unix_ms=at_ms, surface=SURFACE, word="keep", reason="", terms=TERMS)


def test_a_look_that_takes_longer_than_the_time_between_is_followed_by_one_not_by_many(tmp_path: Path) -> None:
    clock = Clock(until_ms=10 * HOUR_MS)

    def slow(at_ms: int) -> Look:
        clock.now_ms += 3 * HOUR_MS
        return quiet(at_ms)

    assert [one.at_unix_ms // HOUR_MS for one in watched(slow, tmp_path, clock)] == [0, 3, 6, 9]


def test_a_clock_that_was_put_back_delays_a_look_by_the_time_between_looks_at_most(tmp_path: Path) -> None:
    watched(quiet, tmp_path, Clock(50 * HOUR_MS, until_ms=50 * HOUR_MS + 1))
    assert [one.at_unix_ms for one in watched(quiet, tmp_path, Clock(until_ms=2 * HOUR_MS))] == [HOUR_MS]


@pytest.mark.parametrize("error", [StoreUnavailable("no store answers"), OSError("no disk"), ValueError("rate 0")])
def test_a_look_that_fails_is_on_record_and_the_next_one_is_taken(tmp_path: Path, error: Exception) -> None:
    def failing(at_ms: int) -> Look:
        if at_ms == 0:
            raise error
        return quiet(at_ms)

    looks = watched(failing, tmp_path, Clock(until_ms=2 * HOUR_MS))
    assert [(one.word, one.reason) for one in looks] == [("failed", str(error)), ("keep", "")]


def test_a_mistake_of_ours_ends_the_watch(tmp_path: Path) -> None:
    def wrong(at_ms: int) -> Look:
        raise KeyError("home")

    with pytest.raises(KeyError):
        watched(wrong, tmp_path, Clock(until_ms=HOUR_MS))


# --- the journal ----------------------------------------------------------------------------------------------------

# What a process of this version wrote; later versions read it on.
GOLDEN = (
    b'{"at_unix_ms":1795000000000,"surface":"home","word":"raise","reason":"at rate 0.1","terms":{"budget":0.9,'
    b'"low":0.02,"high":0.15,"confidence":0.95},"rate":0.1,"set_rate":0.15,"n_decisions":300,"greedy":[0.2,0.4],'
    b'"given_up":[-0.01,0.02],"confidence":0.975,"v":1}\n'
)


def test_a_line_of_version_1_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "looks.ndjson"
    path.write_bytes(GOLDEN)
    with LookJournal(path, under=tmp_path) as journal:
        assert journal.last_at_ms == 1_795_000_000_000
    decoded = msgspec.json.decode(GOLDEN, type=Look)
    assert msgspec.json.encode(decoded) + b"\n" == GOLDEN
    assert decoded.terms == Terms(budget=0.9, low=0.02, high=0.15)


def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "looks.ndjson"
    path.write_bytes(GOLDEN + GOLDEN[:40])
    with LookJournal(path, under=tmp_path) as journal:
        journal.append(quiet(5))
    assert [line[:14] for line in path.read_bytes().splitlines()] == [b'{"at_unix_ms":'] * 2
    path.write_bytes(GOLDEN[:40])
    with LookJournal(path, under=tmp_path) as journal:
        assert journal.last_at_ms is None


def test_two_processes_do_not_look_at_one_surface(tmp_path: Path) -> None:
    path = tmp_path / "looks.ndjson"
    with LookJournal(path, under=tmp_path), pytest.raises(ValueError, match="another process looks at this surface"):
        LookJournal(path, under=tmp_path)
    LookJournal(path, under=tmp_path).__exit__(None, None, None)


@pytest.mark.parametrize(("line", "why"), [(b"{}\n", "is no look"), (GOLDEN.replace(b'"v":1', b'"v":2'), "got 2")])
def test_a_journal_of_something_else_or_of_a_later_version_is_refused(tmp_path: Path, line: bytes, why: str) -> None:
    path = tmp_path / "looks.ndjson"
    path.write_bytes(line)
    with pytest.raises(ValueError, match=why):
        LookJournal(path, under=tmp_path)
    assert path.read_bytes() == line


def test_surfaces_have_journals_of_their_own_whatever_their_names_are() -> None:
    config = Config(data_dir="var")
    assert journal_path(config, "home") == Path("var/tune/live-home.ndjson")
    assert journal_path(config, "../x/y").parent == Path("var/tune")


# --- signals and looks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_and_handlers_are_given_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.wait(0.0)
        signal.raise_signal(number)
        assert stop.wait(3_600.0)
        assert stop.wait(3_600.0)
    assert signal.getsignal(number) == before


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A configuration whose archive holds 300 decisions at a rate of 0.1."""
    world, now = replace(PAYS, n_slots=2), Epsilon(rate=0.1, uniform_share=1.0)
    folder = str(tmp_path_factory.mktemp("site"))
    config = build_config(world, exploration=now, settings=QUICK_SETTINGS, data_dir=folder)
    run_loop(
        world, exploration=now, n_decisions=300, seed=1, settings=QUICK_SETTINGS, archive_folder=archive_folder(config)
    )
    return config


def writer_of(config: Config) -> ConfigWriter:
    store = MemoryStore(lambda: START_MS)
    log, journal = MemoryChangeLog(store), MemoryJournal(store, n_partitions=1)
    return ConfigWriter(config, log=log, journal=journal, clock=lambda: START_MS + 10 * HOUR_MS)


async def test_each_change_spends_its_own_share_of_the_error_and_a_look_without_one_spends_none(logged: Config) -> None:
    writer = writer_of(logged)
    generous, strict = (Terms(budget=budget, low=0.02, high=0.15) for budget in (0.9, 0.001))
    words, confidences = [], []
    for terms in (strict, strict, generous, generous):
        _, change, confidence = await look(writer, logged, SURFACE, terms, author="ann")
        words.append(change.word)
        confidences.append(confidence)
    # What was logged before the change is of another rate: nothing is seen of the new one yet.
    assert words == ["cannot tell", "cannot tell", "raise", "cannot tell"]
    assert confidences == pytest.approx([1 - 0.05 / 2] * 3 + [1 - 0.05 / 6])
    (entry,) = await writer.history()
    assert (entry.key, entry.author) == (f"surfaces.{SURFACE}.exploration.rate", "ann")


async def test_a_surface_that_does_not_explore_by_epsilon_cannot_be_looked_at(logged: Config) -> None:
    home = msgspec.structs.replace(logged.surfaces[SURFACE], exploration=Softmax())
    config = msgspec.structs.replace(logged, surfaces={SURFACE: home})
    with pytest.raises(ValueError, match="must explore by epsilon"):
        await look(writer_of(config), config, SURFACE, TERMS, author="ann")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--every", "15m"], "--every goes with --live"),
        (["--live", "--every", "15"], "such as 90s, 15m or 2h, got '15'"),
        (["--live", "--every", "0.5s"], "from 1s on"),
        (["--live", "--every", "-1m"], "from 1s on"),
    ],
)
def test_a_time_between_looks_that_cannot_be_is_an_error_of_usage(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["tune", *options])
    assert result.exit_code == 2
    assert message in result.output


def test_bounds_are_finite_numbers_on_record() -> None:
    """JSON has no infinity; the bounds of no decisions are those of the rewards."""
    empty = branches(0, 0.1, greedy=0.3, explore=0.3, seed=1)
    found = weigh(empty, rate=0.1, rewards_in=(0.0, 1.0), confidence=0.95)
    taken = seen(found, choose_rate(found, TERMS), surface="home", terms=TERMS, confidence=0.95, at_ms=1)
    assert taken.greedy is not None
    assert all(map(math.isfinite, taken.greedy))
    assert np.isfinite(taken.given_up).all()  # type: ignore[arg-type]
