"""`hone tune --live --every` as a process of its own, on a real store."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from bandit.exploration import Epsilon
from service.private_stack import environment_without_hone
from simulators.closed_loop import run_loop
from simulators.loop_config import SURFACE, build_config, config_text
from simulators.tune.watch import Look, journal_path
from simulators.worlds.named import QUICK_SETTINGS
from tests.stack import short_folder, start_store
from tests.unit.test_tune_worlds import PAYS

_ENDS_WITHIN_S = 30.0


@pytest.fixture(scope="module")
def site() -> Iterator[Path]:
    """A data folder with a running store, an archive of 300 decisions, and hone.toml."""
    world, now = replace(PAYS, n_slots=2), Epsilon(rate=0.1, uniform_share=1.0)
    with short_folder() as folder:
        settings = QUICK_SETTINGS
        run_loop(world, exploration=now, n_decisions=300, seed=1, settings=settings, archive_folder=folder / "archive")
        config = build_config(world, exploration=now, settings=settings)
        (folder / "hone.toml").write_text(config_text(config, data_dir=str(folder)), encoding="utf-8")
        _, stop = start_store(folder)
        yield folder
        stop()


def looks_of(site: Path, *, n: int, stop_with: signal.Signals) -> list[Look]:
    """Let a process look so often, and stop it."""
    command = [sys.executable, "-m", "service", "--config", str(site / "hone.toml"), "tune", "--live", "--every", "1s"]
    terms = ["--budget", "0.9", "--bounds", "0.02,0.15", "--json"]
    process = subprocess.Popen([*command, *terms], stdout=subprocess.PIPE, env=environment_without_hone())
    try:
        assert process.stdout is not None
        looks = [msgspec.json.decode(process.stdout.readline(), type=Look) for _ in range(n)]
        process.send_signal(stop_with)
        rest, _ = process.communicate(timeout=_ENDS_WITHIN_S)
        assert process.returncode == 0
        return looks + [msgspec.json.decode(line, type=Look) for line in rest.splitlines()]
    finally:
        process.kill()
        process.wait()


def test_a_watch_changes_the_rate_once_ends_on_a_signal_and_goes_on_after_a_restart(site: Path) -> None:
    first = looks_of(site, n=2, stop_with=signal.SIGTERM)
    second = looks_of(site, n=1, stop_with=signal.SIGINT)
    assert [one.word for one in first[:2]] == ["raise", "cannot tell"]
    raised = first[0].set_rate
    assert raised is not None
    assert 0.1 < raised <= 0.15
    # The process that came after goes on under the changed rate and with what is left of the errors allowed.
    assert {(one.word, one.rate, one.set_rate) for one in second} == {("cannot tell", raised, None)}
    assert first[0].confidence == pytest.approx(1 - 0.05 / 2)
    assert second[0].confidence == pytest.approx(1 - 0.05 / 6)
    config = build_config(PAYS, exploration=Epsilon(), data_dir=str(site))
    recorded = journal_path(config, SURFACE).read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=Look) for line in recorded] == first + second
    gaps_ms = [b.at_unix_ms - a.at_unix_ms for a, b in zip(first, (first + second)[1:], strict=False)]
    assert all(gap_ms >= 1_000 for gap_ms in gaps_ms)
