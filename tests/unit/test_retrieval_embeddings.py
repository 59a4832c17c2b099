"""Training, the content map and fold-in."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from retrieval.content import content_matrix
from retrieval.embeddings import AlsConfig, Embeddings, Factors, fold_in, train
from retrieval.items import Item

CONFIG = AlsConfig(factors=8, regularization=0.5, alpha=2.0, iterations=10, n_buckets=64, content_regularization=0.1)


def _world() -> tuple[sparse.csr_matrix, list[Item]]:
    """Two tastes: even users like the 20 dramas, odd users the 20 comedies; 4 more items nobody has met."""
    rng = np.random.default_rng(0)
    likes = np.zeros((60, 40), dtype=np.float32)
    for user in range(60):
        liked = rng.choice(20, size=8, replace=False) + 20 * (user % 2)
        likes[user, liked] = rng.choice([1.0, 2.0, 3.0], size=8)
    genres = ["Drama"] * 20 + ["Comedy"] * 20 + ["Drama", "Drama", "Comedy", "Comedy"]
    items = [Item(id=f"i{n}", attributes={"genres": [genre]}) for n, genre in enumerate(genres)]
    return sparse.csr_matrix(likes), items


def _train(config: AlsConfig = CONFIG) -> tuple[Embeddings, list[Item]]:
    likes, items = _world()
    ids = [f"i{n}" for n in range(40)]
    return train(likes, item_ids=ids, user_ids=[f"u{n}" for n in range(60)], items=items, config=config), items


def test_every_item_of_the_catalogue_gets_a_vector_in_its_order() -> None:
    embeddings, items = _train()
    assert embeddings.item_ids == [item.id for item in items]
    assert embeddings.item_vectors.shape == (44, 8)
    assert embeddings.item_vectors.dtype == np.float32
    assert embeddings.n_interactions[40:].tolist() == [0, 0, 0, 0]
    assert int(embeddings.n_interactions.sum()) == 60 * 8
    assert (np.linalg.norm(embeddings.item_vectors, axis=1) > 0).all()


def test_training_twice_gives_the_same_bits() -> None:
    one, two = _train()[0], _train()[0]
    for field in ("item_vectors", "user_vectors", "gram", "content_map"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))


def test_threads_do_not_change_a_bit() -> None:
    one, three = _train()[0], _train(dataclasses.replace(CONFIG, n_threads=3))[0]
    np.testing.assert_array_equal(one.item_vectors, three.item_vectors)
    np.testing.assert_array_equal(one.user_vectors, three.user_vectors)


def test_another_seed_gives_other_vectors() -> None:
    one, two = _train()[0], _train(dataclasses.replace(CONFIG, seed=7))[0]
    assert not np.allclose(one.item_vectors, two.item_vectors)


def test_every_round_is_told_and_any_of_them_is_a_start() -> None:
    likes, items = _world()
    ids, users = [f"i{n}" for n in range(40)], [f"u{n}" for n in range(60)]
    told: list[Factors] = []

    def keep(factors: Factors) -> None:
        told.append(Factors(factors.n_rounds, factors.users.copy(), factors.columns.copy()))

    whole = train(likes, item_ids=ids, user_ids=users, items=items, config=CONFIG, on_round=keep)
    assert [factors.n_rounds for factors in told] == list(range(1, 11))
    for start in (told[3], told[9]):
        resumed = train(likes, item_ids=ids, user_ids=users, items=items, config=CONFIG, start=start)
        np.testing.assert_array_equal(resumed.item_vectors, whole.item_vectors)
        np.testing.assert_array_equal(resumed.user_vectors, whole.user_vectors)


def test_factors_of_another_size_are_no_start() -> None:
    likes, items = _world()
    ids, users = [f"i{n}" for n in range(40)], [f"u{n}" for n in range(60)]
    wrong = Factors(1, np.zeros((60, 8), np.float32), np.zeros((39, 8), np.float32))
    with pytest.raises(ValueError, match=r"training must start from factors .*, got .*\(39, 8\) after 1"):
        train(likes, item_ids=ids, user_ids=users, items=items, config=CONFIG, start=wrong)


def test_a_cold_item_is_nearer_to_the_taste_of_its_genre() -> None:
    embeddings, items = _train()
    drama_user, comedy_user = embeddings.user_vectors[0::2].mean(axis=0), embeddings.user_vectors[1::2].mean(axis=0)
    for row in (40, 41):
        assert embeddings.item_vectors[row] @ drama_user > embeddings.item_vectors[row] @ comedy_user
    for row in (42, 43):
        assert embeddings.item_vectors[row] @ comedy_user > embeddings.item_vectors[row] @ drama_user
    np.testing.assert_allclose(embeddings.cold_item_vector(items[40]), embeddings.item_vectors[40], atol=1e-6)


def test_more_evidence_moves_an_item_from_its_content_to_what_was_learned() -> None:
    by_content = _train(dataclasses.replace(CONFIG, blend_k=1e9))[0]
    learned = _train(dataclasses.replace(CONFIG, blend_k=0.001))[0]
    middle = _train(dataclasses.replace(CONFIG, blend_k=5.0))[0]
    share = (middle.n_interactions[:40] / (middle.n_interactions[:40] + 5.0))[:, None]
    expected = share * learned.item_vectors[:40] + (1 - share) * by_content.item_vectors[:40]
    np.testing.assert_allclose(middle.item_vectors[:40], expected, atol=2e-3)
    assert not np.allclose(learned.item_vectors[:40], by_content.item_vectors[:40], atol=1e-2)


def test_the_content_map_is_the_ridge_solution() -> None:
    embeddings, items = _train(dataclasses.replace(CONFIG, blend_k=1e-9))
    features = content_matrix(items[:40], 64).toarray().astype(np.float64)
    learned = embeddings.item_vectors[:40].astype(np.float64)
    expected = np.linalg.solve(features.T @ features + 0.1 * np.eye(64), features.T @ learned)
    np.testing.assert_allclose(embeddings.content_map, expected, atol=1e-5)


def test_gram_is_over_the_items_with_interactions() -> None:
    embeddings, _ = _train()
    met = embeddings.item_vectors[:40].astype(np.float64)
    np.testing.assert_allclose(embeddings.gram, met.T @ met)


def test_a_folded_in_user_ranks_like_the_trained_one() -> None:
    embeddings, _ = _train()
    likes, _ = _world()
    hits = 0
    for user in range(60):
        folded = fold_in(
            embeddings.item_vectors[likes[user].indices],
            gram=embeddings.gram,
            alpha0=embeddings.alpha0,
            regularization=embeddings.regularization,
        )
        own_half = slice(20 * (user % 2), 20 * (user % 2) + 20)
        scores = embeddings.item_vectors[:40] @ folded
        hits += int(scores[own_half].mean() > np.delete(scores, np.r_[own_half]).mean())
    assert hits == 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_ids": ["i0"]}, r"interactions must have shape \[60, 1\], got \[60, 40\]"),
        ({"items": []}, "interactions must touch the catalogue"),
        ({"interactions": sparse.csr_matrix(-np.eye(60, 40))}, "interaction values must be positive"),
        ({"interactions": sparse.csr_matrix((60, 40))}, "interactions must touch the catalogue"),
    ],
)
def test_interactions_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    likes, items = _world()
    arguments = {"interactions": likes, "item_ids": [f"i{n}" for n in range(40)], "items": items} | change
    with pytest.raises(ValueError, match=message):
        train(
            arguments["interactions"],
            item_ids=arguments["item_ids"],
            user_ids=[f"u{n}" for n in range(60)],
            items=arguments["items"],
            config=CONFIG,
        )


def test_embeddings_of_unequal_lengths_are_refused() -> None:
    embeddings, _ = _train()
    with pytest.raises(ValueError, match=r"user_vectors must have shape \[59, 8\], got \[60, 8\]"):
        dataclasses.replace(embeddings, user_ids=embeddings.user_ids[:59])


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 30), alpha0=st.floats(0, 2), centred=st.booleans())
def test_fold_in_minimises_its_loss(seed: int, k: int, alpha0: float, centred: bool) -> None:
    rng = np.random.default_rng(seed)
    catalogue, vectors = rng.normal(size=(50, 6)), rng.normal(size=(k, 6)).astype(np.float32)
    prior = rng.normal(size=6).astype(np.float32) if centred else None
    targets = rng.choice([1.0, 0.0, -1.0], size=k).astype(np.float32)
    start = np.zeros(6) if prior is None else prior

    def loss(x: np.ndarray) -> float:
        missed = targets - vectors @ x
        moved = x - start
        return float(missed @ missed + alpha0 * np.sum((catalogue @ moved) ** 2) + 0.3 * moved @ moved)

    solved = fold_in(
        vectors, gram=catalogue.T @ catalogue, alpha0=alpha0, regularization=0.3, prior=prior, targets=targets
    ).astype(np.float64)
    best = loss(solved)
    for direction in rng.normal(size=(10, 6)):
        assert loss(solved + 0.05 * direction) >= best - 1e-4


def test_fold_in_without_a_prior_is_the_published_formula() -> None:
    rng = np.random.default_rng(0)
    catalogue, vectors = rng.normal(size=(50, 6)), rng.normal(size=(4, 6)).astype(np.float32)
    gram, chosen = catalogue.T @ catalogue, vectors.astype(np.float64)
    expected = np.linalg.solve(0.2 * gram + chosen.T @ chosen + 0.1 * np.eye(6), chosen.T @ np.ones(4))
    got = fold_in(vectors, gram=gram, alpha0=0.2, regularization=0.1)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_fold_in_leaves_its_arguments_alone() -> None:
    gram, vectors, prior = np.eye(3), np.ones((2, 3), np.float32), np.ones(3, np.float32)
    fold_in(vectors, gram=gram, alpha0=1.0, regularization=1.0, prior=prior)
    np.testing.assert_array_equal(gram, np.eye(3))
    np.testing.assert_array_equal(vectors, np.ones((2, 3)))
    np.testing.assert_array_equal(prior, np.ones(3))


def test_fold_in_of_nothing_is_the_prior_or_zero() -> None:
    none, prior = np.zeros((0, 3), dtype=np.float32), np.asarray([1, 2, 3], dtype=np.float32)
    np.testing.assert_array_equal(fold_in(none, gram=np.eye(3), alpha0=1.0, regularization=1.0), np.zeros(3))
    np.testing.assert_array_equal(fold_in(none, gram=np.eye(3), alpha0=1.0, regularization=1.0, prior=prior), prior)


def test_fold_in_without_a_unique_solution_is_refused() -> None:
    with pytest.raises(ValueError, match="positive definite"):
        fold_in(np.ones((1, 3), dtype=np.float32), gram=np.zeros((3, 3)), alpha0=0.0, regularization=0.0)
