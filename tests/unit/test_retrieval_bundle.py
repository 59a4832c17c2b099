"""Bundles: what is written is read, and nothing damaged is."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import orjson
import pytest

from retrieval.bundle import (
    current_version,
    load_bundle,
    prune,
    read_embeddings,
    set_current,
    write_bundle,
    write_embeddings,
)
from retrieval.embeddings import Embeddings, Tastes
from retrieval.exact import ExactIndex
from retrieval.index import HnswIndex
from retrieval.indexes import EXACT_UP_TO, IndexConfig
from retrieval.manifest import BundleError, seal
from retrieval.quantised import QuantisedIndex
from retrieval.recall import recall_at_k

KEY = b"a key of the operator"
GRAPH = IndexConfig(kind="graph")
CLASSES = {"graph": HnswIndex, "quantised": QuantisedIndex, "exact": ExactIndex}
FILES = [
    "als.hnsw",
    "content_map.npy",
    "gram.npy",
    "item_ids.msgpack",
    "item_vectors.npy",
    "manifest.json",
    "n_interactions.npy",
    "similar.hnsw",
    "user_ids.msgpack",
    "user_vectors.npy",
]


def _embeddings(n: int = 120, seed: int = 0) -> Embeddings:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 8)).astype(np.float32)
    return Embeddings(
        item_ids=[f"item-{row}" for row in range(n)],
        item_vectors=vectors,
        n_interactions=rng.integers(0, 9, size=n).astype(np.int32),
        user_ids=["u1", "u2"],
        user_vectors=rng.normal(size=(2, 8)).astype(np.float32),
        gram=vectors.astype(np.float64).T @ vectors.astype(np.float64),
        content_map=rng.normal(size=(16, 8)).astype(np.float32),
        alpha0=0.25,
        regularization=0.5,
    )


def _same(one: Embeddings, two: Embeddings) -> bool:
    return all(
        np.array_equal(getattr(one, field.name), getattr(two, field.name)) for field in dataclasses.fields(Embeddings)
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_bundle(tmp_path, _embeddings(), version="v1", hmac_key=KEY, config=GRAPH)
    return tmp_path


def _reseal(path: Path, key: bytes | None = KEY, **changes: object) -> None:
    manifest = orjson.loads(path.read_bytes())
    for name in ("sha256", "hmac"):
        manifest.pop(name, None)
    changed = {name: value for name, value in {**manifest, **changes}.items() if value is not None}
    path.write_bytes(seal(changed, key))


def test_a_bundle_reads_back_as_it_was_written(root: Path) -> None:
    bundle = load_bundle(root, hmac_key=KEY)
    assert bundle.version == "v1"
    assert _same(bundle.embeddings, _embeddings())
    assert bundle.embeddings.item_vectors.dtype == np.float32
    assert bundle.embeddings.gram.dtype == np.float64
    for index, metric in ((bundle.als, "ip"), (bundle.similar, "cosine")):
        oracle = ExactIndex(8, metric=metric)
        oracle.add(np.arange(120), bundle.embeddings.item_vectors)
        assert len(index) == 120
        assert recall_at_k(index, oracle, bundle.embeddings.item_vectors[:20], 10) > 0.95


@pytest.mark.parametrize("kind", ["graph", "quantised", "exact"])
def test_a_bundle_of_each_kind_reads_back_whatever_the_reader_would_build(tmp_path: Path, kind: str) -> None:
    write_bundle(tmp_path, _embeddings(), version="v1", hmac_key=KEY, config=IndexConfig(kind=kind))
    bundle = load_bundle(tmp_path, hmac_key=KEY, config=IndexConfig(kind="auto"))
    assert bundle.kind == kind
    for index, metric in ((bundle.als, "ip"), (bundle.similar, "cosine")):
        assert type(index) is CLASSES[kind]
        oracle = ExactIndex(8, metric=metric)
        oracle.add(np.arange(120), bundle.embeddings.item_vectors)
        assert len(index) == 120
        assert recall_at_k(index, oracle, bundle.embeddings.item_vectors[:20], 10) > 0.9
        index.remove(np.arange(119))
        index.add(np.asarray([120]), bundle.embeddings.item_vectors[:1])
        assert sorted(index.search(bundle.embeddings.item_vectors[0], 9)[0].tolist()) == [119, 120]


def test_the_size_of_the_catalogue_decides_the_kind_unless_the_configuration_does() -> None:
    assert [IndexConfig().kind_for(n) for n in (0, EXACT_UP_TO, EXACT_UP_TO + 1)] == ["exact", "exact", "quantised"]
    assert IndexConfig(kind="graph").kind_for(10**7) == "graph"


def test_a_bundle_of_schema_1_still_loads_as_graphs(root: Path) -> None:
    _reseal(root / "v1" / "manifest.json", schema=1, kind=None)
    bundle = load_bundle(root, hmac_key=KEY)
    assert (bundle.kind, len(bundle.als)) == ("graph", 120)


@pytest.mark.parametrize("kind", ["quantised", "exact"])
def test_a_manifest_of_another_kind_than_its_files_is_refused(root: Path, kind: str) -> None:
    _reseal(root / "v1" / "manifest.json", kind=kind)
    with pytest.raises(BundleError, match="must list"):
        load_bundle(root, hmac_key=KEY)


@pytest.mark.parametrize("name", ["als.ivf", "similar.ivf"])
def test_a_damaged_file_of_lists_is_refused(tmp_path: Path, name: str) -> None:
    write_bundle(tmp_path, _embeddings(), version="v1", hmac_key=KEY, config=IndexConfig(kind="quantised"))
    path = tmp_path / "v1" / name
    content = bytearray(path.read_bytes())
    for position in range(0, len(content), 97):
        damaged = content.copy()
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match=f"damaged: {name}"):
            load_bundle(tmp_path, hmac_key=KEY)


def test_the_folder_holds_exactly_these_files(root: Path) -> None:
    assert sorted(path.name for path in (root / "v1").iterdir()) == FILES


def test_tastes_of_users_read_back_from_both_kinds_of_file_and_may_be_missing(root: Path) -> None:
    assert load_bundle(root, hmac_key=KEY).embeddings.tastes is None
    tastes = Tastes.of(_embeddings().user_vectors)
    embeddings = dataclasses.replace(_embeddings(), tastes=tastes)
    write_bundle(root, embeddings, version="v2", hmac_key=KEY, config=GRAPH)
    write_embeddings(root / "embeddings.npz", embeddings)
    for found in (load_bundle(root, hmac_key=KEY).embeddings, read_embeddings(root / "embeddings.npz")):
        assert found.tastes is not None
        np.testing.assert_array_equal(found.tastes.gram, tastes.gram)
        np.testing.assert_array_equal(found.tastes.mean, tastes.mean)
    (root / "v2" / "tastes_mean.npy").unlink()
    with pytest.raises(BundleError, match="lacks tastes_mean"):
        load_bundle(root, hmac_key=KEY)


def test_writing_twice_gives_the_same_bytes(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    write_bundle(other, _embeddings(), version="v1", hmac_key=KEY, config=GRAPH)
    for name in FILES:
        assert (root / "v1" / name).read_bytes() == (other / "v1" / name).read_bytes()


@pytest.mark.parametrize("key", [KEY, None])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.3, 0.7, 0.999])
def test_one_flipped_byte_is_refused(root: Path, name: str, where: float, key: bytes | None) -> None:
    path = root / "v1" / name
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="v1"):
        load_bundle(root, hmac_key=key)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused(root: Path, name: str, share: float) -> None:
    path = root / "v1" / name
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(BundleError, match="v1"):
        load_bundle(root, hmac_key=KEY)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(root: Path, name: str) -> None:
    (root / "v1" / name).unlink()
    with pytest.raises(BundleError, match="v1"):
        load_bundle(root, hmac_key=KEY)


def test_every_flipped_byte_of_the_manifest_is_refused_without_a_key(root: Path) -> None:
    path = root / "v1" / "manifest.json"
    intact = path.read_bytes()
    for position in range(len(intact)):
        damaged = bytearray(intact)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(BundleError):
            load_bundle(root, hmac_key=None)
    path.write_bytes(intact)
    assert load_bundle(root, hmac_key=None).version == "v1"


def test_another_key_and_a_missing_signature_are_refused(root: Path) -> None:
    with pytest.raises(BundleError, match="wrongly signed"):
        load_bundle(root, hmac_key=b"another key")
    write_bundle(root, _embeddings(), version="v2", hmac_key=None)
    with pytest.raises(BundleError, match="not signed"):
        load_bundle(root, "v2", hmac_key=KEY)
    assert load_bundle(root, "v2", hmac_key=None).version == "v2"


def test_a_manifest_resealed_without_the_key_is_refused(root: Path) -> None:
    _reseal(root / "v1" / "manifest.json", b"a forger's key", alpha0=9.0)
    with pytest.raises(BundleError, match="wrongly signed"):
        load_bundle(root, hmac_key=KEY)


def test_a_manifest_of_another_schema_or_kind_or_with_other_counts_is_refused(root: Path) -> None:
    path = root / "v1" / "manifest.json"
    intact = path.read_bytes()
    files = orjson.loads(intact)["files"]
    for change, message in (
        ({"schema": 3}, "schema 2 or 1"),
        ({"version": "v7"}, "version v1"),
        ({"kind": "tree"}, "must be of kind .* got tree"),
        ({"kind": None}, "must be of kind .* got None"),
        ({"n_items": 119}, "n_items must be 119, got 120"),
        ({"files": {**files, "../../evil": "0"}}, "must list"),
    ):
        path.write_bytes(intact)
        _reseal(path, **change)
        with pytest.raises(BundleError, match=message):
            load_bundle(root, hmac_key=KEY)


@pytest.mark.parametrize("content", [b"", b"v9", b"../v1", b"\xff\xfe", b"v1/../v1"])
def test_a_pointer_to_no_bundle_is_refused(root: Path, content: bytes) -> None:
    (root / "current").write_bytes(content)
    with pytest.raises(BundleError):
        load_bundle(root, hmac_key=KEY)


def test_no_bundle_at_all_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no current bundle"):
        load_bundle(tmp_path, hmac_key=None)


@pytest.mark.parametrize("version", ["", ".hidden", "a/b", "..", "a b", "x" * 200])
def test_a_version_that_is_no_plain_name_is_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(BundleError, match="bundle version must be"):
        write_bundle(tmp_path, _embeddings(), version=version, hmac_key=None)


def test_the_newest_three_and_the_current_bundle_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        write_bundle(tmp_path, _embeddings(20), version=f"v{number}", hmac_key=None)
        os.utime(tmp_path / f"v{number}" / "manifest.json", ns=(number * 10**9, number * 10**9))
    assert sorted(path.parent.name for path in tmp_path.glob("*/manifest.json")) == ["v2", "v3", "v4"]
    assert current_version(tmp_path) == "v4"
    set_current(tmp_path, "v2")
    assert prune(tmp_path, keep=2) == ["v3"]
    assert load_bundle(tmp_path, hmac_key=None).version == "v2"


def test_a_bundle_in_use_survives_its_removal(root: Path) -> None:
    bundle = load_bundle(root, hmac_key=KEY)
    for number in range(2, 6):
        write_bundle(root, _embeddings(20), version=f"v{number}", hmac_key=KEY)
    assert not (root / "v1").exists()
    assert _same(bundle.embeddings, _embeddings())


def test_leftovers_of_a_crashed_build_are_swept_and_never_loaded(root: Path) -> None:
    leftover = root / ".new-v2"
    leftover.mkdir()
    (leftover / "manifest.json").write_text("{}")
    write_bundle(root, _embeddings(), version="v2", hmac_key=KEY)
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["v1", "v2"]
    assert load_bundle(root, hmac_key=KEY).version == "v2"


def test_a_version_written_again_replaces_a_damaged_one(root: Path) -> None:
    (root / "v1" / "als.hnsw").write_bytes(b"")
    write_bundle(root, _embeddings(), version="v1", hmac_key=KEY)
    assert load_bundle(root, hmac_key=KEY).version == "v1"


def test_embeddings_files_read_back_and_damage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "embeddings.npz"
    write_embeddings(path, _embeddings())
    assert _same(read_embeddings(path), _embeddings())
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(BundleError, match=r"embeddings\.npz cannot be read"):
        read_embeddings(path)
    with pytest.raises(BundleError, match="cannot be read"):
        read_embeddings(tmp_path / "absent.npz")
