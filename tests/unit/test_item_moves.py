"""Vectors of new items on a worker: moved by live counts within a second, in bounded steps, and across an exchange."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from bandit.features import Feature, FeatureSchema
from retrieval.bundle import load_bundle, write_bundle
from retrieval.catalogue import Catalogue
from retrieval.embeddings import Embeddings, Tastes
from retrieval.item_to_item import Neighbours
from retrieval.items import Item
from service.adapters.memory_store import MemoryChangeLog, MemoryModelStore, MemoryStore
from service.config import load_config
from service.count_pairs import PairCounting
from service.follow import Follower
from service.index_swap import IndexSwap
from service.item_moves import FEW_TRAINED, NEW_FOR_MS
from service.item_pairs import ITEM_PAIRS_STREAM
from service.items_view import ITEMS_STREAM, ItemsView
from service.live_config import LiveConfig
from service.messages import ItemDelete, ItemUpsert, encode
from service.metrics import Metrics
from service.retriever import Retriever
from service.rule_columns import AttributeColumns

D = 6
NOW_MS = 10 * NEW_FOR_MS
AS_OF = (NOW_MS, 0, 0)
SCHEMA = FeatureSchema(features=[Feature(name="id", namespace="item", source="id")])
# Items t0..t19 are liked by one half of the users, t20..t39 by the other; t38 is hardly trained, t39 not at all.
N_TRAINED = 40


def _embeddings(seed: int = 3) -> Embeddings:
    rng = np.random.default_rng(seed)
    centre = np.zeros((2, D))
    centre[0, 0] = centre[1, 1] = 0.6
    vectors = (centre[np.arange(N_TRAINED) // 20] + rng.normal(size=(N_TRAINED, D)) / 20).astype(np.float32)
    users = (centre[np.arange(60) // 30] * 1.5 + rng.normal(size=(60, D)) / 20).astype(np.float32)
    n_interactions = np.full(N_TRAINED, FEW_TRAINED, dtype=np.int32)
    n_interactions[38:] = 4, 0
    wide = vectors[:39].astype(np.float64)
    return Embeddings(
        item_ids=[f"t{n}" for n in range(N_TRAINED)],
        item_vectors=vectors,
        n_interactions=n_interactions,
        user_ids=[f"u{n}" for n in range(60)],
        user_vectors=users,
        gram=wide.T @ wide,
        content_map=(rng.normal(size=(32, D)) / 10).astype(np.float32),
        alpha0=0.1,
        regularization=0.5,
        neighbours=Neighbours(
            n_users=np.zeros(N_TRAINED, dtype=np.float32),
            ends=np.zeros(N_TRAINED + 1, dtype=np.int64),
            items=np.zeros(0, dtype=np.int32),
            counts=np.zeros(0, dtype=np.float32),
        ),
        tastes=Tastes.of(users),
    )


class Site:
    """The writer of counts and one worker, on a store in memory; bundles on disk."""

    def __init__(self, root: Path, embeddings: Embeddings) -> None:
        self.root = root
        write_bundle(root, embeddings, version="v1", hmac_key=None)
        config = root / "hone.toml"
        config.write_text("[models.default]\n[surfaces.s]\n")
        store = MemoryStore(lambda: NOW_MS)
        self.log = MemoryChangeLog(store)
        self.counting = PairCounting(self.log)
        self.metrics = Metrics()
        self.items = ItemsView(SCHEMA, Retriever(Catalogue(), load_bundle(root)), AttributeColumns({}))
        self.follower = Follower(
            log=self.log,
            models=MemoryModelStore(store),
            items=self.items,
            served={},
            live=LiveConfig(load_config(config)),
            metrics=self.metrics,
        )
        self.n_users = 0
        self.now_ms = NOW_MS

    async def put(self, item_id: str, **fields: object) -> None:
        change = ItemUpsert(item=Item(id=item_id, **fields))  # type: ignore[arg-type]
        await self.log.append(ITEMS_STREAM, [encode(change)])

    async def delete(self, item_id: str) -> None:
        await self.log.append(ITEMS_STREAM, [encode(ItemDelete(item_id=item_id))])

    async def like(self, item_id: str, *, n_users: int, half: int = 1) -> None:
        """New users like five items of one half and the item; the writer publishes a second later."""
        for _ in range(n_users):
            self.n_users += 1
            for n in range(5):
                self.counting.add(f"n{self.n_users}", f"t{20 * half + (self.n_users + n) % 18}", NOW_MS)
            self.counting.add(f"n{self.n_users}", item_id, NOW_MS)
        self.now_ms += 1_000
        await self.counting.publish(self.now_ms, AS_OF)

    async def follow(self) -> None:
        await self.follower.catch_up()
        while self.items.n_moves:
            await self.follower._read(block_ms=0)

    def vector(self, item_id: str) -> np.ndarray:
        vectors = self.items.retriever._vectors
        assert vectors is not None
        label = vectors.label(item_id)
        assert label is not None
        vector = vectors.vectors(np.array([label]))[0]
        # The index has the same vector.
        labels, scores = vectors.bundle.als.search(vector, N_TRAINED + 20)
        at = labels.tolist().index(label)
        assert scores[at] == pytest.approx(float(vector @ vector), rel=1e-4)
        return np.array(vector)

    def content(self, item_id: str) -> np.ndarray:
        item = self.items.catalogue.item(item_id)
        vectors = self.items.retriever._vectors
        assert item is not None
        assert vectors is not None
        return vectors.bundle.embeddings.cold_item_vector(item)


@pytest.fixture
async def site(tmp_path: Path) -> Site:
    site = Site(tmp_path, _embeddings())
    for n in range(N_TRAINED):
        await site.put(f"t{n}")
    await site.put("new", attributes={"genres": ["Noir"]})
    await site.counting.start(1, AS_OF)
    await site.follow()
    return site


def _scores(site: Site, item_id: str) -> tuple[float, float]:
    """What the mean user of either half thinks of an item."""
    users = _embeddings().user_vectors
    vector = site.vector(item_id)
    return float(vector @ users[:30].mean(axis=0)), float(vector @ users[30:].mean(axis=0))


async def test_a_new_item_moves_towards_the_users_who_like_it_with_the_next_publication(site: Site) -> None:
    np.testing.assert_allclose(site.vector("new"), site.content("new"), atol=1e-6)
    before = _scores(site, "new")
    await site.like("new", n_users=8)
    await site.follow()
    first = _scores(site, "new")
    assert first[1] - before[1] > 2 * abs(first[0] - before[0])
    await site.like("new", n_users=40)
    await site.follow()
    second = _scores(site, "new")
    assert before[1] < first[1] < second[1] < 1.1
    assert site.metrics.registry.get_sample_value("hone_item_vectors_moved_total") == 2


async def test_an_item_moves_again_only_when_half_as_many_more_users_like_it(site: Site) -> None:
    await site.like("new", n_users=8)
    await site.follow()
    moved = site.vector("new")
    await site.like("new", n_users=3)
    await site.follow()
    np.testing.assert_array_equal(site.vector("new"), moved)
    await site.like("new", n_users=1)
    await site.follow()
    assert not np.array_equal(site.vector("new"), moved)


async def test_what_was_trained_often_or_is_old_stays_and_what_was_not_or_is_young_moves(site: Site) -> None:
    trained = {name: site.vector(name) for name in ("t20", "t38", "t39")}
    for name in trained:
        await site.like(name, n_users=30)
    await site.follow()
    for name, is_moved in (("t20", False), ("t38", False), ("t39", True)):
        assert np.array_equal(site.vector(name), trained[name]) is not is_moved
    await site.put("t38", available_at_unix_ms=NOW_MS - NEW_FOR_MS + 1)
    await site.follow()
    assert not np.array_equal(site.vector("t38"), trained["t38"])


async def test_a_successor_has_moved_the_same_items_and_moves_what_comes_later(site: Site, tmp_path: Path) -> None:
    await site.like("new", n_users=8)
    await site.follow()
    before = site.vector("new")
    write_bundle(tmp_path, _embeddings(), version="v2", hmac_key=None)
    swap = IndexSwap(tmp_path, hmac_key=None, items=site.items, metrics=site.metrics, clock=lambda: NOW_MS)
    assert await swap.look()
    assert site.items.retriever.version == "v2"
    np.testing.assert_allclose(site.vector("new"), before, atol=1e-6)
    await site.like("new", n_users=40)
    await site.follow()
    assert _scores(site, "new")[1] > float(before @ _embeddings().user_vectors[30:].mean(axis=0))


async def test_counts_that_come_during_an_exchange_are_not_lost(site: Site, tmp_path: Path) -> None:
    succession = site.items.begin_succession()
    await site.like("new", n_users=8)
    await site.follow()
    before = site.vector("new")
    write_bundle(tmp_path, _embeddings(), version="v2", hmac_key=None)
    site.items.end_succession(succession.build(load_bundle(tmp_path)))
    await site.follow()
    assert site.items.retriever.version == "v2"
    np.testing.assert_allclose(site.vector("new"), before, atol=1e-6)


async def test_counts_may_come_before_the_item_and_content_may_change_after_them(site: Site) -> None:
    await site.like("later", n_users=8)
    await site.follow()
    await site.put("later", attributes={"genres": ["Noir"]})
    await site.like("new", n_users=8)
    await site.follow()
    np.testing.assert_allclose(_scores(site, "later"), _scores(site, "new"), atol=0.05)
    moved = site.vector("later")
    assert not np.allclose(moved, site.content("later"), atol=1e-2)
    await site.put("later", attributes={"genres": ["Anime"]})
    await site.follow()
    shift = site.vector("later") - moved
    assert 0.0 < np.linalg.norm(shift) < np.linalg.norm(moved)


async def test_a_deleted_item_takes_its_moved_vector_along(site: Site) -> None:
    await site.like("t39", n_users=8)
    await site.like("new", n_users=8)
    await site.follow()
    vectors = site.items.retriever._vectors
    assert vectors is not None
    for name in ("new", "t39"):
        await site.delete(name)
    await site.follow()
    assert len(vectors.bundle.als) == len(vectors.bundle.similar) == N_TRAINED - 1
    # Their places are used again by the next items.
    n_places = vectors._n_places
    for name in ("one", "two"):
        await site.put(name)
    await site.follow()
    assert vectors._n_places == n_places
    np.testing.assert_allclose(site.vector("one"), site.content("one"), atol=1e-6)


async def test_workers_agree_in_whatever_order_they_heard_of_the_items(site: Site, tmp_path: Path) -> None:
    for name in ("new", "t39", "other"):
        await site.put(name)
        await site.like(name, n_users=9)
    await site.follow()
    late = ItemsView(SCHEMA, Retriever(Catalogue(), load_bundle(tmp_path)), AttributeColumns({}))
    for name in ("other", "t39", "new", *(f"t{n}" for n in range(39))):
        late.apply("1-0", ItemUpsert(item=Item(id=name)))
    await site.counting.start(2, AS_OF)
    entries = await site.log.read({ITEM_PAIRS_STREAM: "0-0"}, count=100, block_ms=0)
    site.items, present = late, site
    site.follower._items = late
    for entry in entries:
        site.follower._apply_pairs(entry)
    while late.n_moves:
        late.move_step()
    found = {name: site.vector(name) for name in ("t39", "other")}
    assert present is site
    for name, vector in found.items():
        assert np.linalg.norm(vector - site.content(name)) > 0.05


async def test_a_step_moves_one_item_at_most_and_looks_at_few(site: Site) -> None:
    for n in range(5):
        await site.put(f"new{n}")
        await site.like(f"new{n}", n_users=2)
    await site.follower.catch_up()
    moves = site.items.retriever.moves
    moves.note([f"t{n}" for n in range(20)] * 40 + [f"nobody{n}" for n in range(1_000)], as_of_ms=NOW_MS)
    n_noted = len(moves)
    n_steps = 0
    while len(moves):
        before = len(moves)
        moves.step()
        n_steps += 1
        assert before - len(moves) <= 256
    assert n_steps >= n_noted / 256


async def test_a_bundle_of_before_tastes_were_kept_is_served_and_leaves_items_at_their_content(tmp_path: Path) -> None:
    site = Site(tmp_path, dataclasses.replace(_embeddings(), tastes=None))
    await site.put("new", attributes={"genres": ["Noir"]})
    await site.counting.start(1, AS_OF)
    await site.like("new", n_users=8)
    await site.follow()
    np.testing.assert_array_equal(site.vector("new"), site.content("new"))
