"""The two offline steps: train embeddings from canonical files, build the index bundle. Reads and writes files only.

Both are deterministic, so a version is a digest of what went in, and building it again changes nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import sparse

from retrieval.bundle import (
    Bundle,
    load_bundle,
    read_embeddings,
    set_current,
    write_bundle,
    write_embeddings,
)
from retrieval.content_space import CONTENT_DIMENSION, build_content_space
from retrieval.embeddings import AlsConfig, Embeddings, Factors, train
from retrieval.exact import ExactIndex
from retrieval.indexes import IndexConfig, IndexKind
from retrieval.item_to_item import NeighbourConfig, find_neighbours
from retrieval.items import Item
from retrieval.manifest import BundleError
from retrieval.recall import recall_at_k
from retrieval.vectors import Metric, VectorIndex
from service.training_checkpoint import TrainingCheckpoint, fingerprint_of

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


class OfflineError(Exception):
    """An input is missing or cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How interactions become embeddings."""

    positive_from: float = 3.0
    """Smallest value that counts as a positive; the rest is left out (3 stars of 5, or 1 for clicks)."""
    als: AlsConfig = field(default_factory=AlsConfig)
    """The training itself. A positive's confidence is its value - positive_from + 1, so 3, 4, 5 stars weigh 1, 2, 3."""
    neighbours: NeighbourConfig = field(default_factory=NeighbourConfig)
    """Neighbours by common users, for the source `also_liked`."""
    content_dimension: int = CONTENT_DIMENSION
    """Length of a content vector, for the source `content`; 0 builds none."""


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What was trained on: counts of the catalogue, of users and items with positives, and of positives."""

    n_items: int
    n_items_with_interactions: int
    n_users: int
    n_positives: int
    dimension: int
    duration_s: float
    path: str
    n_rounds_resumed: int = 0
    """Rounds that an interrupted run had finished; this one went on from there."""


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What was built, and how much of the exact answer the indexes find."""

    version: str
    path: str
    built: bool
    """False when this very bundle was there already and verified."""
    kind: IndexKind
    """What the indexes are; `auto` decides by the number of items."""
    n_items: int
    dimension: int
    bundle_bytes: int
    duration_s: float
    n_queries: int
    recall_als: dict[int, float]
    """recall@k by k of inner products, queried with user vectors."""
    recall_similar: dict[int, float]
    """recall@k by k of cosines, queried with item vectors."""


def read_items(path: Path) -> list[Item]:
    """Read items from NDJSON, one a line.

    Raises:
        OfflineError: the file is missing, or a line is not an item or repeats one (the message has its number).
    """
    decoder = msgspec.json.Decoder(Item)
    items: list[Item] = []
    line_of: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        item = decoder.decode(line)
                    except (msgspec.MsgspecError, ValueError) as error:
                        raise OfflineError(f"{path}, line {number}: not an item: {error}") from error
                    if (earlier := line_of.setdefault(item.id, number)) != number:
                        raise OfflineError(f"{path}, line {number}: item {item.id!r} is on line {earlier} already")
                    items.append(item)
    except OSError as error:
        raise OfflineError(f"{path} cannot be read: {error.strerror}") from error
    return items


def read_positives(path: Path, *, positive_from: float) -> tuple[sparse.csr_matrix, list[str], list[str]]:
    """Read interactions (columns user_id, item_id, value) and keep the positives.

    Args:
        path: Parquet file.
        positive_from: Smallest value kept; a pair that occurs again counts with its largest value.

    Returns:
        CSR [users, columns] of confidences, the user ids, the item ids; ids sorted.

    Raises:
        OfflineError: the file is missing, lacks a column, or has no positive.
    """
    try:
        table = pq.read_table(path, columns=["user_id", "item_id", "value"])
    except (OSError, ValueError, KeyError) as error:
        raise OfflineError(f"{path} must be Parquet with user_id, item_id and value: {error}") from error
    table = table.filter(pc.greater_equal(table["value"], positive_from))
    if not table.num_rows:
        raise OfflineError(f"{path} must hold interactions of value >= {positive_from}, got none")
    if table["user_id"].null_count or table["item_id"].null_count:
        raise OfflineError(f"{path} must hold a user_id and an item_id in every row, got rows without")
    rows, user_ids = _numbered(table["user_id"])
    columns, item_ids = _numbered(table["item_id"])
    values = table["value"].to_numpy().astype(np.float64)
    pairs = rows * len(item_ids) + columns
    # Row by row and column by column: ALS sums in the order of the matrix.
    order = np.argsort(pairs, kind="stable")
    firsts = np.flatnonzero(np.diff(pairs[order], prepend=-1))
    confidence = np.maximum.reduceat(values[order], firsts) - positive_from + 1.0
    kept = order[firsts]
    ends = np.concatenate([[0], np.cumsum(np.bincount(rows[kept], minlength=len(user_ids)))])
    matrix = sparse.csr_matrix((confidence, columns[kept], ends), shape=(len(user_ids), len(item_ids)))
    return matrix, user_ids, item_ids


def train_embeddings(
    items_path: Path,
    interactions_path: Path,
    out_path: Path,
    config: TrainingConfig | None = None,
    progress: Progress | None = None,
) -> TrainingReport:
    """Train embeddings from canonical files and write them to one file.

    Factors are kept beside that file after every round. A run that was interrupted, however hard, goes on from them
    when it is started again with the same interactions and parameters, and gives what it would have given.

    Args:
        items_path: NDJSON of `Item`.
        interactions_path: Parquet with user_id, item_id, value.
        out_path: The npz file to write, atomically.
        config: Threshold and training parameters.
        progress: Called after reading, every round, item vectors, neighbours, content and writing.

    Returns:
        What it was trained on.

    Raises:
        OfflineError: an input cannot be used.
    """
    config = config or TrainingConfig()
    started = time.perf_counter()
    steps = _steps(progress, n=config.als.iterations + 5)
    items = read_items(items_path)
    positives, user_ids, item_ids = read_positives(interactions_path, positive_from=config.positive_from)
    fingerprint = fingerprint_of(positives, user_ids=user_ids, item_ids=item_ids, config=config.als)
    checkpoint = TrainingCheckpoint.beside(out_path, fingerprint=fingerprint)
    start = checkpoint.read()
    if start is not None and start.n_rounds > config.als.iterations:
        start = None
    n_resumed = 0 if start is None else start.n_rounds
    for _ in range(1 + n_resumed):
        next(steps)

    def keep(factors: Factors) -> None:
        checkpoint.write(factors)
        next(steps)

    try:
        embeddings = train(
            positives,
            item_ids=item_ids,
            user_ids=user_ids,
            items=items,
            config=config.als,
            start=start,
            on_round=keep,
        )
        next(steps)
        embeddings = _with_parts(embeddings, positives, item_ids=item_ids, items=items, config=config, steps=steps)
    except ValueError as error:
        raise OfflineError(f"cannot train on {interactions_path} and {items_path}: {error}") from error
    write_embeddings(out_path, embeddings)
    checkpoint.remove()
    next(steps)
    return TrainingReport(
        n_items=len(items),
        n_items_with_interactions=int((embeddings.n_interactions > 0).sum()),
        n_users=len(user_ids),
        n_positives=int(positives.nnz),
        dimension=embeddings.dimension,
        duration_s=time.perf_counter() - started,
        path=str(out_path),
        n_rounds_resumed=n_resumed,
    )


def build_index(
    embeddings_path: Path,
    bundles_root: Path,
    *,
    hmac_key: bytes | None = None,
    config: IndexConfig | None = None,
    ks: Sequence[int] = (10, 100, 1000),
    n_queries: int = 200,
    force: bool = False,
    progress: Progress | None = None,
) -> IndexReport:
    """Build the bundle of an embeddings file, make it current, measure its recall.

    The version is a digest of the file and of the index parameters: an intact bundle of that version is reused.

    Args:
        embeddings_path: What `train_embeddings` wrote.
        bundles_root: Folder of the bundles.
        hmac_key: Signs the manifest.
        config: Kind and parameters of the indexes.
        ks: Where recall is measured; capped at the number of items.
        n_queries: Sampled queries of a recall figure.
        force: Build even if the bundle is there; the new one then gets a name with a number after the digest.
        progress: Called after the build and after each recall figure.

    Returns:
        What was built.

    Raises:
        OfflineError: the embeddings cannot be read or cannot be searched.
    """
    config = config or IndexConfig()
    started = time.perf_counter()
    try:
        digest = hashlib.sha256(embeddings_path.read_bytes())
        embeddings = read_embeddings(embeddings_path)
    except (OSError, BundleError) as error:
        raise OfflineError(f"embeddings cannot be read: {error}") from error
    digest.update(orjson.dumps(asdict(config), option=orjson.OPT_SORT_KEYS))
    version = digest.hexdigest()[:16]
    if force:
        # What may be served now is not touched, and workers exchange a bundle for one of another name only.
        version = next(name for name in _names(version) if not (bundles_root / name).exists())
    bundle = None if force else _intact(bundles_root, version, hmac_key, config)
    built = bundle is None
    if bundle is None:
        try:
            write_bundle(bundles_root, embeddings, version=version, hmac_key=hmac_key, config=config)
        except ValueError as error:
            raise OfflineError(f"no index can be built of {embeddings_path}: {error}") from error
        bundle = load_bundle(bundles_root, version, hmac_key=hmac_key, config=config)
    else:
        set_current(bundles_root, version)
    duration_s = time.perf_counter() - started
    steps = _steps(progress, n=1 + 2 * len(ks))
    next(steps)
    users = embeddings.user_vectors if embeddings.user_ids else embeddings.item_vectors
    recall_als = _recalls(bundle.als, embeddings, "ip", _sample(users, n_queries), ks, steps)
    recall_similar = _recalls(
        bundle.similar, embeddings, "cosine", _sample(embeddings.item_vectors, n_queries), ks, steps
    )
    folder = bundles_root / version
    return IndexReport(
        version=version,
        path=str(folder),
        built=built,
        kind=bundle.kind,
        n_items=len(embeddings.item_ids),
        dimension=embeddings.dimension,
        bundle_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        duration_s=duration_s,
        n_queries=n_queries,
        recall_als=recall_als,
        recall_similar=recall_similar,
    )


def _numbered(ids: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    """Number distinct ids in their order, without a Python object for each row: int64 [n], and the ids."""
    encoded = pc.dictionary_encode(pc.cast(ids, pa.string())).combine_chunks()
    order = pc.sort_indices(encoded.dictionary)
    number = np.empty(len(order), dtype=np.int64)
    number[order.to_numpy()] = np.arange(len(order))
    return number[encoded.indices.to_numpy()], encoded.dictionary.take(order).to_pylist()


def _with_parts(
    embeddings: Embeddings,
    positives: sparse.csr_matrix,
    *,
    item_ids: Sequence[str],
    items: Sequence[Item],
    config: TrainingConfig,
    steps: Iterator[None],
) -> Embeddings:
    """Add the neighbours of items and their content space."""
    position_of = {item.id: position for position, item in enumerate(items)}
    positions = np.asarray([position_of.get(item_id, -1) for item_id in item_ids], dtype=np.int64)
    neighbours = find_neighbours(positives, positions=positions, n_items=len(items), config=config.neighbours)
    next(steps)
    content = None
    if config.content_dimension:
        content = build_content_space(items, dimension=config.content_dimension, n_buckets=config.als.n_buckets)
    next(steps)
    return replace(embeddings, neighbours=neighbours, content=content)


def _names(version: str) -> Iterator[str]:
    yield version
    yield from (f"{version}-{n}" for n in itertools.count(2))


def _intact(root: Path, version: str, hmac_key: bytes | None, config: IndexConfig) -> Bundle | None:
    try:
        return load_bundle(root, version, hmac_key=hmac_key, config=config)
    except BundleError:
        return None


def _recalls(
    index: VectorIndex,
    embeddings: Embeddings,
    metric: Metric,
    queries: NDArray[np.float32],
    ks: Sequence[int],
    steps: Iterator[None],
) -> dict[int, float]:
    oracle = ExactIndex(embeddings.dimension, metric=metric)
    oracle.add(np.arange(len(embeddings.item_ids)), embeddings.item_vectors)
    recalls: dict[int, float] = {}
    for k in ks:
        recalls[k] = recall_at_k(index, oracle, queries, min(k, len(oracle)))
        next(steps)
    return recalls


def _sample(vectors: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(0).permutation(len(vectors))[:n]
    sampled: NDArray[np.float32] = vectors[np.sort(rows)]
    return sampled


def _steps(progress: Progress | None, *, n: int) -> Iterator[None]:
    for done in range(1, n + 1):
        if progress is not None:
            progress(done, n)
        yield
