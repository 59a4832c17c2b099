"""From canonical files to embeddings: which positives are read, and how a training that was killed goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.bundle import read_embeddings
from retrieval.embeddings import AlsConfig, Embeddings
from service.offline import OfflineError, TrainingConfig, TrainingReport, read_positives, train_embeddings

N_ROUNDS = 6


def write_interactions(path: Path, rows: Sequence[tuple[object, object, float]]) -> None:
    columns = zip(*rows, strict=True)
    pq.write_table(pa.table(dict(zip(("user_id", "item_id", "value"), map(list, columns), strict=True))), path)


# Positives -------------------------------------------------------------------------------------------------------


def test_positives_are_numbered_by_their_ids_in_order_and_count_with_their_largest_value(tmp_path: Path) -> None:
    rows = [("u2", "b", 4.0), ("u10", "é", 3.0), ("u2", "b", 5.0), ("u2", "a", 3.0), ("u3", "zz", 2.0)]
    write_interactions(tmp_path / "x.parquet", rows)
    matrix, user_ids, item_ids = read_positives(tmp_path / "x.parquet", positive_from=3.0)
    assert user_ids == ["u10", "u2"]
    assert item_ids == ["a", "b", "é"]
    assert matrix.toarray().tolist() == [[0.0, 0.0, 1.0], [1.0, 3.0, 0.0]]
    assert matrix.has_sorted_indices


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [(f"u{rng.integers(30)}", f"i{rng.integers(20)}", float(rng.integers(1, 6))) for _ in range(500)]
    matrices = []
    for order in (range(500), rng.permutation(500)):
        write_interactions(tmp_path / "x.parquet", [rows[row] for row in order])
        matrices.append(read_positives(tmp_path / "x.parquet", positive_from=2.0))
    assert matrices[0][1:] == matrices[1][1:]
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(matrices[0][0], name), getattr(matrices[1][0], name))


def test_numbers_are_ids_too(tmp_path: Path) -> None:
    write_interactions(tmp_path / "x.parquet", [(7, 10, 3.0), (7, 9, 3.0)])
    assert read_positives(tmp_path / "x.parquet", positive_from=3.0)[1:] == (["7"], ["10", "9"])


def test_interactions_without_an_id_are_refused(tmp_path: Path) -> None:
    write_interactions(tmp_path / "x.parquet", [("u", None, 3.0), ("u", "a", 3.0)])
    with pytest.raises(OfflineError, match="must hold a user_id and an item_id in every row"):
        read_positives(tmp_path / "x.parquet", positive_from=3.0)


# Going on --------------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A data folder whose 40 items are liked by 60 users of two tastes."""
    (tmp_path / "demo").mkdir()
    items = [{"id": f"i{n}", "attributes": {"genres": ["Drama" if n < 20 else "Comedy"]}} for n in range(40)]
    (tmp_path / "demo" / "items.ndjson").write_bytes(b"".join(orjson.dumps(item) + b"\n" for item in items))
    rng = np.random.default_rng(0)
    liked = [(user, item) for user in range(60) for item in rng.choice(20, size=8, replace=False) + 20 * (user % 2)]
    rows = [(f"u{user}", f"i{item}", float(rng.integers(3, 6))) for user, item in liked]
    write_interactions(tmp_path / "demo" / "interactions.parquet", rows)
    return tmp_path


def train(folder: Path, *, target: str = "embeddings", **of_als: float) -> tuple[TrainingReport, list[tuple[int, int]]]:
    steps: list[tuple[int, int]] = []
    settings = {"factors": 8, "iterations": N_ROUNDS, **of_als}
    report = train_embeddings(
        folder / "demo" / "items.ndjson",
        folder / "demo" / "interactions.parquet",
        folder / target / "embeddings.npz",
        TrainingConfig(als=AlsConfig(**settings)),
        lambda *step: steps.append(step),
    )
    return report, steps


def trained(folder: Path, target: str = "embeddings") -> Embeddings:
    return read_embeddings(folder / target / "embeddings.npz")


def kill_in_training(folder: Path, failpoint: str) -> None:
    """Run the command until SIGKILL ends it at a point."""
    options = ["--factors", "8", "--iterations", str(N_ROUNDS), "--data-dir", str(folder)]
    ended = subprocess.run(
        [sys.executable, "-m", "service", "embeddings", "train", *options],
        env={**os.environ, "HONE_FAILPOINT": failpoint},
        capture_output=True,
        timeout=120,
    )
    assert ended.returncode == -9, ended.stderr
    assert not (folder / "embeddings" / "embeddings.npz").exists()


# The fourth file is half in place, or not synced: three rounds are safe. At the fourth folder, four are.
@pytest.mark.parametrize(("failpoint", "n_safe"), [("files.rename:kill:4", 3), ("files.sync_folder:kill:4", 4)])
def test_a_killed_training_goes_on_from_its_last_round_and_ends_with_the_same_bits(
    world: Path, failpoint: str, n_safe: int
) -> None:
    kill_in_training(world, failpoint)
    report, steps = train(world)
    assert report.n_rounds_resumed == n_safe
    assert steps == [(n, N_ROUNDS + 5) for n in range(1, N_ROUNDS + 6)]
    assert train(world, target="uninterrupted")[0].n_rounds_resumed == 0
    resumed, whole = trained(world), trained(world, "uninterrupted")
    for name in ("item_vectors", "user_vectors", "gram", "content_map"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))
    assert [path.name for path in (world / "embeddings").iterdir()] == ["embeddings.npz"]


def test_a_finished_training_is_not_gone_on_with(world: Path) -> None:
    train(world)
    assert train(world)[0].n_rounds_resumed == 0


@pytest.mark.parametrize("change", ["interactions", "seed", "fewer rounds", "damage"])
def test_rounds_of_another_training_are_no_start(world: Path, change: str) -> None:
    interrupt(world, after=3)
    of_als: dict[str, float] = {}
    if change == "interactions":
        write_interactions(world / "demo" / "interactions.parquet", [("u1", "i1", 3.0), ("u2", "i2", 3.0)])
    elif change == "damage":
        path = world / "embeddings" / ".embeddings.npz.training"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        of_als = {"seed": 1} if change == "seed" else {"iterations": 2}
    report, _ = train(world, **of_als)
    assert report.n_rounds_resumed == 0
    train(world, target="uninterrupted", **of_als)
    np.testing.assert_array_equal(trained(world).user_vectors, trained(world, "uninterrupted").user_vectors)


def test_unchanged_it_would_have_been_a_start(world: Path) -> None:
    interrupt(world, after=3)
    assert train(world, iterations=N_ROUNDS + 1)[0].n_rounds_resumed == 3


def interrupt(folder: Path, *, after: int) -> None:
    def stop(done: int, _total: int) -> None:
        # One step is for reading.
        if done == after + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_embeddings(
            folder / "demo" / "items.ndjson",
            folder / "demo" / "interactions.parquet",
            folder / "embeddings" / "embeddings.npz",
            TrainingConfig(als=AlsConfig(factors=8, iterations=N_ROUNDS)),
            stop,
        )
