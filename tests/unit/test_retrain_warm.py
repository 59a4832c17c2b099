"""Warm start: from interactions without propensities to a model that ranks, says what it is, and is no evidence."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandit.features import Feature, FeatureSchema
from retrieval.items import Item
from service.adapters.memory_store import MemoryChangeLog, MemoryJournal, MemoryModelStore
from service.adapters.memory_streams import MemoryStore
from service.config import Config, HealthConfig, ModelConfig, SurfaceConfig
from service.config_writer import ConfigWriter
from service.errors import InvalidRequest
from service.item_history import ItemHistory
from service.messages import ModelSnapshot, encode
from service.model_registry import Manifest, ModelRegistry, OpenedArtefact
from service.promote import Evidence, Promoter
from service.retrain_report import write_report
from service.retrain_warm import NO_PROPENSITIES, Catalogue, read_history, train_warm, warm_manifest

START_MS = 1_700_000_000_000
GENRES = ("comedy", "crime", "drama", "horror")
N_ITEMS, N_USERS = 160, 60
SCHEMA = FeatureSchema(
    features=[
        Feature(name="taste", namespace="user", source="recent_genres", kind="weighted", limit=4),
        Feature(name="slot", namespace="position", source="slot"),
        Feature(name="genre", namespace="item", source="genres", kind="multi"),
    ],
    interactions=[("user", "item")],
)


def _config(folder: Path) -> Config:
    return Config(
        data_dir=str(folder),
        health=HealthConfig(),
        features=SCHEMA,
        models={"m": ModelConfig(bits=14, learning_rate=0.02)},
        surfaces={"home": SurfaceConfig(model="m")},
    )


def _catalogue(config: Config) -> Catalogue:
    items = {f"i{n:03}": Item(id=f"i{n:03}", attributes={"genres": [GENRES[n % 4]]}) for n in range(N_ITEMS)}
    return Catalogue(config, items)


def _interactions(path: Path, *, has_taste: bool = True) -> Path:
    """Write what people liked: mostly one genre each, or anything."""
    rng = np.random.default_rng(4)
    users = rng.integers(N_USERS, size=N_USERS * 40)
    in_genre = rng.random(len(users)) < 0.9
    genres = np.where(in_genre & has_taste, users % 4, rng.integers(4, size=len(users)))
    items = genres + 4 * rng.integers(N_ITEMS // 4, size=len(users))
    table = pa.table(
        {
            "user_id": [f"u{user}" for user in users.tolist()],
            "item_id": [f"i{item:03}" for item in items.tolist()],
            "value": np.ones(len(users)),
            "at_unix_ms": START_MS + 60_000 * np.arange(len(users)),
        }
    )
    pq.write_table(table, path)
    return path


def _trained(folder: Path, *, has_taste: bool = True) -> tuple[Config, Manifest, bytes]:
    config = _config(folder)
    catalogue = _catalogue(config)
    history = read_history(_interactions(folder / "i.parquet", has_taste=has_taste), catalogue, positive_from=1.0)
    learner, n_rows, scores = train_warm(config, "m", history, catalogue, surface="home")
    return config, *warm_manifest(
        config, "m", learner, history=history, n_rows=n_rows, scores=scores, now_ms=START_MS + 10**9
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Manifest, bytes]:
    return _trained(tmp_path_factory.mktemp("warm"))


def test_on_the_first_day_it_ranks_better_than_chance_and_than_popularity(
    trained: tuple[Config, Manifest, bytes],
) -> None:
    _, manifest, _ = trained
    scores = manifest.scores
    for metric, chance in (("hr10", 10 / 101), ("ndcg10", 0.045)):
        warm, popular, untrained = (scores[f"{metric}_{name}"] for name in ("warm", "popular", "untrained"))
        assert untrained.value == pytest.approx(chance, abs=0.001)
        assert warm.low is not None
        assert popular.high is not None
        assert warm.low > popular.high
        assert warm.low > 2 * chance
    assert scores["n_ranked"].value == pytest.approx(240, abs=5)


def test_where_there_is_no_taste_it_ranks_like_chance(tmp_path: Path) -> None:
    """The control, within 4 standard errors: false alarm below 1e-4."""
    _, manifest, _ = _trained(tmp_path, has_taste=False)
    warm = manifest.scores["hr10_warm"]
    assert warm.value is not None
    assert warm.high is not None
    assert abs(warm.value - 10 / 101) < 4 * (warm.high - warm.value) / 1.96


def test_it_says_that_its_rows_have_no_propensities(tmp_path: Path, trained: tuple[Config, Manifest, bytes]) -> None:
    _, manifest, _ = trained
    assert (manifest.kind, manifest.warm, manifest.weighting) == ("warm", True, "none")
    write_report(tmp_path / "report.html", manifest=manifest, trained=[], plan=None)
    assert "without propensities" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_none_of_its_figures_is_a_policys_value(trained: tuple[Config, Manifest, bytes]) -> None:
    _, manifest, _ = trained
    assert not {"ips", "snips", "dr", "advantage", "logged"} & manifest.scores.keys()
    values = [score for name, score in manifest.scores.items() if name != "n_ranked"]
    assert len(values) == 6
    assert all(score.refusal == NO_PROPENSITIES for score in values)


async def _gates(config: Config, opened: OpenedArtefact, models: MemoryModelStore) -> dict[str, tuple[bool, str]]:
    store = MemoryStore(lambda: START_MS)
    journal = MemoryJournal(store)
    writer = ConfigWriter(config, log=MemoryChangeLog(store), journal=journal, clock=lambda: START_MS)
    promoter = Promoter(config, models=models, journal=journal, writer=writer, clock=lambda: START_MS, author="me")
    nothing = Evidence(decisions=lambda _: iter(()), items=ItemHistory(), n_skew_values=0, n_skew_mismatches=0)
    return {gate.name: (gate.passed, gate.reason) for gate in await promoter.gates(opened, nothing)}


async def test_it_may_start_a_new_model_and_is_no_evidence_against_one_that_has_learned(
    tmp_path: Path, trained: tuple[Config, Manifest, bytes]
) -> None:
    _, manifest, workspace = trained
    config = _config(tmp_path)
    models = MemoryModelStore(MemoryStore(lambda: START_MS))
    opened = await ModelRegistry(config, models).add(manifest, workspace)
    assert {passed for passed, _ in (await _gates(config, opened, models)).values()} == {True}
    epoch = await models.take_epoch("m")
    learned = ModelSnapshot(
        epoch=epoch,
        version=7,
        stream_id="0-0",
        schema_version=SCHEMA.version,
        bits=14,
        arguments=[],
        indices=np.array([3], dtype="<u4").tobytes(),
        values=np.array([0.5], dtype="<f4").tobytes(),
    )
    await models.publish_snapshot("m", epoch, encode(learned))
    passed, reason = (await _gates(config, opened, models))["advantage"]
    assert not passed
    assert reason.startswith("no archived decision")


def test_what_is_stored_is_what_the_manifest_says(trained: tuple[Config, Manifest, bytes]) -> None:
    _, manifest, workspace = trained
    assert manifest.workspace_sha256 == hashlib.sha256(workspace).hexdigest()
    assert manifest.from_ms == START_MS
    assert manifest.to_ms == START_MS + 60_000 * (N_USERS * 40 - 1) + 1
    # A positive and four drawn negatives for each, but for what a user had chosen before.
    assert manifest.n_rows == pytest.approx(5 * 0.9 * N_USERS * 40, rel=0.01)


@pytest.mark.parametrize(
    ("columns", "told"), [(["user_id", "item_id"], "must have the columns"), (None, "no interact")]
)
def test_interactions_that_cannot_be_used_are_refused(tmp_path: Path, columns: list[str] | None, told: str) -> None:
    path = _interactions(tmp_path / "i.parquet")
    table = pq.read_table(path)
    unknown = table.set_column(1, "item_id", pa.array(["unknown"] * len(table)))
    pq.write_table(unknown if columns is None else table.select(columns), path)
    with pytest.raises(InvalidRequest, match=told) as refused:
        read_history(path, _catalogue(_config(tmp_path)), positive_from=1.0)
    assert refused.value.path == "--interactions"


def test_a_manifest_of_a_warm_model_reads_back(trained: tuple[Config, Manifest, bytes]) -> None:
    _, manifest, _ = trained
    assert msgspec.convert(msgspec.to_builtins(manifest), Manifest) == manifest
