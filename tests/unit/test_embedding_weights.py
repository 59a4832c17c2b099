"""MIPS of a streamed log: exact marginals from the logged pmf, offered only where every action is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from bandit.exploration import Epsilon
from service.cli import app
from service.export import Selection
from simulators.counterfactual import TargetPolicy
from simulators.evaluate_log import LogEvaluation, evaluate_log
from simulators.logged.archive_log import ArchiveLog
from simulators.logged.dsjson_log import DsjsonLog, DsjsonTarget
from simulators.logged.embeddings import embedding_weight
from simulators.logged.import_report import LogRefused
from simulators.logged_world import LoggedWorld, null_world
from simulators.panel import PanelLine
from tests.archived_world import write_archive
from tests.unit.test_log_dsjson import ccb, single, write

# Three genres of two actions each; within a genre the second is rarely drawn.
PMF = np.array([0.45, 0.05, 0.25, 0.05, 0.15, 0.05])
GENRES = np.array([0, 0, 1, 1, 2, 2])
OF_GENRE = np.array([0.8, 0.4, 0.2])


def line_of(shown: int, reward: float, *, pmf: np.ndarray = PMF) -> dict[str, Any]:
    order = [shown, *(a for a in range(6) if a != shown)]
    return single(
        _label_cost=-reward,
        _label_probability=float(pmf[shown]),
        _labelIndex=shown,
        _label_Action=shown + 1,
        a=[a + 1 for a in order],
        p=pmf[order].tolist(),
        c={"_multi": [{"A": {"id": f"a{a}", "genre": int(GENRES[a]), "tags": {"x": 1, "y": a % 2}}} for a in range(6)]},
    )


def draw(n: int, worth: np.ndarray, *, seed: int, pmf: np.ndarray = PMF) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    shown = rng.choice(6, size=n, p=pmf)
    return [line_of(int(a), float(rng.random() < worth[a]), pmf=pmf) for a in shown]


def evaluate(path: Path, *, embedding: str = "A.genre", target: DsjsonTarget = "uniform") -> LogEvaluation:
    return evaluate_log(DsjsonLog(path, target, embedding=embedding))


def lines_of(found: LogEvaluation) -> dict[str, PanelLine]:
    return {line.name: line for line in found.lines}


def test_the_weight_is_of_everything_alike_under_both_policies() -> None:
    target, logged = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6])
    assert embedding_weight(target, logged, is_alike=np.array([True, True, False])) == pytest.approx(0.8 / 0.4)
    assert embedding_weight(target, logged, is_alike=np.array([False, False, True])) == pytest.approx(0.2 / 0.6)


@pytest.mark.parametrize("direct_effect", [0.0, 0.3])
def test_mips_is_right_and_narrow_where_the_embedding_is_all_that_counts_and_wrong_where_it_is_not(
    tmp_path: Path, direct_effect: float
) -> None:
    """Within 4 standard errors; the negative control, and the documented failure, is a direct effect of the action."""
    worth = OF_GENRE[GENRES] + direct_effect * np.where(np.arange(6) % 2, -0.5, 0.5)
    found = evaluate(write(tmp_path / "log", *draw(3_000, worth, seed=1)))
    lines = lines_of(found)
    mips, ips = lines["mips"], lines["ips"]
    assert mips.support.ess > 1.5 * ips.support.ess
    error, error_of_ips = ((line.interval.upper - line.interval.lower) / 3.92 for line in (mips, ips))
    assert error < 0.8 * error_of_ips
    assert abs(ips.value - worth.mean()) < 4.0 * error_of_ips
    assert (abs(mips.value - worth.mean()) < 4.0 * error) == (direct_effect == 0.0)
    assert any(note.startswith("mips takes actions with the same A.genre for alike") for note in found.report.notes)


def test_mips_needs_support_of_embeddings_alone(tmp_path: Path) -> None:
    """The second action of a genre is never drawn: the log cannot carry uniform, but carries uniform genres."""
    pmf = np.array([0.5, 0.0, 0.3, 0.0, 0.2, 0.0])
    found = evaluate(write(tmp_path / "log", *draw(1_500, OF_GENRE[GENRES], seed=2, pmf=pmf)))
    lines = lines_of(found)
    assert lines["ips"].refusal is not None
    assert lines["mips"].refusal is None
    assert lines["mips"].interval.lower < OF_GENRE.mean() < lines["mips"].interval.upper
    assert found.refusal is None


def test_an_embedding_of_each_action_is_ips_and_one_of_all_is_the_log(tmp_path: Path) -> None:
    path = write(tmp_path / "log", *draw(500, OF_GENRE[GENRES], seed=3))
    each = lines_of(evaluate(path, embedding="A.id"))
    assert each["mips"].value == pytest.approx(each["ips"].value, rel=1e-12)
    whole = evaluate(path, embedding="A.tags.x")
    assert lines_of(whole)["mips"].value == pytest.approx(whole.logged_value, rel=1e-12)
    # Any value is an embedding, whatever the order of its parts.
    assert lines_of(evaluate(path, embedding="A.tags"))["mips"].support.max_weight == pytest.approx(0.5 / 0.15)


def test_a_line_without_the_embedding_is_counted_and_a_log_of_slates_refused(tmp_path: Path) -> None:
    lines = draw(300, OF_GENRE[GENRES], seed=4)
    del lines[1]["c"]["_multi"][3]["A"]["genre"]
    path = write(tmp_path / "log", *lines)
    found = evaluate(path)
    assert (found.report.first_rows, found.n) == ({"embedding: an action has no A.genre": [2]}, 299)
    with pytest.raises(LogRefused, match=r"mips \(by A.x\) is of single actions, got slates of up to 3 slots"):
        evaluate(write(tmp_path / "log", ccb()), embedding="A.x")


def columns_of(world: LoggedWorld, n: int, column: np.ndarray) -> list[Any]:
    """A log whose decisions carry a column of their candidates, as one that a rule reads."""
    packed = (column.dtype.str, column.tobytes())
    log = []
    for one in world.log(n, seed=1):
        candidates = msgspec.structs.replace(one.payload.candidates, columns={"genre": packed})
        log.append(msgspec.structs.replace(one, payload=msgspec.structs.replace(one.payload, candidates=candidates)))
    return log


def test_an_archive_has_the_columns_that_were_logged(tmp_path: Path) -> None:
    world = null_world(seed=1)
    write_archive(tmp_path / "a", columns_of(world, 600, np.array([0, 0, 1, 1, 1], dtype=np.int32)))
    log = ArchiveLog(
        config=world.config,
        folder=tmp_path / "a",
        selection=Selection(),
        target=TargetPolicy(exploration=Epsilon(rate=0.8, uniform_share=1.0)),
        embedding="genre",
    )
    lines = lines_of(evaluate_log(log))
    # A greedy policy of another rate differs from the log by how much of a genre is greedy: less than by action.
    assert lines["mips"].support.ess > lines["ips"].support.ess
    assert lines["mips"].support.mean_weight == pytest.approx(1.0, abs=4.0 * lines["mips"].support.mean_weight_se)
    assert lines["mips"].value == pytest.approx(0.5, abs=0.15)
    unlike = np.arange(5, dtype=np.float32)
    write_archive(tmp_path / "b", columns_of(world, 600, unlike))
    each = lines_of(evaluate_log(replace(log, folder=tmp_path / "b")))
    assert each["mips"].value == pytest.approx(each["ips"].value, rel=1e-9)
    with pytest.raises(LogRefused, match="600 embedding: no column creator was logged"):
        evaluate_log(replace(log, embedding="creator"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "csv", "--policy", "uniform", "--embedding", "genre"], "which csv does not have"),
        (["--format", "dsjson", "--policy", "column", "--embedding", "A.genre"], "with the shown action alone"),
        (["--format", "dsjson", "--policy", "column", "--reward-model", "--cb_adf"], "with the shown action alone"),
        (["--format", "archive", "--reward-model", "--cb_adf"], "an archive has the scores that served"),
        (["--format", "csv", "--policy", "uniform", "--reward-model", "--cb_adf"], "map a column to its word"),
    ],
)
def test_what_a_format_does_not_carry_is_an_error_of_usage(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["evaluate", "--log", str(tmp_path), *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_the_command_shows_mips_and_what_it_takes_for_granted(tmp_path: Path) -> None:
    path = write(tmp_path / "log", *draw(500, OF_GENRE[GENRES], seed=3))
    arguments = ["--format", "dsjson", "--policy", "uniform", "--embedding", "A.genre"]
    result = CliRunner().invoke(app, ["evaluate", "--log", str(path), *arguments])
    assert result.exit_code == 0, result.output
    assert "note: mips takes actions with the same A.genre for alike" in result.stdout
    assert "\nmips  " in result.stdout
