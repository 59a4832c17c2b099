"""Candidates of one request: every source of the surface, eligibility, blend. Rows are catalogue rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import msgspec
import numpy as np
import numpy.typing as npt

from retrieval.bundle import Bundle
from retrieval.catalogue import Catalogue
from retrieval.embeddings import fold_in
from retrieval.filters import Viewer, eligible_mask
from retrieval.item_to_item import ItemToItem
from retrieval.items import Item
from retrieval.rankings import NO_RANKINGS, draw_weighted
from retrieval.sources import SourceResult, blend
from service.config import SourceConfig
from service.item_moves import ItemMoves
from service.item_vectors import Float32Array, Int32Array, ItemVectors

# Sources fetch this many times their quota, so that eligibility rarely leaves one short.
OVERFETCH = 2
# A source that came out short is asked again: for twice as many, or for what eligibility so far makes likely; in the
# last round for the most that any is asked for.
MAX_ROUNDS = 3
MAX_FETCH = 4_096
_LIKELY = 1.5
# Newest liked items that item-to-item and content start from; the k-th newest weighs 1 / k.
_N_SEEDS = 5
_NO_ROWS = np.zeros(0, dtype=np.int32)


class CandidateQuery(msgspec.Struct, frozen=True, gc=False):
    """What retrieval reads of a request.

    Attributes:
        user_id: A trained user's vector is the prior of the fold-in.
        liked: Recent positive items, newest last.
        disliked: Recent negative items, newest last.
        seed_item_id: What similar items are sought for; None takes the newest liked one, or several.
        viewer: For eligibility.
        now_ms: Time of the decision.
        wanted_rows: Rows of running campaigns: candidates before all others, if they may be shown.
    """

    user_id: str | None
    liked: Sequence[str]
    disliked: Sequence[str]
    seed_item_id: str | None
    viewer: Viewer
    now_ms: int
    wanted_rows: Sequence[int] = ()


class Candidates(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Eligible candidates, distinct.

    Attributes:
        rows: int32 [n].
        sources: uint8 [n], positions in `source_names`.
        source_names: In the surface's order.
        affinity: float32 [n], inner product of user and item vectors; NaN without a user vector.
        n_rounds: Times that the source asked most often was asked.
    """

    rows: Int32Array
    sources: npt.NDArray[np.uint8]
    source_names: tuple[str, ...]
    affinity: Float32Array
    n_rounds: int = 1


class _Asked(msgspec.Struct, eq=False, gc=False):
    """What one source gave in its last round.

    Attributes:
        source: Name and quota.
        n_wanted: What it was asked for.
        is_exhausted: Whether it has no more.
        result: What of it may be shown.
    """

    source: SourceConfig
    n_wanted: int
    is_exhausted: bool
    result: SourceResult

    def next_wanted(self, *, is_last: bool) -> int:
        """Return what to ask for next."""
        if is_last:
            return max(MAX_FETCH, self.n_wanted)
        n_found = len(self.result.rows)
        likely = self.n_wanted * self.source.quota / n_found * _LIKELY if n_found else 0.0
        return min(max(2 * self.n_wanted, int(likely)), max(MAX_FETCH, self.n_wanted))


class _Request(msgspec.Struct, frozen=True):
    """What every source is asked with; `rng` builds the generator when a source first draws."""

    query: CandidateQuery
    user_vector: Float32Array | None
    rng: Callable[[], np.random.Generator]
    limit: int


class Retriever:
    """Sources over one catalogue and one bundle (None before the first one is built)."""

    def __init__(self, catalogue: Catalogue, bundle: Bundle | None) -> None:
        self.catalogue = catalogue
        self.version = bundle.version if bundle else ""
        self._vectors = ItemVectors(bundle) if bundle else None
        self._user_label = {u: i for i, u in enumerate(bundle.embeddings.user_ids)} if bundle else {}
        self._n_interactions = np.zeros(1024, dtype=np.int32)
        self.rankings = NO_RANKINGS
        self.item_to_item = ItemToItem(
            self._vectors.trained_label if self._vectors else {},
            bundle.embeddings.neighbours if bundle else None,
            catalogue.row,
        )
        self.moves = ItemMoves(catalogue, self._vectors, self.item_to_item)

    def put(self, row: int, item: Item) -> None:
        """Make an item retrievable at its row; an unknown one gets a vector from its content."""
        while row >= len(self._n_interactions):
            self._n_interactions = np.concatenate([self._n_interactions, np.zeros_like(self._n_interactions)])
        self.item_to_item.bind(row, item.id)
        if self._vectors is not None:
            self._n_interactions[row] = self._vectors.put(row, item)
            self.moves.note_put(item.id)

    def remove(self, row: int, item_id: str) -> None:
        """Take a deleted item out of every index."""
        self.item_to_item.release(item_id)
        self.moves.forget(item_id)
        if self._vectors is not None and row < len(self._n_interactions):
            self._n_interactions[row] = 0
            self._vectors.remove(row, item_id)

    def retrieve(
        self,
        query: CandidateQuery,
        sources: Sequence[SourceConfig],
        *,
        limit: int,
        new_rng: Callable[[], np.random.Generator],
    ) -> Candidates:
        """Ask every source, drop who may not be shown, ask again those that came out short, blend.

        Args:
            query: What is known of the request.
            sources: The most important first.
            limit: Candidates wanted.
            new_rng: Called at most once, and only if a source draws; all of them draw from what it returns.
        """
        user_vector = self._user_vector(query)
        request = _Request(query, user_vector, cache(new_rng), limit)
        campaigns = []
        if query.wanted_rows:
            wanted = np.array(query.wanted_rows, dtype=np.int32)
            wanted = wanted[self._eligible(wanted, query)]
            campaigns.append(
                SourceResult("campaign", wanted, np.zeros(len(wanted), np.float32), len(query.wanted_rows))
            )
        n_hidden = len(query.viewer.hidden_rows)
        asked = self._ask([(s, s.quota * OVERFETCH + n_hidden) for s in sources], request)
        n_asked = min(limit, sum(source.quota for source in sources))
        n_rounds = 1
        while True:
            results = [*campaigns, *(one.result for one in asked)]
            rows, codes, _ = blend(results, limit=limit)
            # Sources that found the same items leave room for others that have more.
            is_short = len(rows) < n_asked
            short = [
                place
                for place, one in enumerate(asked)
                if not one.is_exhausted and (is_short or len(one.result.rows) < min(one.source.quota, limit))
            ]
            if not short or n_rounds == MAX_ROUNDS:
                break
            n_rounds += 1
            is_last = n_rounds == MAX_ROUNDS
            again = [(asked[place].source, asked[place].next_wanted(is_last=is_last)) for place in short]
            for place, answer in zip(short, self._ask(again, request), strict=True):
                asked[place] = answer
        return Candidates(
            rows=rows,
            sources=codes,
            source_names=tuple(result.name for result in results),
            affinity=self._affinity(rows, user_vector),
            n_rounds=n_rounds,
        )

    def rank_given(self, rows: Int32Array, query: CandidateQuery) -> Candidates:
        """Return the caller's own rows as candidates, those that may be shown."""
        rows = rows[self._eligible(rows, query)]
        return Candidates(
            rows=rows,
            sources=np.zeros(len(rows), dtype=np.uint8),
            source_names=("caller",),
            affinity=self._affinity(rows, self._user_vector(query)),
        )

    def n_interactions(self, n_rows: int) -> Int32Array:
        """Return int32 [n_rows]: interactions that each row's item was trained on."""
        n_known = min(n_rows, len(self._n_interactions))
        counts = np.zeros(n_rows, dtype=np.int32)
        counts[:n_known] = self._n_interactions[:n_known]
        return counts

    def popularity(self, rows: Int32Array) -> Float32Array:
        """Return float32 [n] in [0, 1]: log(1 + interactions), relative to the most popular item."""
        most = np.log1p(float(self._n_interactions.max(initial=1)))
        popularity: Float32Array = (np.log1p(self._n_interactions[rows]) / most).astype(np.float32)
        return popularity

    def under_explored(self, rows: Int32Array, *, below: int = 5) -> npt.NDArray[np.bool_]:
        """Return bool [n]: rows whose items were trained on fewer than `below` interactions."""
        return self._n_interactions[rows] < below

    def _ask(self, wanted: Sequence[tuple[SourceConfig, int]], request: _Request) -> list[_Asked]:
        """Ask sources for so many rows each, and keep what may be shown."""
        found = [self._find(source, n_wanted, request) for source, n_wanted in wanted]
        kept = self._eligible(np.concatenate([_NO_ROWS, *(rows for rows, _, _ in found)]), request.query)
        asked, start = [], 0
        for (source, n_wanted), (rows, scores, is_exhausted) in zip(wanted, found, strict=True):
            own = kept[start : start + len(rows)]
            start += len(rows)
            asked.append(
                _Asked(source, n_wanted, is_exhausted, SourceResult(source.name, rows[own], scores[own], source.quota))
            )
        return asked

    def _eligible(self, rows: Int32Array, query: CandidateQuery) -> npt.NDArray[np.bool_]:
        return eligible_mask(self.catalogue, rows, query.viewer, now_ms=query.now_ms)

    def _find(self, source: SourceConfig, n_wanted: int, request: _Request) -> tuple[Int32Array, Float32Array, bool]:
        """Return the best `n_wanted` rows of a source, their scores, and whether it has no more."""
        name, query, rng = source.name, request.query, request.rng
        n_items = len(self.catalogue.item_ids)
        if name == "random":
            if min(source.quota, request.limit) >= n_items:
                # All of them become candidates, whatever their order.
                rows = np.arange(n_items, dtype=np.int32)
            elif n_wanted >= n_items:
                rows = rng().permutation(n_items).astype(np.int32)
            else:
                drawn = rng().integers(0, n_items, size=n_wanted)
                rows = rng().permutation(_distinct(drawn)).astype(np.int32)
            return rows, np.zeros(len(rows), dtype=np.float32), n_wanted >= n_items
        if name == "under_explored":
            drawn = draw_weighted(self.rankings.exploration_weight, n_wanted, rng())
            weights = self.rankings.exploration_weight[drawn].astype(np.float32)
            return self.rankings.under_explored[drawn], weights, len(drawn) < n_wanted
        if name == "also_liked":
            rows, scores = self.item_to_item.also_liked(_seeds(query), now_ms=query.now_ms)
            return rows[:n_wanted], scores[:n_wanted], len(rows) <= n_wanted
        if name in ("als", "similar", "content"):
            found = self._search(name, n_wanted, query, request.user_vector)
            if found is None:
                return _NO_ROWS, np.zeros(0, dtype=np.float32), True
            labels, alike = found
            assert self._vectors is not None
            rows = self._vectors.rows(labels)
            return rows[rows >= 0], alike[rows >= 0].astype(np.float32), len(labels) < n_wanted
        ranked: Int32Array = getattr(self.rankings, name)
        rows = ranked[:n_wanted]
        return rows, np.zeros(len(rows), dtype=np.float32), len(ranked) <= n_wanted

    def _search(
        self, name: str, n_wanted: int, query: CandidateQuery, user_vector: Float32Array | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] | None:
        """Return the nearest labels in an index and their scores, None without anything to start from."""
        if self._vectors is None:
            return None
        if name == "content" and self._vectors.content is not None:
            labelled = ((self._vectors.label(item_id), weight) for item_id, weight in _seeds(query))
            return self._vectors.content.search([(at, weight) for at, weight in labelled if at is not None], n_wanted)
        if name == "als" and user_vector is not None:
            return self._vectors.bundle.als.search(user_vector, n_wanted)
        if name == "similar" and (seed := self._seed_vector(query)) is not None:
            return self._vectors.bundle.similar.search(seed, n_wanted)
        return None

    def _user_vector(self, query: CandidateQuery) -> Float32Array | None:
        if self._vectors is None:
            return None
        embeddings = self._vectors.bundle.embeddings
        trained = self._user_label.get(query.user_id or "")
        labels, targets = [], []
        for item_ids, target in ((query.liked, 1.0), (query.disliked, 0.0)):
            for item_id in item_ids:
                label = self._vectors.label(item_id)
                if label is not None:
                    labels.append(label)
                    targets.append(target)
        if trained is None and 1.0 not in targets:
            return None
        vector: Float32Array = fold_in(
            self._vectors.vectors(np.array(labels, dtype=np.int64)),
            gram=embeddings.gram,
            alpha0=embeddings.alpha0,
            regularization=embeddings.regularization,
            prior=None if trained is None else embeddings.user_vectors[trained],
            targets=np.array(targets, dtype=np.float32),
        )
        return vector

    def _seed_vector(self, query: CandidateQuery) -> Float32Array | None:
        assert self._vectors is not None
        for item_id in (query.seed_item_id,) if query.seed_item_id else reversed(query.liked):
            label = self._vectors.label(item_id)
            if label is not None:
                seed: Float32Array = self._vectors.vectors(np.array([label]))[0]
                return seed
        return None

    def _affinity(self, rows: Int32Array, user_vector: Float32Array | None) -> Float32Array:
        affinity = np.full(len(rows), np.nan, dtype=np.float32)
        if user_vector is not None and self._vectors is not None:
            labels = self._vectors.labels(rows)
            known = labels >= 0
            affinity[known] = self._vectors.vectors(labels[known]) @ user_vector
        return affinity


def _distinct(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the values, each once, in rising order; the checks of `np.unique` cost more than that at this size."""
    values = np.sort(values)
    is_first = np.ones(len(values), dtype=np.bool_)
    np.not_equal(values[1:], values[:-1], out=is_first[1:])
    distinct: npt.NDArray[np.int64] = values[is_first]
    return distinct


def _seeds(query: CandidateQuery) -> list[tuple[str, float]]:
    """Return what item-to-item and content start from: the seed, or the newest liked items with falling weights."""
    return [(query.seed_item_id, 1.0)] if query.seed_item_id else newest_seeds(query.liked)


def newest_seeds(liked: Sequence[str]) -> list[tuple[str, float]]:
    """Return the newest of liked items (newest last) with falling weights."""
    newest = list(dict.fromkeys(reversed(liked)))[:_N_SEEDS]
    return [(item_id, 1.0 / place) for place, item_id in enumerate(newest, start=1)]
