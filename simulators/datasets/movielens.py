"""Read MovieLens 100k in either of its two formats into the same tables, and match its films to a catalogue. Pure.

The publisher's archive (`u.data`, `u.item`, `u.user`) and the repackaged atomic files (`ml-100k.inter`, `.item`,
`.user`) hold the same ratings and users byte for byte but for separators and headers; their titles differ in accents
and in two films, which `catalogue_digest` levels.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.items import Item

AGES_AS_OF_YEAR = 1998
"""The survey was taken from September 1997 to April 1998; ages are read as of 1 January 1998."""

ARTICLES = frozenset(
    "the a an le la les l il lo gli i el los las der die das den det de het een un une una uno o os as".split()
)

FILMS_DIGEST = "94cd4843b4c6ba4562c35504508b7a032f2655bf37e63b13076ae76682a290b2"
"""`catalogue_digest` of the 1,682 films."""

GENRES = (
    "Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical Mystery"
    " Romance Sci-Fi Thriller War Western"
).split()
"""The last columns of the publisher's `u.item`, in their order; one for "unknown" is before them."""

SPELLINGS = {
    "colour": "color", "colours": "colors", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12",
}  # fmt: skip
"""Words that one catalogue spells otherwise than another."""


@dataclass(frozen=True, slots=True)
class MovieLensFilm:
    """A film of MovieLens: its id, its title as written without the year, its year (None when unknown), its genres."""

    id: int
    title: str
    year: int | None
    genres: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MovieLensUser:
    """A person of MovieLens: id, age in years, occupation, country (Canadian or American postal code)."""

    id: int
    age: int
    occupation: str
    country: str


@dataclass(frozen=True, slots=True, eq=False)
class MovieLens:
    """The tables.

    Attributes:
        ratings: int64 [n, 4]: user id, film id, rating 1 to 5, Unix time in seconds; in the order published.
        films: One entry a film.
        users: One entry a user.
    """

    ratings: NDArray[np.int64]
    films: list[MovieLensFilm]
    users: list[MovieLensUser]


def parse_publisher(files: Mapping[str, bytes]) -> MovieLens:
    """Parse `u.data`, `u.item` and `u.user`: no headers, latin-1, tabs in the first, bars in the others."""
    films = []
    for fields in _rows(files["u.item"], encoding="latin-1", separator="|"):
        title, year = split_year(fields[1])
        flags = fields[-len(GENRES) :]
        genres = tuple(genre for genre, flag in zip(GENRES, flags, strict=True) if flag == "1")
        films.append(MovieLensFilm(int(fields[0]), title, year, genres))
    users = _rows(files["u.user"], encoding="latin-1", separator="|")
    return MovieLens(_ratings(_rows(files["u.data"], encoding="latin-1", separator="\t")), films, _users(users))


def parse_atomic(files: Mapping[str, bytes]) -> MovieLens:
    """Parse `ml-100k.inter`, `ml-100k.item` and `ml-100k.user`: typed headers, UTF-8, tabs."""
    films = []
    rows = _rows(files["ml-100k.item"], encoding="utf-8", separator="\t")[1:]
    for film_id, written, written_year, written_genres in rows:
        # One title kept its year, because "(V)" follows it there and was taken for the year.
        title, year = split_year(written)
        genres = tuple(genre for genre in written_genres.split(" ") if genre in GENRES)
        year = int(written_year) if written_year.isdecimal() else year
        films.append(MovieLensFilm(int(film_id), title, year, genres))
    users = _rows(files["ml-100k.user"], encoding="utf-8", separator="\t")[1:]
    ratings = _rows(files["ml-100k.inter"], encoding="utf-8", separator="\t")[1:]
    return MovieLens(_ratings(ratings), films, _users(users))


def parse(files: Mapping[str, bytes]) -> MovieLens:
    """Parse whichever of the two formats the files are in.

    Raises:
        ValueError: the films are not those of MovieLens 100k. (Ratings and users are pinned file by file; the
            publisher's `u.item` circulates in several encodings, so its films are pinned by what they say.)
    """
    tables = parse_publisher(files) if "u.item" in files else parse_atomic(files)
    found = catalogue_digest(tables.films)
    if found != FILMS_DIGEST:
        raise ValueError(f"the films of MovieLens 100k must have digest {FILMS_DIGEST}, got {found}")
    return tables


def catalogue_digest(films: Sequence[MovieLensFilm]) -> str:
    """Digest ids, years and the plain letters of titles: equal for both formats. Without a year only the id counts."""
    lines = (f"{f.id}|{f.year}|{re.sub('[^a-z0-9]', '', _without_accents(f.title)) if f.year else ''}\n" for f in films)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def split_year(title: str) -> tuple[str, int | None]:
    """Split `Toy Story (1995)` into the title and the year; a mark after the year, as in `(1995) (V)`, is dropped."""
    found = re.fullmatch(r"(.*?)\s*\((\d{4})\)(?:\s*\([A-Z]+\))?\s*", title)
    return (found[1], int(found[2])) if found else (title.strip(), None)


def normalise_title(title: str) -> str:
    """Reduce a title to what differs between films, not between catalogues.

    Accents, case, punctuation and articles at either end go, `&` is `and`, small numbers are digits.

    Examples:
        >>> normalise_title("Misérables, Les"), normalise_title("The Good, the Bad & the Ugly")
        ('miserables', 'good the bad and the ugly')
    """
    folded = _without_accents(title.replace("&", " and ")).replace("æ", "ae").replace("ø", "o")
    elided = re.sub(r"\bl['\u2019]", "l ", folded)
    words = re.sub(r"[^a-z0-9]+", " ", re.sub(r"['\u2019.*]", "", elided)).split()
    if len(words) > 1 and "," in title and words[-1] in ARTICLES:
        words = words[:-1]
    if len(words) > 1 and words[0] in ARTICLES:
        words = words[1:]
    return " ".join(SPELLINGS.get(word, word) for word in words)


def title_keys(title: str) -> list[str]:
    """List the normalised names a title may be known by, the likeliest first: itself, then those in brackets."""
    outside = re.sub(r"\([^)]*\)", " ", title)
    inside = [
        part
        for group in re.findall(r"\(([^)]*)\)", title)
        for part in [group, re.sub(r"^(?:a\.?k\.?a\.?) ", "", group)]
    ]
    keys = [normalise_title(text) for text in (outside, *inside, title)]
    return [key for key in dict.fromkeys(keys) if key]


def match_films(films: Sequence[MovieLensFilm], items: Sequence[Item]) -> dict[int, str]:
    """Match films to the items of a catalogue by normalised title and year, one year off at most.

    The same year is tried before the neighbouring ones, and the title before the names in brackets. Several items of
    the same name and year are decided by the first in the catalogue's order. A film that is still alone matches the
    one item of its year of whose title it is a part (`Star Wars` of `Star Wars: Episode IV - A New Hope`). Two films
    may match one item: MovieLens lists some films twice.

    Args:
        films: Films of MovieLens.
        items: The catalogue, with a `year` attribute.

    Returns:
        Item id by film id, for the films that match.
    """
    item_of: dict[tuple[str, int], str] = {}
    items_with_part: dict[tuple[str, int], set[str]] = {}
    for item in items:
        year = item.attributes.get("year")
        if isinstance(year, float):
            for key in title_keys(item.title):
                item_of.setdefault((key, int(year)), item.id)
            for part in _title_parts(item.title):
                items_with_part.setdefault((part, int(year)), set()).add(item.id)
    matches: dict[int, str] = {}
    for film in films:
        if film.year is None:
            continue
        candidates = ((key, film.year + shift) for shift in (0, -1, 1) for key in title_keys(film.title))
        matched = next((item_of[candidate] for candidate in candidates if candidate in item_of), None)
        if matched is None:
            holders = set().union(*(items_with_part.get((key, film.year), ()) for key in title_keys(film.title)))
            matched = holders.pop() if len(holders) == 1 else None
        if matched is not None:
            matches[film.id] = matched
    return matches


def birth_date(age: int) -> str:
    """Give the birth date of someone who was `age` on 1 January 1998: that day, `age` years earlier."""
    return f"{AGES_AS_OF_YEAR - age:04d}-01-01"


def _without_accents(title: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", title) if not unicodedata.combining(c)).lower()


def _title_parts(title: str) -> list[str]:
    parts = re.split(r":\s+|\s+[\u2013\u2014-]\s+", title)
    return [normalise_title(part) for part in parts] if len(parts) > 1 else []


def _rows(content: bytes, *, encoding: str, separator: str) -> list[list[str]]:
    return [line.split(separator) for line in content.decode(encoding).splitlines() if line]


def _ratings(rows: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    return np.asarray(rows, dtype=np.int64).reshape(-1, 4)


def _users(rows: Sequence[Sequence[str]]) -> list[MovieLensUser]:
    return [
        MovieLensUser(int(user_id), int(age), occupation, "CA" if re.match(r"[A-Z]\d[A-Z]", code) else "US")
        for user_id, age, _, occupation, code in rows
    ]
