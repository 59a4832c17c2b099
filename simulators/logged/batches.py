"""The one schema of a streamed log: batches of decisions with their logged and target propensities, slot by slot.

A single action is a slate of one slot. Whoever reads a log holds one batch at a time, so that a log of any length needs
the memory of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import numpy.typing as npt

from bandit.support import Float64Array

Int64Array = npt.NDArray[np.int64]

# Users are resampled in this many groups, whole users each: memory that does not grow with them. With more groups than
# users nearly every user is a group; with this many the error of a resampled standard deviation is about 1%.
N_CLUSTERS = 4096


@dataclass(frozen=True, slots=True)
class LoggedBatch:
    """Some decisions of a log with S slots each; slots that were not filled are padded as said.

    Attributes:
        rewards: float64 [n, S], padded with 0.
        propensities: float64 [n, S] in (0, 1], conditional on the slots before; padded with 1.
        targets: float64 [n, S] in [0, 1], the target policy's of the same items; padded with 1, or with 0 where the
            target policy would have gone on.
        clusters: int64 [n], the group of the user, below `N_CLUSTERS`.
        discovery_weights: float64 [n], pi(D) / mu(D) of the discovery coin; 1 without one.
        n_feasible: int64 [n, S], how many actions the slot could hold; 0 when that is not known.
        model_logged: float64 [n, S], a reward model's value-to-go of the logged item; None without a model.
        model_target: float64 [n, S], its mean under the target policy; None without a model.
        marginal_weights: float64 [n, S], of an item at a position over all that may stand before it; None when they
            are not known.
        max_weights: float64 [n], of single actions: the largest weight that a row could have had, whatever was drawn;
            None when it is not known.
        are_independent: Whether rows can be taken for independent: the log names no users, and the target policy does
            not learn from it on the way.
        embedding_weights: float64 [n], of single actions: how much more often the target policy shows any action with
            the embedding of the shown one; None without embeddings.
    """

    rewards: Float64Array
    propensities: Float64Array
    targets: Float64Array
    clusters: Int64Array
    discovery_weights: Float64Array
    n_feasible: Int64Array
    model_logged: Float64Array | None = None
    model_target: Float64Array | None = None
    marginal_weights: Float64Array | None = None
    max_weights: Float64Array | None = None
    are_independent: bool = False
    embedding_weights: Float64Array | None = None

    def __len__(self) -> int:
        return len(self.clusters)

    @property
    def weights(self) -> Float64Array:
        """Return float64 [n, S], the conditional weights."""
        weights: Float64Array = self.targets / self.propensities
        return weights

    @classmethod
    def of_actions(
        cls,
        *,
        rewards: Float64Array,
        propensities: Float64Array,
        targets: Float64Array,
        clusters: Int64Array,
        n_feasible: Int64Array,
        model_logged: Float64Array | None = None,
        model_target: Float64Array | None = None,
        max_weights: Float64Array | None = None,
        are_independent: bool = False,
    ) -> LoggedBatch:
        """Build a batch of single actions from columns [n]."""
        return cls(
            rewards=rewards[:, None],
            propensities=propensities[:, None],
            targets=targets[:, None],
            clusters=clusters,
            discovery_weights=np.ones(len(rewards)),
            n_feasible=n_feasible[:, None],
            model_logged=None if model_logged is None else model_logged[:, None],
            model_target=None if model_target is None else model_target[:, None],
            max_weights=max_weights,
            are_independent=are_independent,
        )


def values_to_go(
    scores: Float64Array, expected: Float64Array, position_weights: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Return float64 [S] twice: a model's value-to-go of the logged items, and its mean under the target policy.

    A slot is worth the model's reward times the slot's weight; each later slot is worth what the target policy's first
    one is, which does not depend on what was drawn. Estimates do not become wrong with the model, only wider.

    Args:
        scores: float64 [S], the model's rewards of the logged items.
        expected: float64 [S], their means under the target policy, given the slots before.
        position_weights: float64 [S].
    """
    if not len(scores):
        return scores, expected
    later = (np.cumsum(position_weights[::-1])[::-1] - position_weights) * expected[0]
    return position_weights * scores + later, position_weights * expected + later


def clusters_of_rows(first: int, n: int) -> Int64Array:
    """Return int64 [n]: rows from `first` on dealt out to the groups in turn, for logs that name no users."""
    return (np.arange(first, first + n, dtype=np.int64)) % N_CLUSTERS


def clusters_of_users(users: Sequence[str]) -> Int64Array:
    """Return int64 [n], the group of each user; a user has the same one in every batch."""
    return np.array([crc32(user.encode()) % N_CLUSTERS for user in users], dtype=np.int64)
