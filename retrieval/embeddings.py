"""Item and user embeddings: implicit ALS, a content map for cold items, closed-form fold-in for serving. No I/O.

Training is deterministic: a fixed seed, and one thread in BLAS (the order of float sums depends on it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack
from threadpoolctl import threadpool_limits

from retrieval.content import DEFAULT_BUCKETS, content_matrix, mapped_content
from retrieval.content_space import ContentSpace
from retrieval.item_to_item import Neighbours
from retrieval.items import Item


@dataclass(frozen=True, slots=True)
class AlsConfig:
    """How embeddings are trained."""

    factors: int = 64
    """Length of a vector, d."""
    regularization: float = 20.0
    """Ridge penalty of ALS on both sides."""
    alpha: float = 1.0
    """Weight of a positive with interaction value 1 against an unobserved pair's 1 (`alpha * value`)."""
    iterations: int = 15
    """Rounds of alternating least squares."""
    seed: int = 42
    """Draws the first factors."""
    n_threads: int = 1
    """Threads of ALS; the factors are the same to the bit, since a row is solved by one thread."""
    n_buckets: int = DEFAULT_BUCKETS
    """Columns of the content features, F."""
    content_regularization: float = 3.0
    """Ridge penalty of the content map."""
    blend_k: float = 5.0
    """Interactions at which an item's learned vector weighs as much as its content vector: n / (n + blend_k)."""


@dataclass(frozen=True, slots=True, eq=False)
class Tastes:
    """What fold-in of items knows of all users at once.

    Attributes:
        gram: float64 [d, d], X'X over the users.
        mean: float64 [d], of their vectors.
    """

    gram: NDArray[np.float64]
    mean: NDArray[np.float64]

    @classmethod
    def of(cls, user_vectors: NDArray[np.float32]) -> Tastes:
        """Sum up user vectors float32 [m, d]."""
        wide = user_vectors.astype(np.float64)
        return cls(gram=wide.T @ wide, mean=wide.sum(axis=0) / max(len(wide), 1))


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """What training gives and serving reads.

    Attributes:
        item_ids: The n items of the catalogue; positions are the labels of the indexes.
        item_vectors: float32 [n, d].
        n_interactions: int32 [n], how many interactions each item was trained on.
        user_ids: The m users.
        user_vectors: float32 [m, d], as trained.
        gram: float64 [d, d], Y'Y over the vectors of items with interactions; fold-in reads it. Items that nobody
            could have met are no evidence of dislike, and counting them costs a sixth of the NDCG of a folded-in user.
        content_map: float32 [F, d]; content features times this is a vector.
        alpha0: Weight of an unobserved item against a positive, the fold-in that matches this training.
        regularization: Ridge penalty of the fold-in that matches this training.
        tastes: Of the users; None in what was trained before they were kept: new items then stay where their content
            puts them.
        content: Where the same items lie by content; None when it was not built.
        neighbours: Of the same items, by common users; None when they were not computed.
    """

    item_ids: list[str]
    item_vectors: NDArray[np.float32]
    n_interactions: NDArray[np.int32]
    user_ids: list[str]
    user_vectors: NDArray[np.float32]
    gram: NDArray[np.float64]
    content_map: NDArray[np.float32]
    alpha0: float
    regularization: float
    tastes: Tastes | None = None
    content: ContentSpace | None = None
    neighbours: Neighbours | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together.

        Raises:
            ValueError: a shape does not match the ids or the dimension.
        """
        d = self.dimension
        expected = {
            "item_vectors": (len(self.item_ids), d),
            "n_interactions": (len(self.item_ids),),
            "user_vectors": (len(self.user_ids), d),
            "gram": (d, d),
            "content_map": (self.content_map.shape[0], d),
        }
        for name, shape in expected.items():
            got = getattr(self, name).shape
            if got != shape:
                raise ValueError(f"{name} must have shape {list(shape)}, got {list(got)}")
        counted = {
            "content": None if self.content is None else len(self.content.digests),
            "neighbours": None if self.neighbours is None else len(self.neighbours.n_users),
        }
        if self.tastes is not None and (self.tastes.gram.shape, self.tastes.mean.shape) != ((d, d), (d,)):
            got = f"{list(self.tastes.gram.shape)} and {list(self.tastes.mean.shape)}"
            raise ValueError(f"tastes must have a gram of shape {[d, d]} and a mean of {[d]}, got {got}")
        for name, n in counted.items():
            if n not in (None, len(self.item_ids)):
                raise ValueError(f"{name} must be of {len(self.item_ids)} items, got {n}")

    @property
    def dimension(self) -> int:
        """d, the length of a vector."""
        return int(self.item_vectors.shape[-1])

    def cold_item_vector(self, item: Item) -> NDArray[np.float32]:
        """Place an item that nobody has met by its content alone: float32 [d]."""
        return mapped_content(item, self.content_map)


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """Where ALS stands between two rounds; the next ones need nothing else.

    Attributes:
        n_rounds: Rounds that are finished.
        users: float32 [m, d].
        columns: float32 [columns, d].
    """

    n_rounds: int
    users: NDArray[np.float32]
    columns: NDArray[np.float32]


def train(
    interactions: sparse.csr_matrix,
    *,
    item_ids: Sequence[str],
    user_ids: Sequence[str],
    items: Sequence[Item],
    config: AlsConfig,
    start: Factors | None = None,
    on_round: Callable[[Factors], None] | None = None,
) -> Embeddings:
    """Train embeddings for every item of a catalogue, rated or not.

    1. Implicit ALS (Hu, Koren, Volinsky 2008) on the interactions: factors Y of items, X of users.
    2. A ridge map from content features F to factors, W = (F'F + reg I)^-1 F'Y, on the items with interactions.
    3. Item vector = n/(n+k) y + k/(n+k) f W: what was learned counts as much as there is evidence for it.

    Args:
        interactions: CSR [users, columns] of positive values; larger is surer.
        item_ids: Ids of the columns.
        user_ids: Ids of the rows.
        items: The catalogue, in the order that the result keeps. Columns that are not in it teach, and are dropped.
        config: Sizes, penalties, seed.
        start: What an interrupted training on the same interactions had reached; it ends as if it had not been.
        on_round: Told after every round of ALS; the arrays change once it returns.

    Returns:
        The embeddings; bit-identical for identical arguments on one kind of machine.

    Raises:
        ValueError: shapes and ids disagree, a value is not positive, or no item of the catalogue has an interaction.
    """
    _check_interactions(interactions, n_users=len(user_ids), n_columns=len(item_ids))
    column_of = {item_id: column for column, item_id in enumerate(item_ids)}
    columns = np.asarray([column_of.get(item.id, -1) for item in items], dtype=np.int64)
    known = columns >= 0
    n_interactions = np.zeros(len(items), dtype=np.int32)
    n_interactions[known] = np.bincount(interactions.indices, minlength=len(item_ids))[columns[known]]
    rated = n_interactions > 0
    if not rated.any():
        raise ValueError(f"interactions must touch the catalogue, got none on its {len(items)} items")
    with threadpool_limits(limits=1, user_api="blas"):
        user_vectors, column_vectors = _fit_als(interactions, config, start, on_round)
        features = content_matrix(items, config.n_buckets)
        learned = np.zeros((len(items), config.factors), dtype=np.float32)
        learned[rated] = column_vectors[columns[rated]]
        content_map = _fit_content_map(features[rated], learned[rated], config.content_regularization)
        share = (n_interactions / (n_interactions + config.blend_k))[:, None].astype(np.float32)
        item_vectors = (share * learned + (1 - share) * (features @ content_map)).astype(np.float32)
        wide = item_vectors[rated].astype(np.float64)
        gram = wide.T @ wide
        tastes = Tastes.of(user_vectors)
    # ALS solves Y'Y + sum (c-1) y y' + reg I; divided by a typical c it is the fold-in's alpha0 Y'Y + Y_S'Y_S + reg I.
    confidence = config.alpha * float(interactions.data.mean())
    return Embeddings(
        item_ids=[item.id for item in items],
        item_vectors=item_vectors,
        n_interactions=n_interactions,
        user_ids=list(user_ids),
        user_vectors=user_vectors,
        gram=gram,
        content_map=content_map,
        alpha0=1.0 / confidence,
        regularization=config.regularization / confidence,
        tastes=tastes,
    )


def fold_in(
    vectors: NDArray[np.float32],
    *,
    gram: NDArray[np.float64],
    alpha0: float,
    regularization: float,
    prior: NDArray[np.float32] | None = None,
    targets: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Solve for a user (or an item) from the vectors it interacted with, in closed form.

    x = x0 + (alpha0 Y'Y + Y_S'Y_S + reg I)^-1 Y_S'(t - Y_S x0), the exact minimiser of
    sum_S (t_i - y_i x)^2 + alpha0 |Y (x - x0)|^2 + reg |x - x0|^2. With x0 = 0 and t = 1 it is the usual fold-in.

    Args:
        vectors: float32 [k, d], the interactions; k may be 0.
        gram: float64 [d, d], Y'Y, see `Embeddings.gram`.
        alpha0: Weight of everything unobserved, >= 0.
        regularization: Ridge penalty, > 0.
        prior: float32 [d], where to start from (a trained user vector); None is zero.
        targets: float32 [k], the score each interaction should get: 1 (default) for a positive, 0 or -1 for a dislike.

    Returns:
        float32 [d]; the prior itself when k = 0.

    Raises:
        ValueError: the system has no unique solution (reg is 0 and the vectors do not span the space).

    Source:
        Hu, Koren, Volinsky (2008), equation 4, centred on a prior.
    """
    d = gram.shape[0]
    start = np.zeros(d) if prior is None else prior.astype(np.float64)
    if not len(vectors):
        return start.astype(np.float32)
    chosen = vectors.astype(np.float64)
    wanted = np.ones(len(chosen)) if targets is None else targets.astype(np.float64)
    system = alpha0 * gram
    system += chosen.T @ chosen
    system.flat[:: d + 1] += regularization
    # dposv directly: at d = 64 the checks of the general solvers cost as much as the solution.
    _, step, status = lapack.dposv(system, chosen.T @ (wanted - chosen @ start), lower=1, overwrite_a=1, overwrite_b=1)
    if status != 0:
        raise ValueError(f"fold-in needs a positive definite system, got LAPACK status {status}; raise regularization")
    solution: NDArray[np.float32] = (start + step).astype(np.float32)
    return solution


def _check_interactions(interactions: sparse.csr_matrix, *, n_users: int, n_columns: int) -> None:
    if interactions.shape != (n_users, n_columns):
        raise ValueError(f"interactions must have shape [{n_users}, {n_columns}], got {list(interactions.shape)}")
    if interactions.nnz and not (np.isfinite(interactions.data).all() and interactions.data.min() > 0):
        raise ValueError(f"interaction values must be positive and finite, got {interactions.data.min()}")


def _fit_als(
    interactions: sparse.csr_matrix,
    config: AlsConfig,
    start: Factors | None,
    on_round: Callable[[Factors], None] | None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    n_done = 0 if start is None else start.n_rounds
    model = AlternatingLeastSquares(
        factors=config.factors,
        regularization=config.regularization,
        alpha=config.alpha,
        iterations=config.iterations - n_done,
        num_threads=config.n_threads,
        random_state=config.seed,
    )
    if start is not None:
        expected = tuple((size, config.factors) for size in interactions.shape)
        if (start.users.shape, start.columns.shape) != expected or not 0 <= n_done <= config.iterations:
            raise ValueError(
                f"training must start from factors {expected} after 0..{config.iterations} rounds,"
                f" got {start.users.shape} and {start.columns.shape} after {n_done}"
            )
        model.user_factors, model.item_factors = start.users.copy(), start.columns.copy()

    def report(round_index: int, _elapsed_s: float, _loss: float | None) -> None:
        if on_round is not None:
            on_round(Factors(n_done + round_index + 1, model.user_factors, model.item_factors))

    model.fit(interactions.astype(np.float32), show_progress=False, callback=report)
    return np.asarray(model.user_factors, dtype=np.float32), np.asarray(model.item_factors, dtype=np.float32)


def _fit_content_map(
    features: sparse.csr_matrix, factors: NDArray[np.float32], regularization: float
) -> NDArray[np.float32]:
    """Solve (F'F + reg I) W = F'Y for features [n, F] and factors [n, d]: float32 [F, d]."""
    wide = features.astype(np.float64)
    system = (wide.T @ wide).toarray()
    system.flat[:: system.shape[0] + 1] += regularization
    _, content_map, status = lapack.dposv(system, np.asarray(wide.T @ factors.astype(np.float64)), lower=1)
    if status != 0:
        raise ValueError(f"content map needs a positive penalty, got content_regularization = {regularization}")
    return np.asarray(content_map, dtype=np.float32)
