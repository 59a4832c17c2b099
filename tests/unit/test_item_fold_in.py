"""Fold-in of items: the closed form against the plain ALS system, and its limits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from retrieval.embeddings import Embeddings, Tastes
from retrieval.item_fold_in import ItemFoldIn

D, N_ITEMS, N_USERS = 6, 30, 50


def _embeddings(seed: int = 0) -> Embeddings:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(N_ITEMS, D)).astype(np.float32) / 3
    users = (rng.normal(size=(N_USERS, D)) / 3 + 0.2).astype(np.float32)
    wide = vectors.astype(np.float64)
    return Embeddings(
        item_ids=[f"i{n}" for n in range(N_ITEMS)],
        item_vectors=vectors,
        n_interactions=np.full(N_ITEMS, 10, dtype=np.int32),
        user_ids=[f"u{n}" for n in range(N_USERS)],
        user_vectors=users,
        gram=wide.T @ wide,
        content_map=np.zeros((16, D), dtype=np.float32),
        alpha0=0.4,
        regularization=0.7,
        tastes=Tastes.of(users),
    )


def _solved(rows: np.ndarray, gram: np.ndarray, prior: np.ndarray, embeddings: Embeddings) -> np.ndarray:
    """The minimiser of sum (1 - r y)^2 + alpha0 |X (y - prior)|^2 + reg |y - prior|^2, as a plain system."""
    system = embeddings.alpha0 * gram + embeddings.regularization * np.eye(D)
    residuals = rows.sum(axis=0) - rows.T @ (rows @ prior)
    return prior + np.linalg.solve(system + rows.T @ rows, residuals)


@pytest.mark.parametrize("n_users", [1, 7, 400])
def test_an_item_whose_users_are_alike_is_the_exact_als_item(n_users: int) -> None:
    embeddings = _embeddings()
    assert embeddings.tastes is not None
    rng = np.random.default_rng(n_users)
    content, taste = rng.normal(size=(2, D)).astype(np.float32)
    found = ItemFoldIn(embeddings).vector(content, taste, n_users=n_users)
    rows = np.tile(taste.astype(np.float64), (n_users, 1))
    expected = _solved(rows, embeddings.tastes.gram, content.astype(np.float64), embeddings)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_without_users_an_item_stays_where_its_content_puts_it() -> None:
    rng = np.random.default_rng(1)
    content, taste = rng.normal(size=(2, D)).astype(np.float32)
    np.testing.assert_array_equal(ItemFoldIn(_embeddings()).vector(content, taste, n_users=0.0), content)


@pytest.mark.parametrize("n_users", [0.5, 3.0, 50.0])
def test_along_the_taste_evidence_counts_n_over_n_plus_k(n_users: float) -> None:
    embeddings = _embeddings()
    assert embeddings.tastes is not None
    rng = np.random.default_rng(2)
    content, taste = rng.normal(size=(2, D)).astype(np.float32)
    system = embeddings.alpha0 * embeddings.tastes.gram + embeddings.regularization * np.eye(D)
    k = 1.0 / (taste @ np.linalg.solve(system, taste))
    share = n_users / (n_users + k)
    score = ItemFoldIn(embeddings).vector(content, taste, n_users=n_users) @ taste
    assert score == pytest.approx(share * 1.0 + (1 - share) * (content @ taste), rel=1e-4)


def test_the_taste_of_users_who_like_the_same_is_the_taste_of_each_of_them() -> None:
    embeddings = _embeddings()
    assert embeddings.tastes is not None
    # Each of them likes as many items as a user of the training does on average, so nothing is raised.
    partners = embeddings.item_vectors[:6]
    taste = ItemFoldIn(embeddings).taste(partners, np.ones(6))
    expected = _solved(partners.astype(np.float64), embeddings.gram, embeddings.tastes.mean, embeddings)
    np.testing.assert_allclose(taste, expected, rtol=1e-4, atol=1e-5)


def test_partners_that_are_a_part_of_the_profiles_stand_for_all_of_them() -> None:
    fold_in = ItemFoldIn(_embeddings())
    partners = _embeddings().item_vectors[:3]
    full = np.array([3.0, 2.0, 1.0])
    # A profile has 6 items: shares that add up to 1.2 are raised five times, to 0.12 twenty times at most.
    np.testing.assert_allclose(fold_in.taste(partners, full / 5), fold_in.taste(partners, full), rtol=1e-5)
    distances = [np.linalg.norm(fold_in.taste(partners, full / part) - _mean()) for part in (20, 50, 500, 5_000)]
    assert distances == sorted(distances, reverse=True)


def _mean() -> np.ndarray:
    tastes = _embeddings().tastes
    assert tastes is not None
    return tastes.mean


def test_users_of_whom_nothing_else_is_known_are_mean_users() -> None:
    taste = ItemFoldIn(_embeddings()).taste(np.zeros((0, D), dtype=np.float32), np.zeros(0))
    np.testing.assert_allclose(taste, _mean(), rtol=1e-6)


def test_embeddings_of_before_tastes_were_kept_fold_no_item_in() -> None:
    with pytest.raises(ValueError, match="must have tastes"):
        ItemFoldIn(dataclasses.replace(_embeddings(), tastes=None))


def test_tastes_of_another_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tastes must have a gram of shape \[6, 6\]"):
        dataclasses.replace(_embeddings(), tastes=Tastes(gram=np.zeros((5, 5)), mean=np.zeros(6)))
