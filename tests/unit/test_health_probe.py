"""The frozen probe set: the same for the same log, and a model that collapsed scores low on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bandit.health_probe import ProbeSet, collapse_reason, probe_entropy
from bandit.policy import ModelSpec, WeightTable
from bandit.vw_format import feature_index
from retrieval.items import Item
from service.health_probe import build_probe, fetch_items, read_probe, sample_decisions
from service.messages import Decision, encode, journal_decoder
from tests.statistical.collapse_world import GENRES, MODEL, SCHEMA, World

Logged = tuple[World, list[Decision], dict[str, Item]]


@pytest.fixture
async def logged(tmp_path: Path) -> Logged:
    world = World(rate=0.3, seed=3, folder=tmp_path)
    await world.start()
    world.is_learning = False
    # Any model will do, but one that has learned something.
    world.served._table.weights[:] = np.random.default_rng(1).normal(size=len(world.served._table.weights))
    await world.run(40)
    entries = (await world.journal.read({0: "0-0"}, count=1_000, block_ms=0))[0]
    decisions = [entry for _, payload in entries if isinstance(entry := journal_decoder.decode(payload), Decision)]
    return world, decisions, await fetch_items(world.log, decisions)


@pytest.fixture
def probe(logged: Logged, tmp_path: Path) -> ProbeSet:
    _, decisions, items = logged
    path = tmp_path / "probe.msgpack"
    path.write_bytes(encode(build_probe(decisions, items, schema=SCHEMA, genre="genre")))
    return read_probe(path)


def _spec(world: World) -> ModelSpec:
    return world.config.model_spec(MODEL)


def _table(world: World, liked: dict[str, float]) -> WeightTable:
    """Return a model with a weight on genres, by name; costs are negative rewards."""
    table = WeightTable(_spec(world))
    for genre, reward in liked.items():
        table.weights[feature_index("item", f"genre={genre}") & (len(table.weights) - 1)] = -reward
    return table


def test_the_sample_is_the_same_in_whatever_order_the_log_is_read(logged: Logged) -> None:
    _, decisions, _ = logged
    forward = [d.event_id for d in sample_decisions(decisions, n=7)]
    assert forward == [d.event_id for d in sample_decisions(reversed(decisions), n=7)]
    assert len(set(forward)) == 7
    assert len(sample_decisions(decisions, n=1_000)) == len(decisions) == 40


def test_scores_on_the_probe_are_those_that_were_served(logged: Logged, probe: ProbeSet) -> None:
    world, decisions, _ = logged
    table = WeightTable(_spec(world))
    table.weights[:] = world.served._table.weights
    assert len(probe.contexts) == 40
    for decision, context in zip(decisions, probe.contexts, strict=True):
        assert len(context.genres) == 48
        served = np.frombuffer(decision.candidates.scores, dtype="<f4")
        assert table.score(context.shared, context.actions) == pytest.approx(served, abs=1e-6)


def test_a_model_that_learned_nothing_shows_everything_alike(logged: Logged, probe: ProbeSet) -> None:
    assert probe_entropy(_table(logged[0], {}), probe) == pytest.approx(1.0)


def test_a_model_that_likes_one_genre_has_no_entropy_and_one_that_likes_two_has_a_third(
    logged: Logged, probe: ProbeSet
) -> None:
    one, two = _table(logged[0], {GENRES[0]: 1.0}), _table(logged[0], {GENRES[0]: 1.0, GENRES[1]: 1.0})
    assert probe_entropy(one, probe, n_top=6) == 0.0
    # ln 2 / ln 8: the edge ties, so both genres share the slots.
    assert probe_entropy(two, probe, n_top=6) == pytest.approx(1 / 3)


def test_actions_that_tie_at_the_edge_share_what_is_left(logged: Logged, probe: ProbeSet) -> None:
    table = _table(logged[0], {GENRES[0]: 2.0, GENRES[1]: 1.0, GENRES[2]: 1.0})
    # Six slots of the best genre, and four for twelve items of two others.
    shares = np.array([0.6, 0.2, 0.2])
    assert probe_entropy(table, probe, n_top=10) == pytest.approx(-(shares * np.log(shares)).sum() / np.log(8))


def test_a_model_of_another_schema_cannot_be_probed(logged: Logged, probe: ProbeSet) -> None:
    spec = _spec(logged[0])
    other = ModelSpec(bits=spec.bits, learning_rate=0.1, interactions=spec.interactions, schema_version="ffffffffffff")
    with pytest.raises(ValueError, match="feature schema"):
        probe_entropy(WeightTable(other), probe)


def test_items_that_are_gone_are_left_out_and_a_set_without_any_is_refused(logged: Logged) -> None:
    _, decisions, items = logged
    some = {item_id: item for item_id, item in items.items() if item_id < "i10"}
    frozen = build_probe(decisions, some, schema=SCHEMA, genre="genre")
    assert {len(context.genres) for context in frozen.contexts} == {10}
    with pytest.raises(ValueError, match="no decision of the archive"):
        build_probe(decisions, {}, schema=SCHEMA, genre="genre")


def test_a_damaged_file_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "probe.msgpack"
    path.write_bytes(b"\x93")
    with pytest.raises(ValueError, match="is damaged"):
        read_probe(path)


@pytest.mark.parametrize(
    ("candidate", "live", "earlier", "blocks"),
    [
        (0.80, 0.80, [], False),
        (0.73, 0.80, [], False),
        (0.71, 0.80, [], True),
        (0.75, 0.80, [0.80, 0.81], False),
        (0.75, 0.80, [0.80, 0.81, 0.79], True),
        (0.79, 0.80, [0.80, 0.80, 0.80], False),
        # Only the last seven count.
        (0.75, 0.80, [0.99, *[0.75, 0.76, 0.74, 0.75, 0.76, 0.74, 0.75]], False),
        (0.90, 0.80, [0.80, 0.80, 0.80], False),
    ],
)
def test_promotion_is_blocked_by_a_tenth_or_by_three_deviations(
    candidate: float, live: float, earlier: list[float], blocks: bool
) -> None:
    assert bool(collapse_reason(candidate, live=live, earlier=earlier)) == blocks
