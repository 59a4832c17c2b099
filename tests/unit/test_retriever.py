"""Candidates of one request: every source against a plain search over the same vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval.bundle import load_bundle, write_bundle
from retrieval.catalogue import Catalogue
from retrieval.content_space import build_content_space
from retrieval.embeddings import Embeddings, fold_in
from retrieval.filters import Viewer, eligible_mask
from retrieval.item_to_item import Neighbours
from retrieval.items import Item
from retrieval.rankings import ItemArrays, RankingConfig, build_rankings
from service.config import SourceConfig
from service.retriever import MAX_FETCH, MAX_ROUNDS, CandidateQuery, Candidates, Retriever

N_TRAINED, DIMENSION = 40, 6
NOW_MS = 10_000_000
EVERY_SOURCE = [
    SourceConfig(name=name, quota=6)
    for name in (
        "als",
        "similar",
        "also_liked",
        "content",
        "popular",
        "trending",
        "fresh",
        "under_explored",
        "random",
    )
]
GENRES = ["Western", "Musical", "Noir", "Anime"]


def _trained(n: int) -> Item:
    return Item(id=f"t{n}", available_at_unix_ms=n, attributes={"genres": [GENRES[n % 4]]})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(N_TRAINED, DIMENSION)).astype(np.float32)
    embeddings = Embeddings(
        item_ids=[f"t{n}" for n in range(N_TRAINED)],
        item_vectors=vectors,
        n_interactions=np.arange(N_TRAINED, dtype=np.int32)[::-1].copy(),
        user_ids=["known"],
        user_vectors=rng.normal(size=(1, DIMENSION)).astype(np.float32),
        gram=vectors.astype(np.float64).T @ vectors.astype(np.float64),
        content_map=rng.normal(size=(32, DIMENSION)).astype(np.float32) / 2,
        alpha0=0.25,
        regularization=0.5,
        content=build_content_space([_trained(n) for n in range(N_TRAINED)]),
        # Users of t0 are 20; 12, 8 and 4 of them also like t1, t2 and t3.
        neighbours=Neighbours(
            n_users=np.array([20, 20, 20, 20, *[0] * (N_TRAINED - 4)], dtype=np.float32),
            ends=np.array([0, 3, 4, 5, 6, *[6] * (N_TRAINED - 4)], dtype=np.int64),
            items=np.array([1, 2, 3, 0, 0, 0], dtype=np.int32),
            counts=np.array([12, 8, 4, 12, 8, 4], dtype=np.float32),
        ),
    )
    root = tmp_path_factory.mktemp("bundles")
    write_bundle(root, embeddings, version="v1", hmac_key=None)
    return root


class Shop:
    """A retriever and its catalogue, changed together as the items view does."""

    def __init__(self, bundles: Path | None, *, n_trained: int = N_TRAINED) -> None:
        self.catalogue = Catalogue(capacity=4)
        self.retriever = Retriever(self.catalogue, load_bundle(bundles) if bundles else None)
        self.embeddings = self.retriever._vectors.bundle.embeddings if self.retriever._vectors else None
        self.impressions: dict[str, float] = {}
        self.clicks: dict[str, float] = {}
        for n in range(n_trained):
            self.put(f"t{n}", available_at_unix_ms=n, attributes={"genres": [GENRES[n % 4]]})

    def put(self, item_id: str, **fields: Any) -> int:
        item = Item(id=item_id, **fields)
        row = self.catalogue.upsert(item)
        self.retriever.put(row, item)
        return row

    def delete(self, item_id: str) -> None:
        row = self.catalogue.delete(item_id)
        assert row is not None
        self.retriever.remove(row, item_id)

    def rank(self, *, now_ms: int = NOW_MS) -> None:
        n = len(self.catalogue.item_ids)
        impressions, clicks = np.zeros(n), np.zeros(n)
        for counts, counted in ((impressions, self.impressions), (clicks, self.clicks)):
            for item_id, count in counted.items():
                counts[self.catalogue.row(item_id)] = count
        arrays = ItemArrays(
            is_listed=self.catalogue.listed[:n],
            available_at_unix_ms=self.catalogue.available_at_unix_ms[:n],
            n_interactions=self.retriever.n_interactions(n),
            impressions=impressions,
            clicks=clicks,
        )
        self.retriever.rankings = build_rankings(arrays, now_ms=now_ms, config=RankingConfig())

    def vector(self, item_id: str) -> np.ndarray:
        assert self.embeddings is not None
        if item_id in self.embeddings.item_ids:
            return self.embeddings.item_vectors[self.embeddings.item_ids.index(item_id)]
        item = self.catalogue.item(item_id)
        assert item is not None
        return self.embeddings.cold_item_vector(item)

    def ids(self, candidates: Candidates) -> list[str]:
        return [self.catalogue.item_ids[row] or "" for row in candidates.rows.tolist()]

    def retrieve(
        self, *names: Any, quota: int = 5, limit: int = 50, seed: int = 0, now_ms: int = NOW_MS, **query: Any
    ) -> Candidates:
        self.rank(now_ms=now_ms)
        sources = [SourceConfig(name=name, quota=quota) for name in names]
        return self.retriever.retrieve(
            _query(now_ms=now_ms, **query), sources, limit=limit, new_rng=lambda: np.random.default_rng(seed)
        )


def _query(
    *,
    user_id: str | None = None,
    liked: Sequence[str] = (),
    disliked: Sequence[str] = (),
    seed_item_id: str | None = None,
    hidden_rows: Sequence[int] = (),
    age: int | None = None,
    now_ms: int = NOW_MS,
) -> CandidateQuery:
    viewer = Viewer(age=age, unknown_item_min_age=0, country=None, hidden_rows=set(hidden_rows))
    return CandidateQuery(
        user_id=user_id, liked=liked, disliked=disliked, seed_item_id=seed_item_id, viewer=viewer, now_ms=now_ms
    )


@pytest.fixture
def shop(bundles: Path) -> Shop:
    return Shop(bundles)


def _user_vector(shop: Shop, *, liked: Sequence[str], disliked: Sequence[str] = (), known: bool = False) -> np.ndarray:
    assert shop.embeddings is not None
    return fold_in(
        np.array([shop.vector(i) for i in (*liked, *disliked)], dtype=np.float32).reshape(-1, DIMENSION),
        gram=shop.embeddings.gram,
        alpha0=shop.embeddings.alpha0,
        regularization=shop.embeddings.regularization,
        prior=shop.embeddings.user_vectors[0] if known else None,
        targets=np.array([1.0] * len(liked) + [0.0] * len(disliked), dtype=np.float32),
    )


def _best(shop: Shop, score: Any, n: int, *, without: Sequence[str] = ()) -> list[str]:
    ids = [item_id for item_id in shop.catalogue.item_ids if item_id and item_id not in without]
    return sorted(ids, key=lambda item_id: -score(shop.vector(item_id)))[:n]


@pytest.mark.parametrize("known", [False, True])
def test_als_finds_the_largest_inner_products_with_the_folded_user(shop: Shop, known: bool) -> None:
    user = _user_vector(shop, liked=["t3", "t7"], disliked=["t1"], known=known)
    found = shop.retrieve("als", limit=5, user_id="known" if known else "stranger", liked=["t3", "t7"], disliked=["t1"])
    assert shop.ids(found) == _best(shop, lambda v: float(v @ user), 5)
    expected = [float(shop.vector(item_id) @ user) for item_id in shop.ids(found)]
    assert found.affinity.tolist() == pytest.approx(expected, rel=1e-5)


def test_als_gives_nothing_for_somebody_unknown(shop: Shop) -> None:
    for query in ({}, {"user_id": "stranger"}, {"disliked": ["t1"]}, {"liked": ["never heard of"]}):
        found = shop.retrieve("als", **query)
        assert len(found.rows) == 0
    found = shop.retrieve("popular")
    assert np.isnan(found.affinity).all()
    assert len(found.rows) == 10


def test_similar_finds_the_nearest_cosines_of_the_seed(shop: Shop) -> None:
    seed = shop.vector("t9")
    hidden = [shop.catalogue.row("t9")]
    found = shop.retrieve("similar", limit=5, seed_item_id="t9", liked=["t2"], hidden_rows=hidden)
    assert shop.ids(found) == _best(
        shop, lambda v: float(v @ seed / np.linalg.norm(v) / np.linalg.norm(seed)), 5, without=["t9"]
    )


def test_without_a_seed_similar_begins_at_the_newest_liked_item(shop: Shop) -> None:
    by_liking = shop.retrieve("similar", liked=["t2", "t9", "unknown"])
    assert shop.ids(by_liking) == shop.ids(shop.retrieve("similar", seed_item_id="t9"))


def test_popular_and_fresh_are_ordered_by_what_they_say(shop: Shop) -> None:
    # Trained item n has N - 1 - n interactions and became available at n.
    assert shop.ids(shop.retrieve("popular", limit=5)) == [f"t{n}" for n in range(5)]
    assert shop.ids(shop.retrieve("fresh", limit=5)) == [f"t{n}" for n in range(N_TRAINED - 1, N_TRAINED - 6, -1)]


def test_random_is_fixed_by_its_generator_and_reaches_every_item(shop: Shop) -> None:
    one, two = shop.retrieve("random", seed=1), shop.retrieve("random", seed=1)
    assert one.rows.tolist() == two.rows.tolist()
    assert one.rows.tolist() != shop.retrieve("random", seed=2).rows.tolist()
    reached = set().union(*(shop.ids(shop.retrieve("random", seed=seed)) for seed in range(60)))
    assert reached == {f"t{n}" for n in range(N_TRAINED)}


def test_a_new_item_is_found_by_its_content(shop: Shop) -> None:
    attributes = {"genres": ["Western"], "language": "Klingon"}
    shop.put("model", attributes=attributes, creator="K")
    shop.put("twin", attributes=attributes, creator="K")
    shop.put("other", attributes={"genres": ["Musical"]})
    found = shop.retrieve("similar", seed_item_id="model", hidden_rows=[shop.catalogue.row("model")])
    assert shop.ids(found)[0] == "twin"
    assert "twin" in shop.ids(shop.retrieve("als", liked=["model"]))
    user = _user_vector(shop, liked=["twin"])
    found = shop.retrieve("als", liked=["twin"])
    assert found.affinity.tolist() == pytest.approx([float(shop.vector(i) @ user) for i in shop.ids(found)], rel=1e-4)


def test_changed_content_moves_a_new_item_and_leaves_a_trained_one(shop: Shop) -> None:
    shop.put("a", attributes={"genres": ["Western"]})
    shop.put("b", attributes={"genres": ["Musical"]})
    shop.put("moving", attributes={"genres": ["Western"]})
    hidden = [shop.catalogue.row("a"), shop.catalogue.row("b")]
    assert shop.ids(shop.retrieve("similar", seed_item_id="a", hidden_rows=hidden))[0] == "moving"
    shop.put("moving", attributes={"genres": ["Musical"]})
    assert shop.ids(shop.retrieve("similar", seed_item_id="b", hidden_rows=hidden))[0] == "moving"
    before = shop.ids(shop.retrieve("similar", seed_item_id="t4"))
    shop.put("t4", attributes={"genres": ["Musical"]}, available_at_unix_ms=4)
    assert shop.ids(shop.retrieve("similar", seed_item_id="t4")) == before


@pytest.mark.parametrize("item_id", ["t5", "new"])
def test_a_deleted_item_is_gone_from_every_source_and_returns_when_put_again(shop: Shop, item_id: str) -> None:
    def found() -> set[str]:
        # Quotas beyond the catalogue: whatever can be found is.
        candidates = shop.retrieve("als", "similar", "popular", "fresh", "random", quota=60, limit=400, liked=["t5"])
        return set(shop.ids(candidates))

    shop.put("new", attributes={"genres": ["Western"]})
    assert item_id in found()
    shop.delete(item_id)
    assert item_id not in found()
    assert found() == {i for i in shop.catalogue.item_ids if i}
    shop.put(item_id, attributes={"genres": ["Western"]})
    assert item_id in found()
    for name in ("als", "similar"):
        assert item_id in shop.ids(shop.retrieve(name, quota=60, limit=400, liked=["t5"]))


def test_a_row_used_again_speaks_for_its_new_item_only(shop: Shop) -> None:
    row = shop.catalogue.row("t0")
    shop.delete("t0")
    assert shop.put("fresh one", attributes={"genres": ["Western"]}) == row
    user = _user_vector(shop, liked=["t3"])
    found = shop.retrieve("als", quota=60, limit=400, liked=["t3"])
    at = found.rows.tolist().index(row)
    assert found.affinity[at] == pytest.approx(float(shop.vector("fresh one") @ user), rel=1e-4)
    assert shop.retriever.under_explored(np.array([row], dtype=np.int32)).tolist() == [True]


def test_trending_holds_what_is_clicked_now_and_nothing_else(shop: Shop) -> None:
    shop.clicks = {"t7": 2.5, "t30": 4.0, "t2": 0.5}
    assert shop.ids(shop.retrieve("trending", limit=5)) == ["t30", "t7", "t2"]


def test_under_explored_draws_young_and_rarely_shown_items_more_often(shop: Shop) -> None:
    now_ms = 400 * 86_400_000
    for name, age_days in (("new", 1), ("also new", 1), ("old", 300)):
        shop.put(name, available_at_unix_ms=now_ms - age_days * 86_400_000)
    shop.impressions = {"also new": 1_000.0}
    drawn = [
        shop.ids(shop.retrieve("under_explored", quota=1, limit=1, seed=seed, now_ms=now_ms))[0] for seed in range(60)
    ]
    assert drawn.count("new") > 50
    assert "old" not in drawn


def test_without_a_bundle_catalogue_sources_still_work() -> None:
    shop = Shop(None, n_trained=8)
    found = shop.retrieve("als", "similar", "popular", "fresh", "random", liked=["t1"], seed_item_id="t2")
    assert set(shop.ids(found)) == {f"t{n}" for n in range(8)}
    assert np.isnan(found.affinity).all()
    shop.delete("t3")
    assert "t3" not in shop.ids(shop.retrieve("popular", "fresh", "random", now_ms=NOW_MS + 1_000))


@pytest.mark.parametrize("with_bundle", [False, True])
def test_an_empty_catalogue_gives_no_candidates(bundles: Path, with_bundle: bool) -> None:
    shop = Shop(bundles if with_bundle else None, n_trained=0)
    found = shop.retrieve("als", "similar", "popular", "fresh", "random", user_id="known", liked=["t1"])
    assert (found.rows.tolist(), found.sources.tolist(), found.affinity.tolist()) == ([], [], [])


def test_the_callers_own_candidates_pass_the_same_filter(shop: Shop) -> None:
    adult = shop.put("adult", min_age=18)
    child = shop.put("child", min_age=0)
    found = shop.retriever.rank_given(np.array([adult, child], dtype=np.int32), _query(age=9, liked=["t1"]))
    assert (shop.ids(found), found.source_names) == (["child"], ("caller",))
    assert np.isfinite(found.affinity).all()


def test_few_interactions_mark_what_is_under_explored(shop: Shop) -> None:
    rows = np.array([shop.catalogue.row(f"t{n}") for n in (0, N_TRAINED - 6, N_TRAINED - 5)], dtype=np.int32)
    # They were trained on N - 1, 5 and 4 interactions.
    assert shop.retriever.under_explored(rows).tolist() == [False, False, True]


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["put", "unlist", "delete"]), st.sampled_from([*(f"t{n}" for n in range(12)), "n1", "n2"])
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHANGES, st.integers(1, 12), st.integers(0, 99), st.none() | st.integers(0, 20))
def test_whatever_changed_candidates_are_distinct_eligible_and_of_named_sources(
    bundles: Path, changes: list[tuple[str, str]], limit: int, seed: int, age: int | None
) -> None:
    shop = Shop(bundles, n_trained=12)
    for kind, item_id in changes:
        if kind == "delete" and shop.catalogue.row(item_id) is not None:
            shop.delete(item_id)
        elif kind != "delete":
            shop.put(item_id, listed=kind == "put", min_age=len(item_id) * 4, attributes={"genres": [item_id]})
    shop.rank()
    query = _query(user_id="known", liked=["t1", "n1"], disliked=["t2"], age=age, hidden_rows=[0, 5])
    found = shop.retriever.retrieve(query, EVERY_SOURCE, limit=limit, new_rng=lambda: np.random.default_rng(seed))
    assert len(set(found.rows.tolist())) == len(found.rows) <= limit
    assert eligible_mask(shop.catalogue, found.rows, query.viewer, now_ms=query.now_ms).all()
    assert len(found.sources) == len(found.affinity) == len(found.rows)
    assert found.sources.max(initial=0) < len(found.source_names)
    every = np.arange(len(shop.catalogue.item_ids), dtype=np.int32)
    n_eligible = int(eligible_mask(shop.catalogue, every, query.viewer, now_ms=query.now_ms).sum())
    # `fresh` alone offers twelve of at most fourteen items.
    assert len(found.rows) >= min(limit, n_eligible, 10)


def test_also_liked_finds_what_users_of_the_seed_like_and_blends_newer_likes_first(shop: Shop) -> None:
    assert shop.ids(shop.retrieve("also_liked", seed_item_id="t0")) == ["t1", "t2", "t3"]
    # Newest liked first: t3 weighs 1, t1 a half, and both point at t0.
    assert shop.ids(shop.retrieve("also_liked", liked=["t1", "t3"])) == ["t0"]
    assert shop.retrieve("also_liked").rows.tolist() == []
    shop.delete("t2")
    assert shop.ids(shop.retrieve("also_liked", seed_item_id="t0")) == ["t1", "t3"]


def test_live_counts_speak_for_items_without_a_history(shop: Shop) -> None:
    shop.put("new", attributes={"genres": ["Noir"]})
    partners = {"new": 40.0}
    for item_id, others in (("t9", partners), ("new", {"t9": 40.0})):
        shop.retriever.item_to_item.put_live(
            item_id,
            n_users=40.0,
            at_ms=NOW_MS,
            half_life_ms=1e9,
            partners=list(others),
            counts=np.array(list(others.values())),
        )
    assert shop.ids(shop.retrieve("also_liked", seed_item_id="t9")) == ["new"]
    assert shop.ids(shop.retrieve("also_liked", seed_item_id="new")) == ["t9"]
    shop.delete("new")
    assert shop.ids(shop.retrieve("also_liked", seed_item_id="t9")) == []
    row = shop.put("new")
    assert shop.retrieve("also_liked", seed_item_id="t9").rows.tolist() == [row]


def test_content_finds_what_is_like_the_seed_by_attributes(shop: Shop) -> None:
    shop.put("twin", attributes={"genres": ["Noir"]})
    found = shop.retrieve("content", seed_item_id="t2", quota=20, limit=11)
    alike = {"twin", *(f"t{n}" for n in range(2, N_TRAINED, 4))}
    assert set(shop.ids(found)) == alike
    # A trained item is found where its content is now.
    shop.put("t3", attributes={"genres": ["Noir"]})
    assert set(shop.ids(shop.retrieve("content", seed_item_id="t2", quota=20, limit=12))) == alike | {"t3"}
    assert shop.retrieve("content").rows.tolist() == []


class Counted(Retriever):
    """Counts how often each source is asked, and for how much."""

    asked: list[tuple[str, int]]

    def _find(self, source: SourceConfig, n_wanted: int, *rest: Any) -> Any:
        self.asked.append((source.name, n_wanted))
        return super()._find(source, n_wanted, *rest)


CHAINED = st.sampled_from(["popular", "fresh", "under_explored", "random", "als", "similar", "content"])


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(CHAINED, min_size=1, max_size=3, unique=True),
    adults=st.sets(st.integers(0, N_TRAINED - 1)) | st.just(set(range(3, N_TRAINED))),
    quota=st.integers(1, 8),
    limit=st.integers(1, 30),
    hidden=st.sets(st.integers(0, N_TRAINED - 1), max_size=5),
)
def test_however_heavy_the_filter_as_many_candidates_come_as_there_are(
    bundles: Path, names: list[str], adults: set[int], quota: int, limit: int, hidden: set[int]
) -> None:
    shop = Shop(bundles)
    shop.retriever.__class__ = Counted
    shop.retriever.asked = []
    for n in adults:
        shop.put(f"t{n}", min_age=18, available_at_unix_ms=n, attributes={"genres": [GENRES[n % 4]]})
    found = shop.retrieve(
        *names, quota=quota, limit=limit, user_id="known", liked=["t1"], age=9, hidden_rows=sorted(hidden)
    )
    # Unknown ratings need no age here.
    eligible = {n for n in range(N_TRAINED) if n not in adults and n not in hidden}
    assert {shop.catalogue.row(i) for i in shop.ids(found)} <= eligible
    assert len(found.rows) >= min(limit, quota * len(names), len(eligible))
    assert len(found.rows) <= limit
    for name in names:
        wants = [n for asked, n in shop.retriever.asked if asked == name]
        assert len(wants) <= MAX_ROUNDS
        assert wants == sorted(set(wants))
        assert max(wants) <= MAX_FETCH
        assert wants[0] == 2 * quota + len(hidden)


def test_a_source_that_has_enough_is_asked_once(shop: Shop) -> None:
    assert shop.retrieve("popular", "als", liked=["t1"], limit=10).n_rounds == 1
    for n in range(N_TRAINED - 2):
        shop.put(f"t{n}", min_age=18, available_at_unix_ms=n)
    assert shop.ids(shop.retrieve("popular", age=9)) == [f"t{n}" for n in (N_TRAINED - 2, N_TRAINED - 1)]
