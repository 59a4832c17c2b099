"""kill -9 under `hone serve`: what was acknowledged is learned once, whoever dies, and whenever."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.load import Steady
from tests.faults.supervised import Supervised, supervised
from tests.stack import eventually

NAMES = ("api-0", "learner", "archiver", "store", "serve")
N_ROUNDS = 10


@pytest.fixture(scope="module")
def whole() -> Iterator[Supervised]:
    with supervised() as running:
        yield running


def click(whole: Supervised, slate: Any, slot: int) -> None:
    event = {"type": "click", "event_id": slate["event_id"], "slot": slot, "id": f"{slate['event_id']}-{slot}"}
    assert whole.load.report([event])


def test_a_reward_acknowledged_before_the_learner_dies_is_learned_once(whole: Supervised) -> None:
    # The learner is held, so that the reward is surely acknowledged before it is learned.
    learner = whole.stack.processes()["learner"]
    os.kill(learner, signal.SIGSTOP)
    slate = whole.load.recommend()
    click(whole, slate, 1)
    whole.stack.kill("learner")
    whole.stack.wait_restarted("learner", old_pid=learner)
    click(whole, slate, 1)  # the caller retries: the same client id counts once
    whole.assert_sound()
    counters = whole.verdict.checkpoint().counters
    assert counters["event_duplicate"] >= 1
    version = slate["model_version"]
    eventually(lambda: (whole.load.recommend() or slate)["model_version"] > version, what="a newer model is served")


def test_a_reward_acknowledged_before_the_store_dies_is_learned_once(whole: Supervised) -> None:
    learner = whole.stack.processes()["learner"]
    os.kill(learner, signal.SIGSTOP)
    click(whole, whole.load.recommend(), 1)
    old = whole.stack.kill("store")
    whole.stack.wait_restarted("store", old_pid=old)
    os.kill(learner, signal.SIGCONT)
    whole.assert_sound()


def test_rewards_and_decisions_taken_while_the_store_is_down_are_learned_once(whole: Supervised) -> None:
    whole.stack.kill("store")
    # Whatever of these falls into the outage goes through the spool.
    for _ in range(5):
        slate = whole.load.call("/v1/recommend", {"surface": "home", "n": 5, "user_id": "ml-7", "context": {}})
        whole.load.decisions.add(slate["event_id"])
        click(whole, slate, 0)
    whole.assert_sound()


@pytest.mark.parametrize("name", NAMES)
def test_a_process_killed_under_load_is_started_again_and_nothing_is_lost(whole: Supervised, name: str) -> None:
    steady = Steady(whole.load)
    time.sleep(0.3)
    old = whole.stack.processes()[name]
    whole.kill(name)
    whole.stack.wait_restarted(name, old_pid=old)
    steady.stop()
    whole.assert_sound()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fifty_kills_at_random_moments_lose_nothing(whole: Supervised) -> None:
    rng = random.Random(20)
    for _ in range(N_ROUNDS):
        steady = Steady(whole.load)
        for name in rng.sample(NAMES, len(NAMES)):
            time.sleep(rng.uniform(0.0, 1.5))
            whole.kill(name)
        steady.stop()
        whole.assert_sound()


@pytest.mark.long
@pytest.mark.parametrize(
    ("point", "dies"),
    [
        ("supervise.start:kill:3", None),
        ("supervise.restart:kill", "archiver"),
        ("supervise.restart_store:kill", "store"),
    ],
)
def test_a_supervisor_that_dies_at_its_work_leaves_nothing_behind_and_can_be_started_again(
    whole: Supervised, point: str, dies: str | None
) -> None:
    running = whole.stack.processes()
    whole.stack.kill("serve")
    if dies is None:
        with pytest.raises(AssertionError, match="hone serve ended"):
            whole.restart(running, failpoint=point)
        running = {}
    else:
        whole.restart(running, failpoint=point)
        running = whole.stack.processes()
        whole.stack.kill(dies)
        eventually(lambda: not whole.stack.processes(), timeout_s=60.0, what=f"the supervisor dies at {point}")
    assert f'"failpoint":"{point}"' in whole.stack.log_path.read_text(encoding="utf-8")
    whole.restart(running)
    whole.assert_sound()
