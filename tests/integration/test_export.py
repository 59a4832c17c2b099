"""Exports: VW's own command line learns from them what the learner learned, and reads them without a warning."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from vowpal_wabbit_next import Workspace, run_cli_driver

from bandit.learner import Learner, WeightChange
from bandit.policy import ActionFeatures, WeightTable
from bandit.vw_format import ACTION_NAMESPACES, NAMESPACE_LETTERS
from bandit.vw_format import encode as encode_features
from service.dsjson import action_context
from service.export import Exporter, ExportReport, Selection, read_joined
from service.item_history import ItemHistory
from service.items_view import ITEMS_STREAM
from service.learned import named_features
from service.messages import item_change_decoder
from service.retrain import RetrainPlan, train_and_score
from service.retrain_scoring import CandidateFeatures, score_decisions
from service.retrain_training import configured
from service.training_rows import Span, read_outcomes, whole_decisions
from tests.feature_world import MODEL, World
from tests.integration.test_feature_identity import memory_world

ALL = Selection()


@dataclass
class Exported(World):
    """A few hundred decisions whose windows have all ended, the last ones scored with the same `weights`."""

    weights: WeightChange = None  # type: ignore[assignment]
    scored_by_weights: frozenset[str] = frozenset()

    async def live(self) -> None:
        await self.start()
        await self.run(250)
        for worker in self.workers:
            await worker.follow()
        self.weights = self.learner._learner.all_weights()
        self.scored_by_weights = frozenset([(await self.decide(self.workers[n % 2])).event_id for n in range(30)])
        for worker in self.workers:
            await worker.shipped()
        # Items are others by now.
        for item_id in sorted(self.live):
            await self.put(item_id)
        self.now_ms += 400_000
        await self.settle()
        await self.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    world = memory_world(tmp_path_factory.mktemp("world"), seed=8)
    exported = Exported(config=world.config, ports=world.ports, folder=world.folder, rng=world.rng)
    world.ports.log._store.clock = lambda: exported.now_ms  # type: ignore[attr-defined]
    asyncio.run(exported.live())
    return exported


@pytest.fixture(scope="module")
def items(world: Exported) -> ItemHistory:
    history = ItemHistory()

    async def read() -> None:
        for change in await world.ports.log.read({ITEMS_STREAM: "0-0"}, count=100_000, block_ms=0):
            history.add(change.entry_id, item_change_decoder.decode(change.payload))

    asyncio.run(read())
    return history


def encoded(features: Any) -> dict[str, Any]:
    named = {n: f if isinstance(f, dict) else named_features(f) for n, f in features.items()}
    return {namespace: encode_features(namespace, of_namespace) for namespace, of_namespace in named.items()}


def weights_of(workspace: Any) -> np.ndarray:
    # The fourth column is scratch.
    return workspace.weights()[:, 0, :3].copy()


def folder_of(world: Exported) -> Path:
    return world.folder / "archive"


def train(world: Exported, path: Path, *arguments: str) -> tuple[Any, list[str]]:
    """Train VW from its command line; return the model and what VW warned of."""
    model = path.with_suffix(".vw")
    given = [a for a in world.config.model_spec(MODEL).arguments() if a != "--quiet"]
    _, warnings = run_cli_driver(["--dsjson", "-d", str(path), "-f", str(model), *given, *arguments])
    return Workspace(model_data=model.read_bytes()), warnings


def test_vws_command_line_trains_to_the_learners_weights_bit_for_bit(world: Exported, tmp_path: Path) -> None:
    path = tmp_path / "training.dsjson"
    report = Exporter(world.config, folder_of(world)).write(path, "dsjson-training", Selection(model=MODEL))
    trained, warnings = train(world, path)
    assert warnings == []
    learner = world.learner._learner
    assert report.n_lines == learner.n_learned > 300
    np.testing.assert_array_equal(weights_of(trained), weights_of(learner._workspace))
    assert np.count_nonzero(weights_of(trained)[:, 0]) > 500


def test_joined_rows_teach_a_learner_what_the_export_teaches_vw(world: Exported, tmp_path: Path) -> None:
    """The way of a retraining: rows of a part of the archive, through the learner's own code."""
    selection = Selection(surface="strip", from_ms=world.archived()[60].decided_at_unix_ms)
    learner = Learner(world.config.model_spec(MODEL))
    for joined in read_joined(world.config, folder_of(world), selection, ExportReport()):
        outcome = joined.outcomes[-1]
        position = world.config.features.named("position", {"slot": outcome.slot})
        slot = joined.learned.slots[outcome.slot]
        learner.learn(
            {**encoded(joined.learned.features), "position": encode_features("position", position)},
            encoded(slot.features),
            reward=outcome.reward,
            propensity=slot.propensity,
        )
    path = tmp_path / "training.dsjson"
    report = Exporter(world.config, folder_of(world)).write(path, "dsjson-training", selection)
    assert 50 < report.n_lines == learner.n_learned < 300
    np.testing.assert_array_equal(weights_of(train(world, path)[0]), weights_of(learner._workspace))


def test_a_plain_retrain_has_the_weights_of_vws_command_line(
    world: Exported, items: ItemHistory, tmp_path: Path
) -> None:
    """One configuration, nothing held out: the model's own arguments, in the learner's order, once."""
    plan = RetrainPlan(MODEL, Span(), None, "ips", 1, 0.95)
    trained = train_and_score(
        world.config,
        plan,
        configured(world.config, MODEL),
        outcomes=lambda span: read_outcomes(world.config, folder_of(world), MODEL, span),
        items=items,
    )
    path = tmp_path / "training.dsjson"
    report = Exporter(world.config, folder_of(world)).write(path, "dsjson-training", Selection(model=MODEL))
    assert report.n_lines == trained.n_rows > 300
    expected = weights_of(train(world, path)[0])
    np.testing.assert_array_equal(weights_of(Workspace(model_data=trained.workspace)), expected)
    # The learner that was live all along, too.
    np.testing.assert_array_equal(weights_of(world.learner._learner._workspace), expected)


def test_the_weights_that_scored_a_decision_give_its_logged_propensities_back(
    world: Exported, items: ItemHistory
) -> None:
    """A candidate model is scored as a worker would score it: from the log, and from the items of that time."""
    spec = world.config.model_spec(MODEL)
    table = WeightTable(spec)
    table.apply(world.weights.indices, world.weights.values, version=1)
    outcomes = read_outcomes(world.config, folder_of(world), MODEL, Span())
    decisions = [joined for joined in whole_decisions(outcomes) if joined.decision.event_id in world.scored_by_weights]
    assert len(decisions) == 30
    scored = score_decisions(decisions, table=table, features=CandidateFeatures(world.config.features, items))
    assert scored.n_skipped == 0
    np.testing.assert_array_equal(scored.target, scored.logged)
    # The negative control: other weights are another policy.
    other = score_decisions(
        decisions, table=WeightTable(spec), features=CandidateFeatures(world.config.features, items)
    )
    assert np.abs(other.target - other.logged).max() > 0.1


NASTY = [
    "_label",
    "_x=1",
    "_multi",
    "plain",
    "a b ",
    "|x:1",
    'q"uo\\te',
    "tab\there",
    "nul\0l",
    "12",
    " 7",
    "日本😀",
    "",
]


@pytest.mark.parametrize("names", [*([name] for name in NASTY), NASTY])
def test_any_feature_name_is_hashed_as_learning_hashes_it(names: list[str], tmp_path: Path) -> None:
    features = {"item": {name: 0.1 + n for n, name in enumerate(names)}, "dynamic": {"gone": 0.0, "tiny": 1e-50}}
    line = {
        "_label_cost": -1,
        "_label_probability": 1.0,
        "_label_Action": 1,
        "_labelIndex": 0,
        "a": [1],
        "c": {"_multi": [action_context(features)]},
        "p": [1.0],
    }
    path = tmp_path / "line.dsjson"
    path.write_bytes(orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
    arguments = ["--cb_adf", "--noconstant", "-b", "20", "--power_t", "0"]
    run_cli_driver(["--dsjson", "-d", str(path), "-f", str(tmp_path / "m"), *arguments, "--quiet"])
    used = np.flatnonzero(Workspace(model_data=(tmp_path / "m").read_bytes()).weights()[:, 0, 0])
    assert set(used) == {index & (2**20 - 1) for index in encode_features("item", features["item"]).indices.tolist()}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_evaluation_has_every_action_of_a_slot_with_its_exact_probability(
    world: Exported, items: ItemHistory, tmp_path: Path
) -> None:
    path = tmp_path / "evaluation.dsjson"
    report = Exporter(world.config, folder_of(world), items=items).write(path, "dsjson-evaluation", ALL)
    lines = lines_of(path)
    assert report.n_lines == len(lines) == world.learner._learner.n_learned
    assert set(+report.left_out) <= {"late"}
    decisions = {decision.event_id: decision for decision in world.archived()}
    for line in lines:
        decision, slot = decisions[line["EventId"]], line["slot"]
        record, chosen = decision.slots[slot], line["_labelIndex"]
        before = {earlier.item_id for earlier in decision.slots[:slot]}
        assert set(line["items"]) == set(decision.candidates.ids) - before
        assert line["items"][chosen] == record.item_id
        assert (line["_label_Action"], line["a"][0]) == (chosen + 1, chosen + 1)
        assert line["p"][0] == line["_label_probability"] == line["propensity"] == record.propensity
        assert sum(line["p"]) == pytest.approx(1.0, abs=1e-12)
        assert sorted(line["a"]) == list(range(1, len(line["items"]) + 1))
        assert len(line["c"]["_multi"]) == len(line["items"])
        assert line["c"]["_multi"][chosen] == orjson.loads(
            orjson.dumps(action_context(record.features), option=orjson.OPT_SERIALIZE_NUMPY)
        )
    assert Counter(line["kind"] for line in lines)["reward"] > 20


def test_every_action_of_the_evaluation_has_the_features_it_was_scored_with(
    world: Exported, items: ItemHistory
) -> None:
    """Scored from the export's names, every action, drawn or not, gets the score that its decision logged."""
    lines = [
        orjson.loads(line)
        for line in Exporter(world.config, folder_of(world), items=items).lines("dsjson-evaluation", ALL)
    ]
    decisions = {decision.event_id: decision for decision in world.archived()}
    table = WeightTable(world.config.model_spec(MODEL))
    table.apply(world.weights.indices, world.weights.values, version=1)
    compared = [line for line in lines if line["EventId"] in world.scored_by_weights]
    assert len(compared) > 30
    for line in compared:
        named = {**_named(line["c"]), "position": world.config.features.named("position", {"slot": 0})}
        actions = [encoded(_named(features)) for features in line["c"]["_multi"]]
        stacked = {name: ActionFeatures.stack([action[name] for action in actions]) for name in ACTION_NAMESPACES}
        scores = table.score(encoded(named), stacked)
        candidates = decisions[line["EventId"]].candidates
        logged = dict(zip(candidates.ids, np.frombuffer(candidates.scores, dtype="<f4").tolist(), strict=True))
        assert np.count_nonzero(scores) > 1
        assert scores.tolist() == pytest.approx([logged[item_id] for item_id in line["items"]], abs=1e-6)


def _named(context: dict[str, Any]) -> dict[str, dict[str, float]]:
    names = {letter: name for name, letter in NAMESPACE_LETTERS.items()}
    return {names[letter]: features for letter, features in context.items() if letter in names}


@pytest.mark.parametrize("mode", [[], ["--cb_explore_adf", "--epsilon", "0.1"]])
def test_vw_reads_the_evaluation_without_a_warning(
    world: Exported, items: ItemHistory, tmp_path: Path, mode: list[str]
) -> None:
    path = tmp_path / "evaluation.dsjson"
    report = Exporter(world.config, folder_of(world), items=items).write(path, "dsjson-evaluation", ALL)
    arguments = mode or ["--cb_adf", "--cb_type", "mtr"]
    output, warnings = run_cli_driver(["--dsjson", "-d", str(path), "-t", *arguments])
    assert warnings == []
    assert f"number of examples = {report.n_lines}" in output
    assert "warning" not in output.lower()


def test_explored_slots_alone_have_the_probabilities_of_exploring(world: Exported, tmp_path: Path) -> None:
    path = tmp_path / "explored.dsjson"
    report = Exporter(world.config, folder_of(world)).write(path, "explored", ALL)
    lines = lines_of(path)
    decisions = {decision.event_id: decision for decision in world.archived()}
    branches = Counter(slot.branch for decision in decisions.values() for slot in decision.slots)
    explored = branches["shortlist"] + branches["uniform"]
    assert report.n_lines == len(lines) == explored > 10
    exploration = world.config.surfaces["home"].exploration
    for line in lines:
        n = decisions[line["EventId"]].slots[line["slot"]].n_feasible
        mass = {"uniform": exploration.rate * exploration.uniform_share}
        mass["shortlist"] = exploration.rate - mass["uniform"]
        assert line["explore_probability"] == pytest.approx(exploration.rate)
        assert line["branch_probability"] == pytest.approx(mass[line["branch"]])
        if line["branch"] == "uniform":
            assert line["branch_propensity"] == pytest.approx(1 / n)
        assert line["_label_probability"] == pytest.approx(max(line["explore_propensity"], 0.05), rel=1e-6)
        # The logged propensity is the mixture's: exploring adds its share of it, the greedy part the rest.
        added = line["explore_probability"] * line["explore_propensity"]
        greedy = line["propensity"] - added
        assert greedy == pytest.approx(0.0, abs=1e-12) or greedy > (1 - exploration.rate) / n - 1e-9
    assert train(world, path)[1] == []


def test_a_selection_by_surface_and_time_is_of_decisions(world: Exported) -> None:
    decisions = world.archived()
    cut_ms = sorted(d.decided_at_unix_ms for d in decisions)[100]
    exporter = Exporter(world.config, folder_of(world))
    early = list(exporter.lines("dsjson-training", Selection(surface="home", to_ms=cut_ms)))
    late = list(exporter.lines("dsjson-training", Selection(surface="home", from_ms=cut_ms)))
    every = list(exporter.lines("dsjson-training", Selection(surface="home")))
    assert len(early) > 20
    assert sorted(early + late) == sorted(every)
    assert {orjson.loads(line)["surface"] for line in every} == {"home"}
    assert len(every) < world.learner._learner.n_learned
    assert +exporter.report.left_out == Counter(late=exporter.report.left_out["late"])


async def test_slots_that_are_open_are_said_to_be(tmp_path: Path) -> None:
    world = memory_world(tmp_path, seed=2)
    await world.start()
    for worker in world.workers:
        await world.decide(worker)
    await world.settle()
    await world.close()
    n_slots = sum(len(decision.slots) for decision in world.archived())
    for kind in ("dsjson-training", "dsjson-evaluation", "explored"):
        exporter = Exporter(world.config, folder_of(world))
        assert list(exporter.lines(kind, ALL)) == []  # type: ignore[arg-type]
        assert exporter.report.left_out["open"] == n_slots


def test_vws_command_line_does_warn_of_lines_that_it_cannot_read(world: Exported, tmp_path: Path) -> None:
    """The control of the tests above: their silence says something."""
    line = orjson.loads(next(Exporter(world.config, folder_of(world)).lines("dsjson-training", ALL)))
    path = tmp_path / "wrong.dsjson"
    path.write_bytes(orjson.dumps({**line, "_labelIndex": 7}, option=orjson.OPT_APPEND_NEWLINE))
    _, warnings = run_cli_driver(["--dsjson", "-d", str(path), "-t", "--cb_adf"])
    assert warnings
