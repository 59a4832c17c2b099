"""A learner that is stopped right before a write is replaced by a standby; when it wakes, its write is refused."""

from __future__ import annotations

import os
import signal

import pytest

from tests.faults.site import Site
from tests.stack import eventually

# The last moment before each kind of write that another learner must not see any more.
FENCED = [
    "learner.publish",
    "learner.snapshot",
    "learner.checkpoint",
    "learner.lease",
    "counting.publish",
    "learner.repair",
]


def is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize(
    "point", [pytest.param(p, marks=() if p == "learner.checkpoint" else pytest.mark.long) for p in FENCED]
)
def test_a_learner_stopped_before_a_write_is_fenced_when_it_wakes(site: Site, point: str) -> None:
    site.heal()
    site.kill("learner")
    site.start("learner", failpoint=f"{point}:stop:2")
    old = site.running["learner"]
    site.wait_ready("learner")
    assert old.pid is not None

    def comes_to_stop() -> bool:
        site.load.step()
        return is_stopped(old.pid)

    eventually(comes_to_stop, what=f"the learner stops at {point}")
    started, overtaken = site.log_of("standby").count("learn.started"), site.log_of("learner").count("learn.overtaken")
    site.start("standby")
    eventually(lambda: site.log_of("standby").count("learn.started") > started, what="the standby takes over")
    site.drive(10)
    os.kill(old.pid, signal.SIGCONT)
    eventually(lambda: site.log_of("learner").count("learn.overtaken") > overtaken, what="the old learner is refused")
    site.drive(5)
    site.load.settle()
    site.verdict.assert_sound(site.load)
    site.end("standby")
    site.heal()
