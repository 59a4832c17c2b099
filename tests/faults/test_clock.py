"""Clocks jump, in one process or in all: joins go by the journal's time, and nothing is lost or learned twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.adapters.embedded_store import EmbeddedStore
from service.journal_reader import entry_order
from service.messages import Decision
from tests.faults.load import Steady
from tests.faults.site import Site, open_site
from tests.faults.test_store_faults import assert_sound

pytestmark = pytest.mark.long

_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
needs_faketime = pytest.mark.skipif(not _LIBRARIES, reason="needs libfaketime (Debian: apt-get install faketime)")


class Clock:
    """The wall clock of some processes, read from a file each time; their monotonic clock is the machine's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.set(0)

    def set(self, offset_s: int) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_text(f"{offset_s:+d}s\n", encoding="ascii")
        fresh.replace(self._path)

    @property
    def command(self) -> list[str]:
        return [
            "env",
            f"LD_PRELOAD={_LIBRARIES[0]}",
            f"FAKETIME_TIMESTAMP_FILE={self._path}",
            "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            "DONT_FAKE_MONOTONIC=1",
        ]


@pytest.fixture(scope="module")
def clocked() -> Iterator[tuple[Site, dict[str, Clock]]]:
    """A site each process of which has a clock of its own, the store too."""
    clocks: dict[str, Clock] = {}

    def new_store(folder: Path) -> EmbeddedStore:
        clocks.update({name: Clock(folder / f"{name}.clock") for name in ("store", "api", "learner", "archiver")})

        class ClockedStore(EmbeddedStore):
            def _command(self) -> list[str]:
                return [*clocks["store"].command, *super()._command()]

        return ClockedStore(folder)

    with open_site(new_store=new_store) as site:
        for name in ("api", "learner", "archiver"):
            site.kill(name)
            site.start(name, under=clocks[name].command)
        for name in ("api", "learner"):
            site.wait_ready(name)
        yield site, clocks


@needs_faketime
@pytest.mark.parametrize("who", ["api", "learner", "archiver", "store", "all"])
def test_a_clock_that_jumps_to_and_fro_loses_nothing(clocked: tuple[Site, dict[str, Clock]], who: str) -> None:
    site, clocks = clocked
    jumping = list(clocks.values()) if who == "all" else [clocks[who]]
    for offset_s in (3_600, 3_595, 0):
        steady = Steady(site.load)
        for clock in jumping:
            clock.set(offset_s)
        time.sleep(1.5)
        steady.stop()
        if offset_s == 3_600:
            assert_ahead(site, who)
    assert_sound(site)


def assert_ahead(site: Site, who: str) -> None:
    """Look whether the clocks of those that stamp what they write did jump."""
    ahead_ms = time.time_ns() // 1_000_000 + 3_000_000
    if who in ("store", "all"):
        assert entry_order(site.tape.entries[-1][0])[0] > ahead_ms
    if who in ("api", "all"):
        decided = [entry.decided_at_unix_ms for _, entry in site.tape.decoded() if isinstance(entry, Decision)]
        assert decided[-1] > ahead_ms
