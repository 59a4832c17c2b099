"""Learn from joined outcomes: one VW workspace, one-action examples, an exact list of the weights that changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from vowpal_wabbit_next import CBLabel, Workspace

from bandit._native import WeightSet
from bandit.policy import ModelSpec
from bandit.vw_format import (
    CONSTANT_INDEX,
    INTERACTION_PRIME,
    Encoded,
    ExamplePool,
    Float32Array,
    UInt32Array,
    VwWorkspace,
    predict_then_learn_cost,
    weight_table,
)

_CONSTANT = np.array([CONSTANT_INDEX], dtype=np.uint32)
# Online importance weights are at most 1 / this.
MIN_LEARNING_PROPENSITY = 0.05


@dataclass(frozen=True, slots=True)
class WeightChange:
    """Weights that may differ from the last time they were asked for.

    Attributes:
        indices: uint32 [m] ascending table positions.
        values: float32 [m] their values now.
    """

    indices: UInt32Array
    values: Float32Array


class Learner:
    """The single writer of one model.

    Learns the shared context and the chosen action only. MTR over all K actions would divide the rate of a greedy
    pick by K and cost hundreds of times more.
    """

    def __init__(
        self, spec: ModelSpec, model_bytes: bytes | None = None, *, min_propensity: float = MIN_LEARNING_PROPENSITY
    ) -> None:
        """Start empty, or from `model_bytes` of an earlier `serialize`, going on at the spec's learning rate.

        Args:
            spec: shape of the model.
            model_bytes: whole and trusted: VW loads many damaged models without a word.
            min_propensity: smaller ones count as this, so that an importance weight is at most its inverse.

        Raises:
            ValueError: the bytes hold a model of another shape.
        """
        self.spec = spec
        self._min_propensity = min_propensity
        self._pool = ExamplePool()
        # One for all examples: making one takes as long as setting it.
        self._label = CBLabel(label=(0.0, 1.0))
        try:
            self._workspace: VwWorkspace = Workspace(spec.arguments(), model_data=model_bytes)
        except RuntimeError as error:
            raise ValueError(f"model must have {1 << spec.bits} weights and one sub-model: {error}") from error
        shape = self._workspace.weights().shape
        if shape[:2] != (1 << spec.bits, 1):
            raise ValueError(f"model must have {1 << spec.bits} weights and one sub-model, got shape {shape}")
        self._weights = weight_table(self._workspace, spec.arguments())[:, 0]
        self._untold = WeightSet(bits=spec.bits, prime=int(INTERACTION_PRIME))
        self.n_learned = 0
        self.loss_sum = 0.0

    def learn(
        self, shared: Mapping[str, Encoded], action: Mapping[str, Encoded], *, reward: float, propensity: float
    ) -> None:
        """Learn one outcome; the progressive squared loss is counted before the update.

        Args:
            shared: context, user and position features as they were served.
            action: the chosen item's features as they were served.
            reward: better is up.
            propensity: the logged conditional propensity, in (0, 1].
        """
        self._label.label = (-reward, max(propensity, self._min_propensity))
        examples = self._pool.fill_shared(shared), self._pool.fill_action(0, action, label=self._label)
        cost = predict_then_learn_cost(self._workspace, examples)
        self.loss_sum += (reward + cost) ** 2
        self.n_learned += 1
        self._untold.add(
            [_CONSTANT, *[one.indices for one in shared.values()], *[one.indices for one in action.values()]],
            [
                (shared[first].indices, action[second].indices)
                for first, second in self.spec.interactions
                if first in shared and second in action
            ],
        )

    def change(self) -> WeightChange:
        """Return the weights touched since `forget_change`, with their values now."""
        touched = self._untold.positions()
        return WeightChange(indices=touched, values=self._weights[touched])

    def forget_change(self) -> None:
        """Start over: what was touched so far is known to whoever had to know."""
        self._untold.clear()

    def all_weights(self) -> WeightChange:
        """Return every weight that is not zero."""
        used = np.flatnonzero(self._weights)
        return WeightChange(indices=used.astype(np.uint32), values=self._weights[used])

    def norm(self) -> float:
        """Return the Euclidean norm of the weights."""
        used = self._weights[self._weights != 0.0].astype(np.float64)
        return float(np.sqrt(used @ used))

    def occupied_share(self) -> float:
        """Return the share of the table's weights that are not zero."""
        return float(np.count_nonzero(self._weights)) / len(self._weights)

    def serialize(self) -> bytes:
        """Return the workspace: learning on from it equals learning on without it, weight for weight."""
        return bytes(self._workspace.serialize())


def collision_share(occupied_share: float) -> float:
    """Return the expected share of used weights that more than one feature uses.

    n features hashed evenly into m weights leave a weight unused with probability exp(-n/m) = 1 - occupied, so the
    number of features of one weight is Poisson with rate -ln(1 - occupied).

    >>> round(collision_share(0.5), 3)
    0.307
    """
    if occupied_share <= 0.0:
        return 0.0
    if occupied_share >= 1.0:
        return 1.0
    rate = -math.log1p(-occupied_share)
    return 1.0 - rate * (1.0 - occupied_share) / occupied_share
