"""Write the canonical demo files (`items.ndjson`, `users.ndjson`, `interactions.parquet`) from the fetched data sets.

Nothing trains here. Files are written only when an input or this code has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.items import Item
from simulators.datasets import films, movielens
from simulators.datasets.fetch import Fetched

ITEMS = "items.ndjson"
USERS = "users.ndjson"
INTERACTIONS = "interactions.parquet"
SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """What the demo files hold; also written to `summary.json`.

    Attributes:
        n_items: Films.
        n_users: People.
        n_interactions: Ratings of matched films; of a film rated twice by one person the later rating.
        n_rated_films: Films of MovieLens.
        n_matched_films: Films of MovieLens found among the items.
        n_matched_items: Items they are; fewer, as MovieLens lists some films twice.
        n_ratings: Ratings of MovieLens.
        matched_share: Share of the ratings whose film was found.
        fingerprint: Digest of the inputs and of the code that wrote the files.
        sha256: Digest by file.
    """

    n_items: int
    n_users: int
    n_interactions: int
    n_rated_films: int
    n_matched_films: int
    n_matched_items: int
    n_ratings: int
    matched_share: float
    fingerprint: str
    sha256: dict[str, str]


def prepare_demo(
    folder: Path, *, film_files: Fetched, rating_files: Fetched, force: bool = False
) -> tuple[DemoSummary, bool]:
    """Write the demo files.

    Args:
        folder: Where to; made when missing.
        film_files: The films, as fetched.
        rating_files: MovieLens, as fetched.
        force: Write even if nothing has changed.

    Returns:
        The summary, and whether files were written (False: they were up to date).

    Raises:
        ValueError: an input does not hold what it should.
    """
    fingerprint = _fingerprint(film_files, rating_files)
    if not force and (existing := read_summary(folder)) and _is_current(folder, existing, fingerprint):
        return existing, False
    items = films.read_films(film_files.files["movies.db"])
    tables = movielens.parse({name: path.read_bytes() for name, path in rating_files.files.items()})
    item_of = movielens.match_films(tables.films, items)
    interactions = build_interactions(tables.ratings, item_of)
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / ITEMS, lambda path: _write_lines(path, items))
    _replace(folder / USERS, lambda path: _write_lines(path, [_user(user) for user in tables.users]))
    _replace(folder / INTERACTIONS, lambda path: pq.write_table(interactions, path))
    summary = DemoSummary(
        n_items=len(items),
        n_users=len(tables.users),
        n_interactions=interactions.num_rows,
        n_rated_films=len(tables.films),
        n_matched_films=len(item_of),
        n_matched_items=len(set(item_of.values())),
        n_ratings=len(tables.ratings),
        matched_share=float(np.isin(tables.ratings[:, 1], list(item_of)).mean()),
        fingerprint=fingerprint,
        sha256={name: _digest(folder / name) for name in (ITEMS, USERS, INTERACTIONS)},
    )
    _replace(folder / SUMMARY, lambda path: path.write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2)))
    return summary, True


def build_interactions(ratings: NDArray[np.int64], item_of: Mapping[int, str]) -> pa.Table:
    """Build the interactions of matched films, in the order of time.

    Args:
        ratings: int64 [n, 4]: user id, film id, rating, Unix seconds.
        item_of: Item id by film id.

    Returns:
        user_id, item_id, value (float64), at_unix_ms (int64); one row a user and item, the latest.
    """
    latest: dict[tuple[int, str], tuple[int, int]] = {}
    for user_id, film_id, rating, at_s in ratings.tolist():
        item_id = item_of.get(film_id)
        if item_id is not None:
            key = (user_id, item_id)
            latest[key] = max(latest.get(key, (at_s, rating)), (at_s, rating))
    rows = sorted((at_s, user_id, item_id, rating) for (user_id, item_id), (at_s, rating) in latest.items())
    return pa.table(
        {
            "user_id": pa.array([f"ml-{user_id}" for _, user_id, _, _ in rows], pa.string()),
            "item_id": pa.array([item_id for _, _, item_id, _ in rows], pa.string()),
            "value": pa.array([float(rating) for *_, rating in rows], pa.float64()),
            "at_unix_ms": pa.array([at_s * 1000 for at_s, *_ in rows], pa.int64()),
        }
    )


def read_summary(folder: Path) -> DemoSummary | None:
    """Read the summary of a demo folder; None when there is none of this schema."""
    try:
        return msgspec.json.decode((folder / SUMMARY).read_bytes(), type=DemoSummary)
    except (OSError, msgspec.MsgspecError):
        return None


def _user(user: movielens.MovieLensUser) -> dict[str, Any]:
    return {
        "user_id": f"ml-{user.id}",
        "birth_date": movielens.birth_date(user.age),
        "country": user.country,
        "attributes": {"occupation": user.occupation},
    }


def _fingerprint(*inputs: Fetched) -> str:
    digest = hashlib.sha256()
    for fetched in inputs:
        for name, checksum in sorted(fetched.sha256.items()):
            digest.update(f"{fetched.name}/{name} {checksum}\n".encode())
    for source in (films.__file__, movielens.__file__, __file__):
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()


def _is_current(folder: Path, summary: DemoSummary, fingerprint: str) -> bool:
    if summary.fingerprint != fingerprint:
        return False
    return all(
        (folder / name).is_file() and _digest(folder / name) == checksum for name, checksum in summary.sha256.items()
    )


def _write_lines(path: Path, records: Sequence[Item] | Sequence[dict[str, Any]]) -> None:
    encoder = msgspec.json.Encoder()
    path.write_bytes(b"".join(encoder.encode(record) + b"\n" for record in records))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    replacement = path.with_name(f".{path.name}.new")
    write(replacement)
    replacement.replace(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
