"""Sources as they are served: the production neighbours and the production content search, from the newest liked items.

Nothing here is tuned. A user of a request is known by what he liked last; the two sources start from as much of it as
they do in the service.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.content_space import ContentSearch, build_content_space
from retrieval.exact import ExactIndex
from retrieval.item_to_item import ItemToItem, find_neighbours
from retrieval.items import Item
from service.offline import TrainingConfig
from service.retriever import newest_seeds
from simulators.retrieval_quality.methods import Scores
from simulators.retrieval_quality.splits import Ratings


@dataclass(frozen=True, slots=True)
class AlsoLiked:
    """What the same people like, see `retrieval.item_to_item`."""

    items: Sequence[Item]
    source: str = "also_liked"

    def fit(self, ratings: Ratings) -> dict[str, Scores]:
        """Find neighbours in the positives, and score what is alike to the newest of them."""
        positives = _positives(ratings)
        n_items = ratings.n_items
        neighbours = find_neighbours(
            positives.matrix(), positions=np.arange(n_items), n_items=n_items, config=TrainingConfig().neighbours
        )
        row_of = {item.id: row for row, item in enumerate(self.items)}
        table = ItemToItem(row_of, neighbours, row_of.get)
        for item_id, row in row_of.items():
            table.bind(row, item_id)
        scores = np.zeros((ratings.n_users, n_items))
        for user, liked in enumerate(_liked(positives)):
            seeds = newest_seeds([self.items[item].id for item in liked])
            rows, alike = table.also_liked(seeds, now_ms=0)
            scores[user, rows] = alike
        return {"also_liked": scores}


@dataclass(frozen=True, slots=True)
class Content:
    """What is alike by its attributes, see `retrieval.content_space`."""

    items: Sequence[Item]
    source: str = "content"

    def fit(self, ratings: Ratings) -> dict[str, Scores]:
        """Score everything by its cosine to the newest of the positives."""
        space = build_content_space(self.items)
        index = ExactIndex(space.dimension, metric="cosine")
        index.add(np.arange(len(self.items)), space.vectors)
        search = ContentSearch(space, index)
        label_of = {item.id: label for label, item in enumerate(self.items)}
        # What is not found is less alike than anything that is.
        scores = np.full((ratings.n_users, ratings.n_items), -2.0)
        for user, liked in enumerate(_liked(_positives(ratings))):
            seeds = [(label_of[item_id], w) for item_id, w in newest_seeds([self.items[i].id for i in liked])]
            labels, alike = search.search(seeds, ratings.n_items)
            scores[user, labels] = alike
        return {"content": scores}


def _positives(ratings: Ratings) -> Ratings:
    return ratings.take(ratings.value >= TrainingConfig().positive_from)


def _liked(positives: Ratings) -> list[list[int]]:
    """Return the items of each user, newest last; of one second, as `similar` takes them."""
    order = np.lexsort((-positives.item, positives.at_s, positives.user))
    ends = np.cumsum(np.bincount(positives.user, minlength=positives.n_users))
    return [part.tolist() for part in np.split(positives.item[order], ends[:-1])]
