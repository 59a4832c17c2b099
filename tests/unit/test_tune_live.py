"""The rate that `hone tune --live` sets, and how what is recommended is set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer

from bandit.exploration import Epsilon
from service.adapters.memory_store import MemoryChangeLog, MemoryJournal
from service.adapters.memory_streams import MemoryStore
from service.cli.configuration import on_config_writer
from service.config_writer import ConfigWriter
from service.inspect_features import archive_folder
from service.messages import ConfigOverride
from simulators.closed_loop import run_loop
from simulators.loop_config import SURFACE, build_config
from simulators.tune.apply import apply_choice
from simulators.tune.live import Branches, Terms, began_at, choose_rate, n_changes, weigh
from simulators.tune_commands import tune_live
from simulators.worlds.named import QUICK_SETTINGS
from tests.unit.test_tune import rate
from tests.unit.test_tune_worlds import PAYS

# --- the live rate --------------------------------------------------------------------------------------------------

TERMS = Terms(budget=0.05, low=0.02, high=0.3)


def branches(n: int, rate: float, *, greedy: float, explore: float, seed: int, n_slots: int = 3) -> Branches:
    """Slots whose reward is 1 with one probability where they were greedy, and another where they were explored."""
    rng = np.random.default_rng(seed)
    is_greedy = rng.random(n * n_slots) >= rate
    reward = (rng.random(n * n_slots) < np.where(is_greedy, greedy, explore)).astype(np.float64)
    return Branches(np.repeat(np.arange(n), n_slots), is_greedy, reward)


def looked(rate: float, n: int, *, greedy: float = 0.3, explore: float = 0.15, terms: Terms = TERMS):
    slots = branches(n, rate, greedy=greedy, explore=explore, seed=5)
    return choose_rate(weigh(slots, rate=rate, rewards_in=(0.0, 1.0), confidence=terms.of_change(0)), terms)


def test_the_rate_is_raised_to_what_is_shown_to_be_within_the_budget_and_no_further() -> None:
    # What is given up at a rate is half of the rate of the reward: the budget allows 0.1.
    found = looked(0.04, 60_000)
    assert found.word == "raise"
    assert 0.04 < found.rate <= 0.1
    assert looked(0.04, 60_000, explore=0.3).rate == TERMS.high


def test_a_rate_that_is_shown_to_be_over_the_budget_is_lowered() -> None:
    found = looked(0.3, 20_000)
    assert found.word == "lower"
    assert TERMS.low <= found.rate <= 0.1


def test_a_log_that_is_too_short_is_refused_with_how_much_more_it_takes() -> None:
    found = looked(0.08, 500)
    assert found.word == "cannot tell"
    assert not found.changes
    assert "more decisions would tell" in found.reason


def test_nothing_is_seen_without_exploration_or_without_anything_else() -> None:
    for blind in (0.0, 1.0):
        with pytest.raises(ValueError, match="rate must be in"):
            weigh(branches(100, blind, greedy=0.3, explore=0.1, seed=1), rate=blind, rewards_in=(0, 1), confidence=0.95)


def test_no_decisions_and_no_reward_are_refused() -> None:
    assert looked(0.1, 0).word == "cannot tell"
    assert looked(0.1, 1_000, greedy=0.0, explore=0.0).word == "cannot tell"


def test_branches_that_contradict_the_rate_are_refused() -> None:
    # A log of rate 0.5 that says it was 0.05: greedy slots are half of what they must be.
    slots = branches(30_000, 0.5, greedy=0.9, explore=0.9, seed=2)
    found = choose_rate(weigh(slots, rate=0.05, rewards_in=(0.0, 1.0), confidence=0.95), TERMS)
    assert found.word == "cannot tell"
    assert "cannot be right" in found.reason


def test_a_rate_above_the_bounds_comes_down_even_when_it_costs_nothing() -> None:
    found = looked(0.4, 20_000, explore=0.3)
    assert (found.word, found.rate) == ("lower", TERMS.high)


def test_errors_of_all_changes_add_up_to_what_is_allowed() -> None:
    assert sum(1.0 - TERMS.of_change(n) for n in range(10_000)) == pytest.approx(0.05, rel=1e-3)


def test_a_rate_set_by_hand_begins_the_log_anew_and_is_no_change_of_this_mode() -> None:
    key = "surfaces.home.exploration"
    history = [
        ConfigOverride(key=f"{key}.rate", value=0.1, author="a", at_unix_ms=5, reason="hone tune --live: at rate"),
        ConfigOverride(key=key, value={}, author="b", at_unix_ms=9, reason="by hand"),
        ConfigOverride(key="surfaces.other.exploration.rate", value=0.1, author="a", at_unix_ms=20),
        ConfigOverride(key="surfaces.home.rules", value=[], author="a", at_unix_ms=30),
    ]
    assert began_at(history, "home") == 9
    assert n_changes(history, "home") == 1
    assert began_at([], "home") == 0


@pytest.mark.parametrize(
    ("budget", "low", "high"), [(0.0, 0.1, 0.2), (0.1, 0.0, 0.2), (0.1, 0.3, 0.2), (0.1, 0.1, 1.0)]
)
def test_terms_that_cannot_be_met_are_refused(budget: float, low: float, high: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        Terms(budget=budget, low=low, high=high)


# --- what is set -----------------------------------------------------------------------------------------------------


async def test_what_is_recommended_is_set_through_the_audit_log() -> None:
    store = MemoryStore(lambda: 1)
    journal = MemoryJournal(store, n_partitions=1)
    declared = build_config(PAYS, exploration=Epsilon(rate=0.1))
    writer = ConfigWriter(declared, log=MemoryChangeLog(store), journal=journal, clock=lambda: 1)
    entries = await apply_choice(writer, SURFACE, rate(0.2), author="ann", reason="hone tune: Better")
    assert [(entry.key, entry.old, entry.new, entry.author) for entry in entries] == [
        ("surfaces.home.exploration.rate", 0.1, 0.2, "ann")
    ]
    assert (await writer.effective()).current.config.surfaces[SURFACE].exploration == Epsilon(rate=0.2)
    assert await apply_choice(writer, SURFACE, rate(0.2), author="ann", reason="again") == []


def test_the_live_rate_is_set_from_an_archive_with_an_audit_entry_and_not_again_without_a_new_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = replace(PAYS, n_slots=2)
    now = Epsilon(rate=0.1, uniform_share=1.0)
    config = build_config(world, exploration=now, settings=QUICK_SETTINGS, data_dir=str(tmp_path))
    run_loop(
        world, exploration=now, n_decisions=300, seed=1, settings=QUICK_SETTINGS, archive_folder=archive_folder(config)
    )
    capsys.readouterr()  # what the simulated service logged
    generous = Terms(budget=0.9, low=0.02, high=0.15)
    for expected in (0, 1):
        with pytest.raises(typer.Exit) as ended:
            tune_live(config, SURFACE, generous, as_json=True)
        assert ended.value.exit_code == expected
        said = json.loads(capsys.readouterr().out)
        assert said["change"]["word"] == ("cannot tell" if expected else "raise")
    (entry,) = on_config_writer(config, lambda writer: writer.history())
    assert entry.key == "surfaces.home.exploration.rate"
    assert 0.1 < entry.value <= 0.15
    assert entry.reason.startswith("hone tune --live: at rate 0.1, 300 decisions")
