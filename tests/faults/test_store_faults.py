"""The store dies, restarts, refuses writes or stands still under load: nothing acknowledged is lost."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.faults.load import Steady
from tests.faults.site import Site


def assert_sound(site: Site) -> None:
    site.heal()
    site.drive(3)
    site.load.settle()
    site.verdict.assert_sound(site.load)


def test_a_store_without_memory_refuses_and_what_was_acknowledged_meanwhile_comes_from_the_spool(site: Site) -> None:
    site.heal()
    n_decisions, n_events, n_taped = len(site.load.decisions), len(site.load.events), len(site.tape.entries)
    with site.full_store():
        site.drive(15)
        assert len(site.tape.entries) == n_taped, "the journal took nothing"
        assert len(site.load.events) > n_events, "events were acknowledged from the spool"
        assert len(site.load.decisions) > n_decisions
    assert_sound(site)
    assert all(site.is_alive(name) for name in ("api", "learner", "archiver"))


def test_a_store_that_is_killed_and_started_loses_nothing(site: Site) -> None:
    site.heal()
    steady = Steady(site.load)
    for _ in range(2):
        time.sleep(0.5)
        site.restart_store()
    steady.stop()
    assert_sound(site)
    assert all(site.is_alive(name) for name in ("api", "learner", "archiver"))


@pytest.mark.long
def test_a_store_that_stands_still_is_waited_for(site: Site) -> None:
    site.heal()
    assert site.store.process is not None
    steady = Steady(site.load)
    for _ in range(3):
        time.sleep(0.5)
        os.kill(site.store.process.pid, signal.SIGSTOP)
        # Longer than a request waits for it, and than the lease.
        time.sleep(3.0)
        os.kill(site.store.process.pid, signal.SIGCONT)
    steady.stop()
    assert_sound(site)


@pytest.mark.long
def test_everything_but_the_ledger_dies_at_once_again_and_again(site: Site) -> None:
    for round_index in range(5):
        site.heal()
        steady = Steady(site.load)
        time.sleep(0.4 + 0.1 * round_index)
        for name in ("api", "learner", "archiver"):
            site.kill(name)
        site.restart_store()
        steady.stop()
    assert_sound(site)
