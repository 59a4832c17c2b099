"""Place a new item by the people who like it now, in closed form and without a retraining. Pure numpy, no I/O.

ALS solves an item from the users who like it. A worker knows of these only how many they are and what else they like;
so it solves for their mean taste first, and then for the item as if all of them had it. Both solutions are centred on
what is known without them, the mean user of the training and the item's content vector: whoever did not like a new item
has rarely met it, and counts as agreeing with the prior, not as a dislike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from retrieval.embeddings import Embeddings, fold_in

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

# Partners stand for so much more than themselves at most: beyond, it was not measured whether they still do.
_MAX_RAISE = 20.0


class ItemFoldIn:
    """Folds items into trained embeddings.

    Args:
        embeddings: As trained.

    Raises:
        ValueError: they were trained before `Embeddings.tastes` was kept.
    """

    def __init__(self, embeddings: Embeddings) -> None:
        if embeddings.tastes is None:
            raise ValueError("embeddings must have tastes to fold items in, got none; train them again")
        self._embeddings = embeddings
        self._mean = np.asarray(embeddings.tastes.mean, dtype=np.float32)
        system = embeddings.alpha0 * np.asarray(embeddings.tastes.gram, dtype=np.float64)
        system.flat[:: embeddings.dimension + 1] += embeddings.regularization
        self._factored = cho_factor(system, lower=True)
        self._profile = float(np.sum(embeddings.n_interactions, dtype=np.float64)) / max(len(embeddings.user_ids), 1)

    def taste(self, partners: Float32Array, shares: Float64Array) -> Float32Array:
        """Solve for the mean taste of the users who like an item, from what else they like.

        With the profile of each user replaced by the mean over all, and m the mean user of the training:
        x = m + (alpha0 Y'Y + sum_j w_j y_j y_j' + reg I)^-1 sum_j w_j y_j (1 - y_j m). A partner that everybody likes
        (y_j m near 1) says nothing. The partners are the newest and most common part of the profiles, so their shares
        are raised towards the size of a profile in the training: w_j = c p_j, 1 <= c <= 20.

        Args:
            partners: float32 [k, d], trained vectors of what they also like.
            shares: float64 [k], p_j: the share of the users who like each.

        Returns:
            float32 [d]; the mean user without partners.
        """
        n_liked = float(shares.sum())
        if n_liked <= 0.0:
            return self._mean
        raised = min(max(self._profile / n_liked, 1.0), _MAX_RAISE)
        root = np.sqrt(raised * shares).astype(np.float32)
        return fold_in(
            partners * root[:, None],
            gram=self._embeddings.gram,
            alpha0=self._embeddings.alpha0,
            regularization=self._embeddings.regularization,
            prior=self._mean,
            targets=root,
        )

    def vector(self, content: Float32Array, taste: Float32Array, *, n_users: float) -> Float32Array:
        """Solve for an item that `n_users` users of one taste like, starting from its content.

        y = c + (alpha0 X'X + n x x' + reg I)^-1 n x (1 - x c). Along the taste it is the rule n/(n + k): the score x y
        is (k x c + n) / (n + k) with k = 1 / x (alpha0 X'X + reg I)^-1 x, which the training sets, not a parameter.

        Args:
            content: float32 [d], c.
            taste: float32 [d], x, see `taste`.
            n_users: n, not negative; decayed counts need not be whole.

        Returns:
            float32 [d]: c when n is 0; what ALS, centred on c, gives the item when its users are alike.
        """
        wide = taste.astype(np.float64)
        direction = cho_solve(self._factored, wide, check_finite=False)
        missing = 1.0 - float(wide @ content.astype(np.float64))
        step = n_users * missing / (1.0 + n_users * float(wide @ direction))
        solution: Float32Array = (content + step * direction).astype(np.float32)
        return solution
