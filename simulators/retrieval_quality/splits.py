"""Cut ratings into what methods may learn from and what they are asked for. Pure; the two protocols never mix.

(a) Leave-one-out with sampled negatives, as Ferrari Dacrema, Boglio, Cremonesi and Jannach (2021) did for their table
of DMF on MovieLens 100k, read from their code. (b) A random quarter of each user's ratings, ranked among everything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

IntArray = NDArray[np.int64]

MIN_ITEM_RATINGS = 5
MIN_USER_RATINGS = 20
N_NEGATIVES = 99


@dataclass(frozen=True, slots=True, eq=False)
class Ratings:
    """Ratings by column and row, one for each pair.

    Attributes:
        user: int64 [n], 0..n_users - 1.
        item: int64 [n], 0..n_items - 1.
        value: float64 [n], positive.
        at_s: int64 [n], Unix seconds.
        n_users: Rows.
        n_items: Columns.
    """

    user: IntArray
    item: IntArray
    value: NDArray[np.float64]
    at_s: IntArray
    n_users: int
    n_items: int

    def take(self, kept: NDArray[np.bool_]) -> Ratings:
        """Return the ratings where `kept` bool [n] is true, with the same users and items."""
        return Ratings(self.user[kept], self.item[kept], self.value[kept], self.at_s[kept], self.n_users, self.n_items)

    def matrix(self) -> sparse.csr_matrix:
        """Build the values as CSR float64 [n_users, n_items]."""
        return sparse.csr_matrix((self.value, (self.user, self.item)), shape=(self.n_users, self.n_items))

    def mask(self) -> NDArray[np.bool_]:
        """Build bool [n_users, n_items]: which pairs are rated."""
        rated = np.zeros((self.n_users, self.n_items), dtype=np.bool_)
        rated[self.user, self.item] = True
        return rated


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """What is learned from, and what is asked for."""

    train: Ratings
    test: Ratings


def filtered(ratings: NDArray[np.int64]) -> tuple[Ratings, IntArray]:
    """Keep items of at least 5 ratings, then users of at least 20, as the published table did.

    Args:
        ratings: int64 [n, 4]: user id, film id, rating, Unix seconds, in the order published.

    Returns:
        The ratings, and int64 [n_items] the film id of each column. Rows and columns are in the order of first
        appearance: ties of time depend on it, see `leave_latest_out`.
    """
    kept = ratings
    for column, least in ((1, MIN_ITEM_RATINGS), (0, MIN_USER_RATINGS)):
        _, place, n_ratings = np.unique(kept[:, column], return_inverse=True, return_counts=True)
        kept = kept[n_ratings[place] >= least]
    users, _ = _by_first_appearance(ratings[:, 0], kept[:, 0])
    items, film_ids = _by_first_appearance(ratings[:, 1], kept[:, 1])
    n_users = int(users.max()) + 1 if len(users) else 0
    return Ratings(users, items, kept[:, 2].astype(np.float64), kept[:, 3], n_users, len(film_ids)), film_ids


def unfiltered(ratings: NDArray[np.int64]) -> tuple[Ratings, IntArray]:
    """Keep everything; arguments and results are those of `filtered`."""
    users, user_ids = _by_first_appearance(ratings[:, 0], ratings[:, 0])
    items, film_ids = _by_first_appearance(ratings[:, 1], ratings[:, 1])
    values = ratings[:, 2].astype(np.float64)
    return Ratings(users, items, values, ratings[:, 3], len(user_ids), len(film_ids)), film_ids


def leave_latest_out(ratings: Ratings) -> Split:
    """Hold out the latest rating of each user.

    44% of the users of MovieLens 100k rated several films in their last second. The published code takes the smallest
    column among them, and columns are in order of first appearance, which is earlier for popular films: it is worth
    .046 of the hit rate of popularity, so the same rule is followed here.
    """
    return _last_of_each_user(ratings, np.lexsort((-ratings.item, ratings.at_s, ratings.user)))


def leave_random_out(ratings: Ratings, rng: np.random.Generator) -> Split:
    """Hold out one random rating of each user: the validation of protocol (a), as in the published code."""
    return _last_of_each_user(ratings, np.lexsort((rng.random(len(ratings.user)), ratings.user)))


def hold_out_share(ratings: Ratings, rng: np.random.Generator, *, share: float = 0.25) -> Split:
    """Hold out a random share of each user's ratings, rounded to whole ratings."""
    order = np.lexsort((rng.random(len(ratings.user)), ratings.user))
    n_of_user = np.bincount(ratings.user, minlength=ratings.n_users)
    starts = np.cumsum(n_of_user) - n_of_user
    place = np.arange(len(order)) - starts[ratings.user[order]]
    is_test = np.zeros(len(order), dtype=np.bool_)
    is_test[order] = place < np.round(share * n_of_user)[ratings.user[order]]
    return Split(train=ratings.take(~is_test), test=ratings.take(is_test))


def sample_candidates(split: Split, known: Ratings, rng: np.random.Generator) -> IntArray:
    """Lay the held-out item of each user among 99 items that the user never rated.

    Args:
        split: One test rating a user.
        known: All ratings, those held out for whatever purpose included: none of them is a negative.
        rng: Draws the negatives, uniformly without replacement, and the order, so that ties favour nobody.

    Returns:
        int64 [n_test, 100] columns, a row for each test rating.

    Raises:
        ValueError: a user has rated all but fewer than 99 items.
    """
    rated = known.mask()[split.test.user]
    fewest = int((~rated).sum(axis=1).min(initial=N_NEGATIVES))
    if fewest < N_NEGATIVES:
        raise ValueError(f"every user needs {N_NEGATIVES} unrated items, got one with {fewest}")
    keys = rng.random(rated.shape)
    keys[rated] = np.inf
    negatives = np.argpartition(keys, N_NEGATIVES - 1, axis=1)[:, :N_NEGATIVES]
    return rng.permuted(np.column_stack([split.test.item, negatives]), axis=1)


def _last_of_each_user(ratings: Ratings, order: IntArray) -> Split:
    users = ratings.user[order]
    is_last = np.append(users[1:] != users[:-1], True) if len(users) else np.zeros(0, dtype=np.bool_)
    is_test = np.zeros(len(order), dtype=np.bool_)
    is_test[order[is_last]] = True
    return Split(train=ratings.take(~is_test), test=ratings.take(is_test))


def _by_first_appearance(every: IntArray, ids: IntArray) -> tuple[IntArray, IntArray]:
    """Number `ids` 0.. in the order in which they first appear in `every`; also return the id of each number."""
    known, first = np.unique(every, return_index=True)
    rank = dict(zip(known.tolist(), first.tolist(), strict=True))
    kept = np.array(sorted(np.unique(ids).tolist(), key=rank.__getitem__), dtype=np.int64)
    number_of = {item: number for number, item in enumerate(kept.tolist())}
    return np.array([number_of[item] for item in ids.tolist()], dtype=np.int64), kept
