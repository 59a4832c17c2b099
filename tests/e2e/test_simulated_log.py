"""A simulated service's log is learned again by a replay, from the items that were written beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from service.cli import app
from simulators.worlds.churn import Churn
from simulators.worlds.delays import ClickDelay
from simulators.worlds.named import WORLDS
from simulators.worlds.tastes import ClusterTasteSpec
from simulators.worlds.visits import Crowd
from simulators.worlds.world import WorldSpec

N_DECISIONS = 2_000
# Clusters of people who differ in what they like, and few enough items for a log to carry any policy.
SMALL = WorldSpec(
    crowd=Crowd(n_users=1_000, gap_s=200.0),
    delay=ClickDelay(median_s=3.0),
    churn=Churn(n_live=6, every_s=200.0),
    n_slots=1,
    tastes=ClusterTasteSpec(n_clusters=3, n_genres=3, base=-1.0, taste=2.5),
)


def hone(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `hone simulate --out` leaves of a service that drew uniformly."""
    out = tmp_path_factory.mktemp("simulated")
    asked = ["--rate", "1", "--uniform-share", "1", "--learning-rate", "0.01", "--decisions", str(N_DECISIONS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WORLDS, "clustered", lambda: SMALL)
        hone("simulate", "--world", "clustered", *asked, "--out", str(out))
    return out


def replay(folder: Path, *, items: Path) -> dict[str, Any]:
    asked = ["--model", "simulated", "--learn", "--items", str(items), "--exploration", '{"kind":"epsilon","rate":0.1}']
    return json.loads(
        hone("--config", str(folder / "hone.toml"), "replay", "--log", str(folder / "archive"), *asked, "--json")
    )


def advantage_in_standard_errors(figures: dict[str, Any]) -> float:
    """Of the doubly robust value over the mean reward of the log, which is the uniform policy's value."""
    line = figures["estimates"]["dr"]
    error = (line["interval"]["upper"] - line["interval"]["lower"]) / 3.92
    return (line["value"] - figures["logged_value"]) / error


def loss_of_the_mean(figures: dict[str, Any]) -> float:
    """Mean squared error of whoever predicts the mean reward of clicks of 0 and 1."""
    return figures["logged_value"] * (1.0 - figures["logged_value"])


def test_a_policy_that_learns_a_simulated_log_uses_all_of_it_and_beats_uniform(simulated: Path) -> None:
    figures = replay(simulated, items=simulated / "items.ndjson")
    assert (figures["decisions"], figures["import"]["rows_rejected"]) == (N_DECISIONS, 0)
    assert figures["settings"]["items"] == str(simulated / "items.ndjson")
    assert advantage_in_standard_errors(figures) > 3.9
    assert figures["progressive_loss"] < 0.95 * loss_of_the_mean(figures)
    assert figures["curve"][-1]["window_loss"] < figures["curve"][0]["window_loss"]


def test_from_shuffled_rewards_nothing_is_learned(simulated: Path, tmp_path: Path) -> None:
    """The negative control: within 3.9 standard errors, a false alarm once in 10,000 seeds."""
    shutil.copytree(simulated, tmp_path, dirs_exist_ok=True)
    files = sorted((tmp_path / "archive" / "outcomes").rglob("*.parquet"))
    tables = [pq.ParquetFile(path).read() for path in files]
    rewards = np.concatenate([table["reward"].to_numpy() for table in tables])
    shuffled = iter(np.random.default_rng(5).permutation(rewards))
    for path, table in zip(files, tables, strict=True):
        at = table.column_names.index("reward")
        column = pa.array([next(shuffled) for _ in range(len(table))], pa.float64())
        pq.write_table(table.set_column(at, "reward", column), path)
    figures = replay(tmp_path, items=simulated / "items.ndjson")
    assert figures["decisions"] == N_DECISIONS
    assert abs(advantage_in_standard_errors(figures)) < 3.9
    assert figures["progressive_loss"] > loss_of_the_mean(figures)


def test_items_that_are_not_as_they_were_served_are_counted_and_not_scored(simulated: Path, tmp_path: Path) -> None:
    items = [orjson.loads(line) for line in (simulated / "items.ndjson").read_bytes().splitlines()]
    assert len(items) > SMALL.churn.n_live
    items[-1]["attributes"]["genres"] = ["another"]
    missing = items.pop(0)["id"]
    (tmp_path / "items.ndjson").write_bytes(b"\n".join(map(orjson.dumps, items)))
    figures = replay(simulated, items=tmp_path / "items.ndjson")
    assert missing
    rejected = {reason: found["rows"] for reason, found in figures["import"]["rejected"].items()}
    assert rejected.keys() == {
        "item: not in the history of items, so that no model can score it",
        "item: served with other features than the history of items gives it",
    }
    assert figures["decisions"] + sum(rejected.values()) == N_DECISIONS


def test_a_file_that_holds_no_items_refuses_the_replay(simulated: Path, tmp_path: Path) -> None:
    (tmp_path / "items.ndjson").write_text('{"title": "no id"}\n')
    asked = ["--model", "simulated", "--learn", "--items", str(tmp_path / "items.ndjson")]
    config = str(simulated / "hone.toml")
    result = CliRunner().invoke(app, ["--config", config, "replay", "--log", str(simulated / "archive"), *asked])
    assert result.exit_code == 1
    assert "items.ndjson, line 1: not an item" in result.stderr
