"""A standby takes over from a learner that was stopped; what the old one does afterwards changes nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec
import pytest

from service.item_statistics import ITEM_STATS_STREAM
from service.messages import ItemStats, WeightDelta
from tests.faults.site import Site
from tests.stack import eventually

WEIGHTS = "hone:weights:{films}"
# The last moment before each kind of write that another learner must not see any more.
FENCED = [
    "learner.checkpoint",
    "learner.publish",
    "learner.snapshot",
    "learner.lease",
    "counting.publish",
    "counting.publish_pairs",
    "learner.repair",
]


def published(site: Site, stream: str) -> list[bytes]:
    return [fields[b"e"] for _, fields in site.ask("XRANGE", stream, "-", "+")]


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize(
    "point", [pytest.param(p, marks=() if p == "learner.checkpoint" else pytest.mark.long) for p in FENCED]
)
def test_a_learner_stopped_before_a_write_is_replaced_and_fenced_when_it_wakes(site: Site, point: str) -> None:
    site.heal()
    site.kill("learner")
    # The first snapshot is published at the start, the second long after.
    site.start("learner", failpoint=f"{point}:stop:{1 if point == 'learner.snapshot' else 2}")
    old = site.running["learner"].pid
    assert old is not None

    def comes_to_stop() -> bool:
        site.load.step()
        return is_stopped(old)

    eventually(comes_to_stop, what=f"the learner stops at {point}")
    n_led, n_overtaken = site.log_of("standby").count("learn.started"), site.log_of("learner").count("learn.overtaken")
    n_stood_by = site.log_of("learner").count("learn.standby")
    site.start("standby")
    eventually(lambda: site.log_of("standby").count("learn.started") > n_led, what="the standby takes over")
    site.drive(10)
    os.kill(old, signal.SIGCONT)
    # It wakes, is refused, and stands by; it does not end.
    eventually(lambda: site.log_of("learner").count("learn.overtaken") > n_overtaken, what="the old one is refused")
    eventually(lambda: site.log_of("learner").count("learn.standby") > n_stood_by, what="the old one stands by")
    assert site.is_alive("learner")
    site.drive(5)
    site.load.settle()
    deltas = [msgspec.msgpack.decode(payload, type=WeightDelta) for payload in published(site, WEIGHTS)]
    epochs, versions = [delta.epoch for delta in deltas], [delta.version for delta in deltas]
    assert epochs == sorted(epochs), "nothing of the old learner stands after the new one's first"
    assert versions == sorted(set(versions))
    stats = [msgspec.msgpack.decode(payload, type=ItemStats) for payload in published(site, ITEM_STATS_STREAM)]
    assert stats[0].is_whole, "the old learner dropped nothing of the new one's"
    assert {entry.epoch for entry in stats} == {epochs[-1]}
    site.verdict.assert_sound(site.load)
    # A learner that ends in order is replaced at once.
    n_led = site.log_of("learner").count("learn.started")
    site.end("standby")
    eventually(lambda: site.log_of("learner").count("learn.started") > n_led, what="it leads again")
    site.drive(5)
    site.load.settle()
    site.verdict.assert_sound(site.load)
