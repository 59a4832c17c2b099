"""A standby takes over from a learner that was stopped; what the old one does afterwards changes nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bandit.learner import Learner
from service.adapters.embedded_store import die_with_parent, store_url
from service.adapters.redis_store import RedisChangeLog, RedisJournal, RedisModelStore, connect
from service.bootstrap import wall_clock_ms
from service.config import Config, load_config
from service.item_statistics import ITEM_STATS_STREAM
from service.messages import DecisionSummary, Event, ItemStats, WeightDelta, encode
from service.ports import Entry, Shipment
from service.private_stack import environment_without_hone
from tests.faults.test_kill import MODEL, SETTINGS, load_checkpoint, undisturbed_learner, weights_of
from tests.make_golden import DECISION
from tests.stack import eventually, short_folder, start_store

# Generous: the machine may be busy. The lease is two seconds.
TAKEOVER_S = 30.0


@dataclass
class Site:
    """A store and learners on it.

    Attributes:
        config: What they run with.
        learners: By name; what one logged is in a file of its name.
    """

    config: Config
    learners: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    n_decisions: int = 0

    def start(self, name: str) -> None:
        with self.log_path(name).open("ab") as log:
            self.learners[name] = subprocess.Popen(
                [sys.executable, "-m", "service", "learn"],
                env={**environment_without_hone(), "HONE_DATA_DIR": self.config.data_dir, **SETTINGS},
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )

    def log_path(self, name: str) -> Path:
        return self.config.data_path / f"{name}.log"

    def log_of(self, name: str) -> str:
        return self.log_path(name).read_text(encoding="utf-8")

    def wait_for(self, name: str, event: str) -> None:
        eventually(lambda: event in self.log_of(name), timeout_s=TAKEOVER_S, what=f"{name} logs {event}")

    def click_some(self, n: int) -> None:
        """Append decisions, each with a click, to the journal."""
        asyncio.run(self._click_some(n))

    async def _click_some(self, n: int) -> None:
        client = connect(store_url(self.config), timeout_s=10.0)
        journal = RedisJournal(client, n_partitions=1)
        for index in range(self.n_decisions, self.n_decisions + n):
            now_ms, event_id = wall_clock_ms(), f"e{index}"
            slots = [
                msgspec.structs.replace(
                    DECISION.slots[0],
                    item_id=f"i{(index + slot) % 7}",
                    propensity=0.5,
                    features={"item": {f"id=i{(index + slot) % 7}": 1.0}, "dynamic": {}},
                )
                for slot in range(3)
            ]
            decision = msgspec.structs.replace(
                DECISION,
                event_id=event_id,
                surface="home",
                model=MODEL,
                slots=slots,
                decided_at_unix_ms=now_ms,
            )
            item_ids = [slot.item_id for slot in slots]
            summary = DecisionSummary(digest="d", surface="home", user_id=decision.user_id, item_ids=item_ids)
            await journal.ship(
                [Shipment(event_id=event_id, summary=encode(summary), entry=encode(decision), ttl_ms=600_000)]
            )
            event = Event(
                accepted_at_unix_ms=now_ms,
                client_id=f"c{index}",
                event_type="click",
                event_id=event_id,
                user_id=None,
                user_key="",
                item_id=None,
                slot=index % 3,
                value=1.0,
                client_unix_ms=None,
            )
            await journal.append(0, [encode(event)])
        self.n_decisions += n
        await client.aclose()

    def published(self, stream: str) -> list[Entry]:
        async def read() -> list[Entry]:
            client = connect(store_url(self.config), timeout_s=10.0)
            found = await RedisChangeLog(client).read({stream: "0-0"}, count=100_000, block_ms=0)
            await client.aclose()
            return found

        return asyncio.run(read())

    def deltas(self) -> list[WeightDelta]:
        client = connect("unix:///nowhere", timeout_s=1.0)
        stream = RedisModelStore(client).weights_stream(MODEL)
        return [msgspec.msgpack.decode(entry.payload, type=WeightDelta) for entry in self.published(stream)]

    def n_learned(self) -> int:
        """Return how many clicks the checkpoint holds; 0 before the first."""
        try:
            return asyncio.run(load_checkpoint(self.config)).counters.get("slot_reward", 0)
        except AssertionError:
            return 0

    def wait_learned(self) -> None:
        eventually(lambda: self.n_learned() == self.n_decisions, timeout_s=TAKEOVER_S, what="all clicks are learned")


@pytest.fixture
def site() -> Iterator[Site]:
    with short_folder() as folder:
        _, stop_store = start_store(folder)
        site = Site(load_config(environment={"HONE_DATA_DIR": str(folder), **SETTINGS}))
        try:
            site.start("first")
            site.wait_for("first", "learn.started")
            site.start("second")
            site.wait_for("second", "learn.standby")
            yield site
        finally:
            for learner in site.learners.values():
                # Unlike os.kill, these pass over a process that has ended.
                learner.send_signal(signal.SIGCONT)
                learner.terminate()
            for learner in site.learners.values():
                learner.wait(timeout=30)
            stop_store()


def assert_undisturbed(site: Site) -> None:
    """Compare the checkpoint's model, bit for bit, with one that learned the same journal without a takeover."""
    checkpoint = asyncio.run(load_checkpoint(site.config))
    undisturbed = asyncio.run(undisturbed_learner(site.config, checkpoint.positions["0"]))
    disturbed = Learner(site.config.model_spec(MODEL), checkpoint.workspace)
    assert checkpoint.counters["slot_reward"] == site.n_decisions
    assert dict(undisturbed._joiner.counters) == checkpoint.counters
    np.testing.assert_array_equal(weights_of(disturbed), weights_of(undisturbed._learner))
    assert np.count_nonzero(weights_of(disturbed)) > 0


def test_a_standby_takes_over_from_a_stopped_learner_which_is_fenced_when_it_wakes(site: Site) -> None:
    first, second = site.learners["first"], site.learners["second"]
    site.click_some(20)
    site.wait_learned()
    os.kill(first.pid, signal.SIGSTOP)
    site.click_some(20)
    site.wait_for("second", "learn.started")
    site.wait_learned()
    os.kill(first.pid, signal.SIGCONT)
    site.click_some(20)
    # It woke, was refused, and stands by; it did not end.
    site.wait_for("first", "learn.overtaken")
    site.wait_for("first", "learn.standby")
    assert first.poll() is None
    site.wait_learned()
    deltas = site.deltas()
    epochs = [delta.epoch for delta in deltas]
    assert epochs == sorted(epochs), "nothing of the old learner stands after the new one's first"
    versions = [delta.version for delta in deltas]
    assert versions == sorted(set(versions))
    stats = [msgspec.msgpack.decode(e.payload, type=ItemStats) for e in site.published(ITEM_STATS_STREAM)]
    assert stats[0].is_whole, "the old learner dropped nothing of the new one's"
    assert {entry.epoch for entry in stats} == {epochs[-1]}
    assert_undisturbed(site)
    # A learner that ends in order is replaced at once.
    second.terminate()
    assert second.wait(timeout=30) == 0
    eventually(lambda: site.log_of("first").count("learn.started") == 2, timeout_s=TAKEOVER_S, what="it leads again")
    site.click_some(10)
    site.wait_learned()
    assert_undisturbed(site)
