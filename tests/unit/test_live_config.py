"""Live configuration: overrides in order over what was declared; nothing else than slates can change."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bandit.exploration import Epsilon, Softmax, VwExplorer
from service.adapters.memory_store import MemoryChangeLog, MemoryJournal
from service.adapters.memory_streams import MemoryStore
from service.config import ConfigError, ModelConfig, load_config
from service.config_writer import ConfigWriter
from service.live_config import LiveConfig
from service.messages import ConfigChange, ConfigOverride, journal_decoder

DECLARED = load_config()
RATE = "surfaces.home.exploration.rate"


def _override(key: str, value: Any) -> ConfigOverride:
    return ConfigOverride(key=key, value=value, author="me", at_unix_ms=1)


def _live(*overrides: tuple[str, Any]) -> LiveConfig:
    live = LiveConfig(DECLARED)
    for key, value in overrides:
        live.apply(_override(key, value))
    return live


def _rate(live: LiveConfig) -> float:
    exploration = live.current.config.surfaces["home"].exploration
    assert isinstance(exploration, Epsilon)
    return exploration.rate


def test_without_overrides_the_declared_configuration_is_effective() -> None:
    live = _live()
    assert live.current.config == DECLARED
    assert live.current.version == DECLARED.version


def test_an_override_changes_its_key_its_version_and_nothing_else() -> None:
    live = _live((RATE, 0.25))
    assert _rate(live) == 0.25
    assert live.current.version != DECLARED.version
    assert live.current.config.surfaces["similar"] == DECLARED.surfaces["similar"]
    assert live.current.config.models == DECLARED.models


def test_the_last_word_on_a_key_counts_whatever_the_order_of_keys() -> None:
    whole = {"kind": "epsilon", "rate": 0.5}
    assert _rate(_live((RATE, 0.25), (RATE, 0.2))) == 0.2
    assert _rate(_live((RATE, 0.25), ("surfaces.home.exploration", whole))) == 0.5
    assert _rate(_live(("surfaces.home.exploration", whole), (RATE, 0.25))) == 0.25


def test_removing_an_override_removes_those_below_it() -> None:
    live = _live((RATE, 0.25), ("surfaces.home.exploration", None))
    assert live.current.config == DECLARED
    assert live.overrides == ()


def test_the_kind_of_exploration_can_change() -> None:
    live = _live(("surfaces.home.exploration", {"kind": "softmax", "temperature": 0.5}))
    assert isinstance(live.current.config.surfaces["home"].exploration, Softmax)


def test_a_campaign_with_dates_survives_the_overlay() -> None:
    campaign = {"item_id": "tt1", "kind": "pin", "starts_at": "2026-11-22T00:00:00Z"}
    live = _live(("surfaces.home.campaigns", [campaign]), (RATE, 0.3))
    (running,) = live.current.config.surfaces["home"].campaigns
    assert running.runs_at(1_800_000_000_000)
    assert not running.runs_at(1_700_000_000_000)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("http.port", 1, "cannot be changed live"),
        ("surfaces.home.reward.default", 1.0, "cannot be changed live"),
        ("surfaces.home.model", "other", "cannot be changed live"),
        ("surfaces.nowhere.max_n", 3, "unknown surface 'nowhere'"),
        (RATE, 1.5, "1"),
        (RATE, "much", "float"),
        ("surfaces.home.exploration.typo", 1, "typo"),
        ("surfaces.home.exploration.rate.deeper", 1, "'rate' is not a section"),
        ("surfaces.home.exploration", {"kind": "vw", "model": "x"}, "explorer 'x'"),
        ("surfaces.home.rules", [{"kind": "max_per", "column": "studio", "limit": 1, "window": 2}], "studio"),
    ],
)
def test_what_cannot_be_used_is_refused_and_changes_nothing(key: str, value: Any, complaint: str) -> None:
    live = _live((RATE, 0.25))
    before = live.current
    with pytest.raises(ConfigError, match=complaint):
        live.apply(_override(key, value))
    assert live.current is before
    assert [o.key for o in live.overrides] == [RATE]


def test_an_explorer_that_nobody_learns_on_this_surface_cannot_be_switched_on_but_off() -> None:
    home = msgspec.structs.replace(DECLARED.surfaces["home"], exploration=VwExplorer(model="bag"))
    models = {**DECLARED.models, "bag": ModelConfig(arguments="--cb_explore_adf --bag 3")}
    live = LiveConfig(msgspec.structs.replace(DECLARED, models=models, surfaces={**DECLARED.surfaces, "home": home}))
    with pytest.raises(ConfigError, match="the file must declare it"):
        live.apply(_override("surfaces.similar.exploration", {"kind": "vw", "model": "bag"}))
    live.apply(_override("surfaces.home.exploration", {"kind": "greedy"}))
    live.apply(_override("surfaces.home.exploration", {"kind": "vw", "model": "bag", "shortlist": 5}))
    assert live.current.config.surfaces["home"].exploration == VwExplorer(model="bag", shortlist=5)


async def test_a_change_is_in_the_journal_with_old_and_new_value_and_a_refused_one_is_nowhere() -> None:
    store = MemoryStore(lambda: 7)
    journal, log = MemoryJournal(store, n_partitions=1), MemoryChangeLog(store)
    writer = ConfigWriter(DECLARED, log=log, journal=journal, clock=lambda: 7)
    await writer.put(RATE, 0.2, author="ada", reason="trial")
    change = await writer.put(RATE, 0.3, author="ada", reason="")
    with pytest.raises(ConfigError):
        await writer.put(RATE, -1, author="ada", reason="")
    assert (change.old, change.new) == (0.2, 0.3)
    entries = (await journal.read({0: "0-0"}, count=10, block_ms=0))[0]
    first, second = (journal_decoder.decode(payload) for _, payload in entries)
    assert isinstance(first, ConfigChange)
    assert (first.key, first.old, first.new, first.author, first.reason) == (RATE, 0.1, 0.2, "ada", "trial")
    assert second == change
    assert [o.value for o in await writer.history()] == [0.2, 0.3]
    assert _rate(await writer.effective()) == 0.3
