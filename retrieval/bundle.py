"""Write and read index bundles: the one place of retrieval that touches disk.

A bundle is a folder `<root>/<version>/` that never changes once it is there; `<root>/current` names the one to serve.
Files are written to a temporary folder, synced, renamed; a crash leaves the old state or the new one. A reader
verifies every checksum before an index library sees a byte: damaged files crash the process that loads them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from retrieval.content_space import ContentSpace
from retrieval.embeddings import Embeddings, Tastes
from retrieval.indexes import IndexConfig, IndexKind, index_files, load_index, save_index
from retrieval.item_to_item import Neighbours
from retrieval.manifest import MANIFEST, SCHEMA_VERSION, BundleError, read_manifest, seal
from retrieval.vectors import Metric, VectorIndex, as_vectors

CURRENT = "current"
KEPT_BUNDLES = 3
INDEX_METRICS: dict[str, Metric] = {"als": "ip", "similar": "cosine"}

_ARRAYS = ("item_vectors", "n_interactions", "user_vectors", "gram", "content_map")
_ID_LISTS = ("item_ids", "user_ids")
# Parts of embeddings that may be missing, with their arrays; files are named by both.
_PARTS: dict[str, tuple[type[ContentSpace | Neighbours | Tastes], tuple[str, ...]]] = {
    "content": (ContentSpace, ("projection", "vectors", "digests")),
    "neighbours": (Neighbours, ("n_users", "ends", "items", "counts")),
    "tastes": (Tastes, ("gram", "mean")),
}
_VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A verified bundle, loaded.

    Attributes:
        version: Its name.
        embeddings: Arrays mapped from the files, shared between the processes of a machine and read-only.
        kind: Of both indexes.
        als: Inner products over the item vectors; labels are positions in `embeddings.item_ids`.
        similar: Cosines over the item vectors; the same labels.
        content: Cosines over the content vectors; the same labels. None when the embeddings have no content space.
    """

    version: str
    embeddings: Embeddings
    kind: IndexKind
    als: VectorIndex
    similar: VectorIndex
    content: VectorIndex | None = None


def write_bundle(
    root: Path,
    embeddings: Embeddings,
    *,
    version: str,
    hmac_key: bytes | None,
    config: IndexConfig | None = None,
    keep: int = KEPT_BUNDLES,
) -> Path:
    """Build both indexes, write the bundle, make it current and prune old ones.

    Args:
        root: Folder of the bundles; made when missing.
        embeddings: What to serve.
        version: Name of the new folder; one that is there already is replaced, and is missing for a moment.
        hmac_key: Signs the manifest; None leaves it unsigned.
        config: Kind and parameters of both indexes.
        keep: Bundles to keep, the new one included.

    Returns:
        The folder of the bundle.

    Raises:
        BundleError: the version is not a plain name.
        ValueError: an id is there twice, or a vector is not finite.
    """
    _check_version(version)
    _check_content(embeddings)
    root.mkdir(parents=True, exist_ok=True)
    config = config or IndexConfig()
    kind = config.kind_for(len(embeddings.item_ids))
    with _locked(root):
        for leftover in (*root.glob(".new-*"), *root.glob(".gone-*")):
            shutil.rmtree(leftover)
        folder = root / f".new-{version}"
        folder.mkdir()
        bounds = _write_files(folder, embeddings, kind, config)
        names = sorted(path.name for path in folder.iterdir())
        manifest: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "version": version,
            "n_items": len(embeddings.item_ids),
            "n_users": len(embeddings.user_ids),
            "dimension": embeddings.dimension,
            "alpha0": embeddings.alpha0,
            "regularization": embeddings.regularization,
            "kind": kind,
            "norm_bounds": bounds,
            "files": {name: _digest(folder / name) for name in names},
        }
        _write(folder / MANIFEST, lambda file: file.write(seal(manifest, hmac_key)))
        for name in names:
            _sync(folder / name)
        _sync(folder)
        final = root / version
        if final.exists():
            _remove(final)
        folder.rename(final)
        _sync(root)
        set_current(root, version)
        prune(root, keep=keep)
    return final


def load_bundle(
    root: Path, version: str | None = None, *, hmac_key: bytes | None = None, config: IndexConfig | None = None
) -> Bundle:
    """Verify a bundle and load it.

    Args:
        root: Folder of the bundles.
        version: Which one; None is the current one.
        hmac_key: Key of the signature; with a key an unsigned bundle is refused, without one none is checked.
        config: Search parameters of both indexes.

    Returns:
        The bundle.

    Raises:
        BundleError: something is missing, damaged, of another schema or wrongly signed.
    """
    version = current_version(root) if version is None else _check_version(version)
    folder = root / version
    manifest = read_manifest(folder, version, hmac_key)
    expected = {f"{name}.npy" for name in _ARRAYS} | {f"{name}.msgpack" for name in _ID_LISTS}
    expected |= index_files(manifest["kind"], INDEX_METRICS)
    for part, (_, names) in _PARTS.items():
        files = {f"{part}_{name}.npy" for name in names}
        if part == "content":
            files |= index_files(manifest["kind"], ["content"])
        if files & set(manifest["files"]):
            expected |= files
    if set(manifest["files"]) != expected:
        raise BundleError(f"bundle {version} must list {sorted(expected)}, got {sorted(manifest['files'])}")
    for name, digest in manifest["files"].items():
        try:
            found = _digest(folder / name)
        except OSError as error:
            raise BundleError(f"bundle {version} lacks {name}: {error.strerror}") from error
        if found != digest:
            raise BundleError(f"bundle {version} is damaged: {name} must have sha256 {digest}, got {found}")
    try:
        return _load_files(folder, manifest, config or IndexConfig())
    except (ValueError, OSError, RuntimeError, msgspec.MsgspecError) as error:
        raise BundleError(f"bundle {version} does not fit together: {error}") from error


def current_version(root: Path) -> str:
    """Read which bundle is current.

    Raises:
        BundleError: none is, or the file does not name one.
    """
    try:
        return _check_version((root / CURRENT).read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"no current bundle in {root}: {error}") from error


def set_current(root: Path, version: str) -> None:
    """Make a bundle the current one, atomically."""
    _check_version(version)
    replacement = root / f".{CURRENT}.new"
    _write(replacement, lambda file: file.write(f"{version}\n".encode()))
    replacement.replace(root / CURRENT)
    _sync(root)


def prune(root: Path, *, keep: int = KEPT_BUNDLES) -> list[str]:
    """Remove all but the newest bundles; the current one always stays. Returns the versions removed.

    A process that has a removed bundle loaded keeps its mapped files until it lets go of them.
    """
    found = [path.parent for path in root.glob(f"*/{MANIFEST}") if _VERSION.fullmatch(path.parent.name)]
    newest_first = sorted(found, key=lambda path: ((path / MANIFEST).stat().st_mtime_ns, path.name), reverse=True)
    current = current_version(root) if (root / CURRENT).exists() else None
    kept = [path for path in newest_first if path.name == current]
    kept += [path for path in newest_first if path.name != current][: max(keep - len(kept), 0)]
    removed = [path for path in newest_first if path not in kept]
    for path in removed:
        _remove(path)
    return [path.name for path in removed]


def write_embeddings(path: Path, embeddings: Embeddings) -> None:
    """Write embeddings to one npz file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scalars = np.asarray([embeddings.alpha0, embeddings.regularization])
    ids = {name: np.frombuffer(msgspec.msgpack.encode(getattr(embeddings, name)), np.uint8) for name in _ID_LISTS}
    arrays = {name: getattr(embeddings, name) for name in _ARRAYS} | _part_arrays(embeddings)
    replacement = path.with_name(f".{path.name}.new")
    _write(replacement, lambda file: np.savez(file, allow_pickle=False, fold_in=scalars, **ids, **arrays))
    replacement.replace(path)
    _sync(path.parent)


def read_embeddings(path: Path) -> Embeddings:
    """Read what `write_embeddings` wrote.

    Raises:
        BundleError: the file is missing or damaged.
    """
    try:
        # numpy leaves a damaged file open when it is given a path.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            ids = {name: msgspec.msgpack.decode(file[name].tobytes(), type=list[str]) for name in _ID_LISTS}
            alpha0, regularization = (float(value) for value in file["fold_in"])
            arrays = {name: file[name] for name in file.files if name not in (*_ID_LISTS, "fold_in")}
        return _embeddings(ids, arrays, alpha0=alpha0, regularization=regularization)
    except Exception as error:  # a damaged zip raises many types
        raise BundleError(f"embeddings file {path} cannot be read: {error}") from error


def _write_files(folder: Path, embeddings: Embeddings, kind: IndexKind, config: IndexConfig) -> dict[str, float]:
    arrays = {name: getattr(embeddings, name) for name in _ARRAYS} | _part_arrays(embeddings)
    for name, array in arrays.items():
        _write(folder / f"{name}.npy", partial(_save_array, array=array))
    for name in _ID_LISTS:
        (folder / f"{name}.msgpack").write_bytes(msgspec.msgpack.encode(getattr(embeddings, name)))
    # Inner products are asked of user vectors, cosines of item vectors.
    queries = {"als": embeddings.user_vectors, "similar": embeddings.item_vectors}
    bounds = {
        name: save_index(
            folder,
            name,
            embeddings.item_vectors,
            kind=kind,
            metric=metric,
            queries=queries[name],
            config=config,
        )
        for name, metric in INDEX_METRICS.items()
    }
    if embeddings.content is not None:
        vectors = embeddings.content.vectors
        save_index(folder, "content", vectors, kind=kind, metric="cosine", queries=vectors, config=config)
    return bounds


def _load_files(folder: Path, manifest: dict[str, Any], config: IndexConfig) -> Bundle:
    ids = {
        name: msgspec.msgpack.decode((folder / f"{name}.msgpack").read_bytes(), type=list[str]) for name in _ID_LISTS
    }
    names = [name.removesuffix(".npy") for name in manifest["files"] if name.endswith(".npy")]
    # As plain arrays: every slice of a `memmap` is made by Python code.
    arrays = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in names}
    embeddings = _embeddings(ids, arrays, alpha0=manifest["alpha0"], regularization=manifest["regularization"])
    counts = {"n_items": len(embeddings.item_ids), "n_users": len(embeddings.user_ids)}
    for name, count in counts.items():
        if manifest[name] != count:
            raise ValueError(f"{name} must be {manifest[name]}, got {count}")
    kind: IndexKind = manifest["kind"]
    indexes = {
        name: load_index(
            folder,
            name,
            embeddings.item_vectors,
            kind=kind,
            metric=metric,
            norm_bound=manifest["norm_bounds"][name],
            config=config,
        )
        for name, metric in INDEX_METRICS.items()
    }
    content = None
    if embeddings.content is not None:
        vectors = embeddings.content.vectors
        content = load_index(folder, "content", vectors, kind=kind, metric="cosine", norm_bound=1.0, config=config)
    return Bundle(manifest["version"], embeddings, kind, indexes["als"], indexes["similar"], content)


def _part_arrays(embeddings: Embeddings) -> dict[str, NDArray[Any]]:
    parts = {part: getattr(embeddings, part) for part in _PARTS}
    return {
        f"{part}_{name}": getattr(parts[part], name)
        for part, (_, names) in _PARTS.items()
        for name in names
        if parts[part] is not None
    }


def _embeddings(
    ids: dict[str, list[str]], arrays: dict[str, NDArray[Any]], *, alpha0: float, regularization: float
) -> Embeddings:
    parts: dict[str, Any] = {
        part: kind(**{name: arrays[f"{part}_{name}"] for name in names})
        for part, (kind, names) in _PARTS.items()
        if f"{part}_{names[0]}" in arrays
    }
    return Embeddings(
        item_ids=ids["item_ids"],
        item_vectors=arrays["item_vectors"],
        n_interactions=arrays["n_interactions"],
        user_ids=ids["user_ids"],
        user_vectors=arrays["user_vectors"],
        gram=arrays["gram"],
        content_map=arrays["content_map"],
        alpha0=alpha0,
        regularization=regularization,
        **parts,
    )


def _check_content(embeddings: Embeddings) -> None:
    for name in _ID_LISTS:
        ids: list[str] = getattr(embeddings, name)
        if len(set(ids)) != len(ids):
            twice = next(i for i, n in Counter(ids).items() if n > 1)
            raise ValueError(f"{name} must be distinct, got {twice!r} more than once")
    for name in ("item_vectors", "user_vectors", "content_map"):
        try:
            as_vectors(getattr(embeddings, name), embeddings.dimension)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def _remove(folder: Path) -> None:
    """Remove a bundle; what a crash leaves of it is no bundle, and goes with the next one that is written."""
    gone = folder.with_name(f".gone-{folder.name}")
    folder.rename(gone)
    shutil.rmtree(gone)


def _check_version(version: str) -> str:
    if not _VERSION.fullmatch(version):
        raise BundleError(f"bundle version must be letters, digits, '_', '.', '-', got {version!r}")
    return version


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save_array(file: BinaryIO, array: NDArray[Any]) -> None:
    np.save(file, array, allow_pickle=False)


def _write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    with path.open("wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the lock of a bundle root: one writer at a time, so that leftovers are nobody's work in progress."""
    with (root / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
