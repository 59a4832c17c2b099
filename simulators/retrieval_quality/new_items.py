"""How soon a new item is found: by content, folded in from live counts, trained again; on MovieLens 100k. Pure.

Films are taken out of the training ratings, all but their first n positives. What a worker knows of these n is what the
one writer counts: the production counter is fed all positives in their order of time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from retrieval import quality
from retrieval.bundle import Bundle
from retrieval.catalogue import Catalogue
from retrieval.co_counts import CoCountConfig, CoCounter
from retrieval.embeddings import Embeddings, train
from retrieval.exact import ExactIndex
from retrieval.item_to_item import ItemToItem, find_neighbours
from retrieval.items import Item
from service.item_moves import NEW_FOR_MS, ItemMoves
from service.item_vectors import ItemVectors
from service.offline import TrainingConfig
from simulators.retrieval_quality.measure import Figure, FullDraw, K, figure
from simulators.retrieval_quality.splits import N_NEGATIVES, IntArray, Ratings, Split, hold_out_share

Float32Array = NDArray[np.float32]

WAYS = ("content", "folded_in", "of_others", "trained", "trained_folded_in")
"""By content alone; folded in; folded in from what users of another new film like, the control; after a retraining;
after it and folded in again, as a worker does that exchanges its index."""
METRICS = ("hit_rate", "recall")
_MIN_TEST = 5
_NOW_MS = 2 * NEW_FOR_MS


@dataclass(frozen=True, slots=True)
class NewItemsConfig:
    """What is tried."""

    n_new: int = 150
    """Films taken out."""
    n_interactions: tuple[int, ...] = (0, 5, 10, 20, 50)
    """Positives that each of them has."""


@dataclass(frozen=True, slots=True)
class NewItemsReport:
    """What was found.

    Attributes:
        n_users: Users.
        n_items: Films, the new ones included.
        n_new: Films taken out.
        n_draws: Draws of the split, the new films and the negatives.
        figures: By the number of interactions, then the way, then the metric: `hit_rate`, of the test ratings of new
            films among 99 films that the user did not rate, at 10; `recall`, of all test ratings in the full ranking,
            at 10.
        gains: By the number of interactions, the hit rate of `folded_in` less that of another way, draw by draw.
    """

    n_users: int
    n_items: int
    n_new: int
    n_draws: int
    figures: dict[int, dict[str, dict[str, Figure]]]
    gains: dict[int, dict[str, Figure]]

    @property
    def holds(self) -> bool:
        """Return whether folding in is never worse than content, and better than by the likes of other users."""
        return all(
            gain["content"].mean >= 0.0 and (n == 0 or gain["of_others"].mean > 0.0) for n, gain in self.gains.items()
        )


def evaluate_new_items(
    ratings: Ratings, items: Sequence[Item], *, n_seeds: int, config: NewItemsConfig, say: Callable[[str], None]
) -> NewItemsReport:
    """Measure every way for every number of interactions.

    Args:
        ratings: All of them; those below the training's `positive_from` are left out.
        items: The films, in the order of the columns.
        n_seeds: How often.
        config: What is tried.
        say: Told what is going on.
    """
    shipped = TrainingConfig()
    positives = ratings.take(ratings.value >= shipped.positive_from)
    positives = replace(positives, value=positives.value - shipped.positive_from + 1.0)
    found: list[dict[int, dict[str, dict[str, float]]]] = []
    for seed in range(n_seeds):
        say(f"new items: draw {seed + 1} of {n_seeds}")
        found.append(_one_draw(positives, items, np.random.default_rng([7, seed]), config))
    return NewItemsReport(
        n_users=ratings.n_users,
        n_items=ratings.n_items,
        n_new=config.n_new,
        n_draws=n_seeds,
        figures={
            n: {way: {m: figure([one[n][way][m] for one in found]) for m in METRICS} for way in WAYS}
            for n in config.n_interactions
        },
        gains={
            n: {
                way: figure([one[n]["folded_in"]["hit_rate"] - one[n][way]["hit_rate"] for one in found])
                for way in ("content", "of_others")
            }
            for n in config.n_interactions
        },
    )


def _one_draw(
    positives: Ratings, items: Sequence[Item], rng: np.random.Generator, config: NewItemsConfig
) -> dict[int, dict[str, dict[str, float]]]:
    split = hold_out_share(positives, rng)
    most = max(config.n_interactions)
    n_train, n_test = (np.bincount(part.item, minlength=positives.n_items) for part in (split.train, split.test))
    able = np.flatnonzero((n_train >= most) & (n_test >= _MIN_TEST))
    new = rng.choice(able, size=min(config.n_new, len(able)), replace=False)
    judge = _Judge(split, new, rng)
    before = _train(_with_first(split.train, new, 0), items)
    ids = [items[item].id for item in new.tolist()]
    items = [
        msgspec.structs.replace(item, available_at_unix_ms=_NOW_MS if item.id in set(ids) else 0) for item in items
    ]
    others = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
    found: dict[int, dict[str, dict[str, float]]] = {}
    for n in config.n_interactions:
        known = _with_first(split.train, new, n)
        counter = _counted(known, items)
        after = _train(known, items)
        found[n] = {
            "content": judge.measure(before.user_vectors, before.item_vectors),
            "folded_in": judge.measure(before.user_vectors, _moved(before, items, counter, {})),
            "of_others": judge.measure(before.user_vectors, _moved(before, items, counter, others)),
            "trained": judge.measure(after.user_vectors, after.item_vectors),
            "trained_folded_in": judge.measure(after.user_vectors, _moved(after, items, counter, {})),
        }
    return found


class _Judge:
    """Test ratings of new films among negatives, and all test ratings in the full ranking."""

    def __init__(self, split: Split, new: IntArray, rng: np.random.Generator) -> None:
        self._asked = split.test.take(np.isin(split.test.item, new))
        self._full = FullDraw(split, rng.permutation(split.train.n_items))
        rated = split.train.mask() | split.test.mask()
        keys = rng.random((len(self._asked.user), rated.shape[1]))
        keys[rated[self._asked.user]] = np.inf
        negatives = np.argpartition(keys, N_NEGATIVES - 1, axis=1)[:, :N_NEGATIVES]
        self._candidates = rng.permuted(np.column_stack([self._asked.item, negatives]), axis=1)

    def measure(self, users: Float32Array, vectors: Float32Array) -> dict[str, float]:
        scores = (users @ vectors.T).astype(np.float64)
        of_candidates = np.take_along_axis(scores[self._asked.user], self._candidates, axis=1)
        best = np.take_along_axis(self._candidates, quality.best_places(of_candidates, K), axis=1)
        lists = self._full.judge(self._full.rank(scores, K))
        return {
            "hit_rate": float((best == self._asked.item[:, None]).any(axis=1).mean()),
            "recall": float(quality.recall(lists.hits, lists.n_relevant).mean()),
        }


def _with_first(ratings: Ratings, new: IntArray, n: int) -> Ratings:
    """Keep the first n ratings of each new film, and all of the others."""
    order = np.lexsort((ratings.user, ratings.at_s, ratings.item))
    n_of_item = np.bincount(ratings.item, minlength=ratings.n_items)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order)) - (np.cumsum(n_of_item) - n_of_item)[ratings.item[order]]
    return ratings.take(~np.isin(ratings.item, new) | (place < n))


def _train(ratings: Ratings, items: Sequence[Item]) -> Embeddings:
    shipped = TrainingConfig()
    positions, n_items = np.arange(ratings.n_items), ratings.n_items
    embeddings = train(
        ratings.matrix(),
        item_ids=[item.id for item in items],
        user_ids=[str(user) for user in range(ratings.n_users)],
        items=items,
        config=shipped.als,
    )
    found = find_neighbours(ratings.matrix(), positions=positions, n_items=n_items, config=shipped.neighbours)
    return replace(embeddings, neighbours=found)


def _counted(ratings: Ratings, items: Sequence[Item]) -> CoCounter:
    """Count ratings in their order of time, without decay: what is new arrives within hours, not half a year."""
    counter = CoCounter(CoCountConfig(half_life_ms=1e15))
    for at_ms, place in enumerate(np.lexsort((ratings.item, ratings.at_s)).tolist()):
        counter.add(str(ratings.user[place]), items[int(ratings.item[place])].id, at_ms)
    return counter


def _moved(
    embeddings: Embeddings, items: Sequence[Item], counter: CoCounter, counts_of: Mapping[str, str]
) -> Float32Array:
    """Return the vectors of a worker that has followed the counts; of those in `counts_of`, the counts of another."""
    d = embeddings.dimension
    vectors = ItemVectors(Bundle("new", embeddings, "exact", ExactIndex(d), ExactIndex(d, metric="cosine")))
    catalogue = Catalogue()
    for item in items:
        vectors.put(catalogue.upsert(item), item)
    table = ItemToItem(vectors.trained_label, embeddings.neighbours, catalogue.row)
    for item_id in counter.items():
        counts, partners = counter.published(counts_of.get(item_id, item_id))
        table.put_live(
            item_id,
            n_users=counts.n_users,
            at_ms=counts.at_ms,
            half_life_ms=counter.config.half_life_ms,
            partners=[partner for partner, _ in partners],
            counts=np.array([count for _, count in partners]),
        )
    moves = ItemMoves(catalogue, vectors, table)
    moves.note(counter.items(), as_of_ms=_NOW_MS)
    while len(moves):
        moves.step()
    return vectors.vectors(np.arange(len(items), dtype=np.int64))
