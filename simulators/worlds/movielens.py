"""Tastes fitted to MovieLens 100k: its people, its films, and who likes what as their ratings say.

The ratings are factorised with biases; a film's log odds to be clicked are those of a rating of at least four, moved by
one constant so that clicks are as rare as clicks are. What the model of a service sees is what MovieLens published of
people and films; the factors stay hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bandit.features import Feature
from retrieval.items import Item
from simulators.datasets import fetch as fetching
from simulators.datasets.movielens import GENRES, MovieLensFilm, MovieLensUser, parse

Float64Array = npt.NDArray[np.float64]

_LIKED = 3.5
# The logistic function with this slope is the normal distribution function within 0.01.
_LOGISTIC_SLOPE = 1.702
_N_SWEEPS = 8
_HIT_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class MovieLensTasteSpec:
    """Which films, and how the ratings are fitted.

    Attributes:
        cache: Folder that `hone data fetch` keeps downloads in.
        min_ratings: Films with fewer are left out: nobody knows who likes them.
        n_factors: Of the factorisation.
        regularization: Ridge on factors and biases, in ratings.
        shift: Added to the log odds of liking, to make log odds of clicking.
    """

    cache: str
    min_ratings: int = 20
    n_factors: int = 8
    regularization: float = 5.0
    shift: float = -2.0

    def features(self) -> list[Feature]:
        """Return what MovieLens published of people and films."""
        return [
            Feature(name="age", namespace="context", source="age", kind="numeric", edges=[18.0, 25.0, 35.0, 50.0]),
            Feature(name="occupation", namespace="context", source="occupation"),
            Feature(name="genre", namespace="item", source="genres", kind="multi", limit=6),
            Feature(
                name="year", namespace="item", source="year", kind="numeric", edges=[1970.0, 1980.0, 1990.0, 1995.0]
            ),
        ]

    def build(self, seed: int) -> MovieLensTastes:
        """Return the tastes; there is one MovieLens, whatever the seed.

        Raises:
            FetchError: the data set is not in the cache.
        """
        return _fitted(self)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Ratings as biases and factors: rating(u, i) = mean + user_u + film_i + U_u F_i.

    Attributes:
        mean: Of all ratings.
        users: float64 [n_users, 1 + n_factors]: bias and factors.
        films: float64 [n_films, 1 + n_factors].
        rmse: Root mean squared error on the ratings it was fitted to.
    """

    mean: float
    users: Float64Array
    films: Float64Array
    rmse: float

    def ratings(self, user: int) -> Float64Array:
        """Return float64 [n_films], what a user would rate."""
        return np.asarray(self.mean + self.users[user, 0] + self.films[:, 0] + self.films[:, 1:] @ self.users[user, 1:])


def fit_ratings(
    users: npt.NDArray[np.int64], films: npt.NDArray[np.int64], ratings: Float64Array, config: MovieLensTasteSpec
) -> Fit:
    """Factorise ratings by alternating ridge regressions; n ratings of users and films that are numbered from 0."""
    rng = np.random.default_rng(0)
    k = config.n_factors
    shape = (int(users.max()) + 1, int(films.max()) + 1)
    mean = float(ratings.mean())
    sides = [np.zeros((n, 1 + k)) for n in shape]
    sides[1][:, 1:] = 0.1 * rng.standard_normal((shape[1], k))
    index = (users, films)
    rows_of = [_rows_by(at, n) for at, n in zip(index, shape, strict=True)]
    for _ in range(_N_SWEEPS):
        for one, other in ((0, 1), (1, 0)):
            for number, rows in enumerate(rows_of[one]):
                fixed = sides[other][index[other][rows]]
                design = np.column_stack([np.ones(len(rows)), fixed[:, 1:]])
                gram = design.T @ design + config.regularization * np.eye(1 + k)
                sides[one][number] = np.linalg.solve(gram, design.T @ (ratings[rows] - mean - fixed[:, 0]))
    fit = Fit(mean, sides[0], sides[1], 0.0)
    told = (
        mean + sides[0][users, 0] + sides[1][films, 0] + np.einsum("nk,nk->n", sides[0][users, 1:], sides[1][films, 1:])
    )
    return Fit(fit.mean, fit.users, fit.films, float(np.sqrt(np.mean((ratings - told) ** 2))))


class MovieLensTastes:
    """People and films by number: people as MovieLens numbers them, films by year and then by id."""

    def __init__(
        self, spec: MovieLensTasteSpec, films: list[MovieLensFilm], users: list[MovieLensUser], fit: Fit
    ) -> None:
        self._spec = spec
        self._films = films
        self._users = users
        self.fit = fit
        self._slope = _LOGISTIC_SLOPE / fit.rmse
        liked_by_all = fit.films[:, 0]
        self._is_hit = liked_by_all >= np.quantile(liked_by_all, 1.0 - _HIT_SHARE)
        self._groups = [GENRES.index(film.genres[0]) if film.genres else len(GENRES) for film in films]

    @property
    def n_groups(self) -> int:
        """Return the number of genres, with one for none."""
        return len(GENRES) + 1

    @property
    def n_items(self) -> int:
        """Return the number of films."""
        return len(self._films)

    @property
    def n_users(self) -> int:
        """Return the number of people."""
        return len(self._users)

    def group(self, number: int) -> int:
        """Return the first genre."""
        return self._groups[number]

    def is_hit(self, number: int) -> bool:
        """Return whether a film is in the best tenth by bias."""
        return bool(self._is_hit[number])

    def item(self, number: int, *, available_at_unix_ms: int) -> Item:
        """Return a film with its title, genres and year."""
        film = self._films[number]
        attributes: dict[str, Any] = {"genres": list(film.genres), "year": float(film.year or 0)}
        return Item(
            id=f"f{film.id:04d}", title=film.title, attributes=attributes, available_at_unix_ms=available_at_unix_ms
        )

    def context(self, user: int) -> dict[str, Any]:
        """Return age and occupation; beyond the last person they start over."""
        person = self._users[user % len(self._users)]
        return {"age": person.age, "occupation": person.occupation}

    def log_odds(self, user: int, *, first: int, n: int, elapsed_ms: int) -> Float64Array:
        """Return the log odds of a rating of at least four, moved; tastes stay as they are."""
        ratings = self.fit.ratings(user % len(self._users))[first : first + n]
        log_odds: Float64Array = self._slope * (ratings - _LIKED) + self._spec.shift
        return log_odds


@lru_cache(maxsize=2)
def _fitted(spec: MovieLensTasteSpec) -> MovieLensTastes:
    found = fetching.fetch(fetching.movielens(), Path(spec.cache), offline=True)
    tables = parse({name: path.read_bytes() for name, path in found.files.items()})
    film_ids, n_ratings = np.unique(tables.ratings[:, 1], return_counts=True)
    often = set(film_ids[n_ratings >= spec.min_ratings].tolist())
    films = sorted((film for film in tables.films if film.id in often), key=lambda film: (film.year or 0, film.id))
    users = sorted(tables.users, key=lambda user: user.id)
    number_of_film = {film.id: number for number, film in enumerate(films)}
    number_of_user = {user.id: number for number, user in enumerate(users)}
    kept = [row for row in tables.ratings.tolist() if row[1] in number_of_film]
    fit = fit_ratings(
        np.array([number_of_user[row[0]] for row in kept]),
        np.array([number_of_film[row[1]] for row in kept]),
        np.array([row[2] for row in kept], dtype=np.float64),
        spec,
    )
    return MovieLensTastes(spec, films, users, fit)


def _rows_by(at: npt.NDArray[np.int64], n: int) -> list[npt.NDArray[np.int64]]:
    """Return the rows of every number below n."""
    order = np.argsort(at, kind="stable")
    return np.split(order, np.searchsorted(at[order], np.arange(1, n)))
