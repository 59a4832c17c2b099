"""Read the Wikidata films into items. Pure but for reading the SQLite file it is given."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from retrieval.items import Attribute, Item

MIN_AGE_OF_RATING = {
    "G": 0,
    "PG": 8,
    "GP": 8,  # 1970-72 name of PG
    "M": 8,  # 1968-70 name of PG
    "M/PG": 8,
    "PG-13": 13,
    "R": 17,
    "NC-17": 18,
    "X": 18,  # name of NC-17 until 1990
}
"""Smallest viewer age by MPAA rating, for every rating that occurs in the data."""

MAX_CAST = 5

_QUERY = """
    select f.ID, f.imdbID, f.Title, f.Year, f.Rating, f.Runtime, f.Genre, f.Released, f.Director, f.Cast,
           f.Language, f.Country, t.Meter
    from omdb f left join tomatoes t on t.ID = f.ID
    order by f.ID
"""

Row = tuple[
    int, str | None, str, int, str | None, float | None, str, str | None, str, str, str | None, str | None, int | None
]


def read_films(path: Path) -> list[Item]:
    """Read all films from `movies.db`, in the order of their row ids.

    The id is the IMDb id; a film without one, or whose id an earlier film has, gets `f<row id>`.

    Args:
        path: The SQLite file.

    Returns:
        One item a film.
    """
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        return build_items(database.execute(_QUERY))


def build_items(rows: Iterable[Row]) -> list[Item]:
    """Build items from rows of the films table; see `read_films`."""
    items: list[Item] = []
    taken: set[str] = set()
    for row in rows:
        imdb_id = row[1]
        item_id = imdb_id if imdb_id and imdb_id not in taken else f"f{row[0]}"
        taken.add(item_id)
        items.append(_item(item_id, row))
    return items


def _item(item_id: str, row: Row) -> Item:
    _, _, title, year, rating, runtime, genres, released, directors, cast, languages, countries, meter = row
    spoken, made_in, directed_by = split_list(languages), split_list(countries), split_list(directors)
    possible: dict[str, Attribute | None] = {
        "genres": split_list(genres),
        "year": float(year),
        "language": spoken[0] if spoken else None,
        "languages": spoken,
        "country": made_in[0] if made_in else None,
        "runtime": runtime if runtime and runtime > 0 else None,
        "directors": directed_by,
        "cast": split_list(cast)[:MAX_CAST],
        "rating": rating,
        "meter": None if meter is None else float(meter),
    }
    return Item(
        id=item_id,
        title=title,
        attributes={name: value for name, value in possible.items() if value is not None and value != []},
        creator=directed_by[0] if directed_by else None,
        min_age=MIN_AGE_OF_RATING.get(rating) if rating else None,
        available_at_unix_ms=unix_ms(released) if released else None,
    )


def split_list(text: str | None) -> list[str]:
    """Split `Drama, Crime` into its parts, without empty ones and repeats."""
    return list(dict.fromkeys(part.strip() for part in (text or "").split(", ") if part.strip()))


def unix_ms(day: str) -> int:
    """Convert an ISO day to the milliseconds of its UTC midnight since 1970 (negative before)."""
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000)
