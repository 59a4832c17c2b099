"""Score actions under a linear model with pairwise interactions: straight from the weight table, or through VW.

`WeightTable` is the hot path; `VwReference` scores the same arguments with VW itself, to check the table on sampled
requests. Scores are expected rewards: VW predicts costs, and the one sign flip of the project is here and in
`bandit.learner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
from vowpal_wabbit_next import CBLabel, Workspace

from bandit._native import score_actions
from bandit.vw_format import (
    ACTION_NAMESPACES,
    CONSTANT_INDEX,
    INTERACTION_PRIME,
    Encoded,
    ExamplePool,
    Float32Array,
    UInt32Array,
    VwWorkspace,
    predict_costs,
    vw_arguments,
    weight_table,
)

_PRIME = int(INTERACTION_PRIME)

Interactions = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What makes two models interchangeable: everything but the weights.

    Attributes:
        bits: log2 of the number of weights.
        learning_rate: VW's `-l`; the decay is off.
        interactions: pairs of namespaces.
        schema_version: of the feature schema the model is trained on.
    """

    bits: int
    learning_rate: float
    interactions: Interactions
    schema_version: str

    def arguments(self) -> list[str]:
        """Return VW's command line for this model."""
        return vw_arguments(self.interactions, learning_rate=self.learning_rate, bits=self.bits)


class ActionFeatures(msgspec.Struct, frozen=True):
    """Hashed features of n actions in one namespace, padded to the longest.

    Attributes:
        indices: uint32 [n, f]; padding has any index and value 0.
        values: float32 [n, f].
    """

    indices: UInt32Array
    values: Float32Array

    @classmethod
    def stack(cls, encoded: Sequence[Encoded]) -> ActionFeatures:
        """Pad the features of single actions into one pair of arrays."""
        width = max((len(e.indices) for e in encoded), default=0)
        indices = np.zeros((len(encoded), width), dtype=np.uint32)
        values = np.zeros((len(encoded), width), dtype=np.float32)
        for row, e in enumerate(encoded):
            indices[row, : len(e.indices)] = e.indices
            values[row, : len(e.values)] = e.values
        return cls(indices=indices, values=values)


class WeightTable:
    """The model's weights, dense, and the vectorised scorer that reads them."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.version = 0
        self.weights: Float32Array = np.zeros(1 << spec.bits, dtype=np.float32)

    def apply(self, indices: UInt32Array, values: Float32Array, *, version: int) -> None:
        """Overwrite weights: uint32 [m] table positions, float32 [m] values; the table is then of `version`.

        Raises:
            ValueError: a position is outside the table or a value is not finite.
        """
        if len(indices) and int(indices.max()) >= len(self.weights):
            raise ValueError(f"weight index must be below {len(self.weights)}, got {int(indices.max())}")
        if not np.isfinite(values).all():
            raise ValueError("weights must be finite")
        self.weights[indices] = values
        self.version = version

    def score(self, shared: Mapping[str, Encoded], actions: Mapping[str, ActionFeatures]) -> Float32Array:
        """Return float32 [n], the expected reward of every action.

        Linear terms plus, for every declared pair of namespaces, the weight at (i_shared * prime) xor i_action.
        """
        position = {name: place for place, name in enumerate(shared)}
        return score_actions(
            self.weights,
            constant_index=CONSTANT_INDEX,
            prime=_PRIME,
            shared=[(encoded.indices, encoded.values) for encoded in shared.values()],
            actions=[
                (
                    action.indices,
                    action.values,
                    [position[one] for one, other in self.spec.interactions if other == name and one in position],
                )
                for name, action in actions.items()
            ],
        )


class VwReference:
    """The same scores from VW's own evaluation of the same weights."""

    def __init__(self, spec: ModelSpec) -> None:
        self._workspace: VwWorkspace = Workspace(spec.arguments())
        self._weights = weight_table(self._workspace, spec.arguments())[:, 0]
        self._pool = ExamplePool()

    def score(
        self, weights: Float32Array, shared: Mapping[str, Encoded], actions: Mapping[str, ActionFeatures]
    ) -> Float32Array:
        """Return float32 [n], expected rewards under float32 [2^bits] `weights`; slow, for checks."""
        self._weights[:] = weights
        examples = [self._pool.fill_shared(shared)]
        n = next(iter(actions.values())).indices.shape[0]
        for row in range(n):
            action = {name: row_features(actions[name], row) for name in ACTION_NAMESPACES if name in actions}
            examples.append(self._pool.fill_action(row, action, label=CBLabel()))
        costs = np.zeros(n, dtype=np.float32)
        for position, cost in predict_costs(self._workspace, examples):
            costs[position] = cost
        return 0.0 - costs


@dataclass(frozen=True, slots=True)
class ScoreTerms:
    """The m addends of one action's score: the constant, every feature, every pair of features that interact.

    Attributes:
        features: (namespace, name) of none for the constant, of one feature, or of the two of a pair.
        values: float64 [m], the feature's value, the product of a pair's, 1 for the constant.
        positions: int64 [m] in the weight table; two terms may share one.
    """

    features: Sequence[tuple[tuple[str, str], ...]]
    values: npt.NDArray[np.float64]
    positions: npt.NDArray[np.int64]

    def rewards(self, weights: Float32Array) -> npt.NDArray[np.float64]:
        """Return float64 [m], what each term adds to the expected reward under float32 [m] weights of `positions`.

        They sum to what `WeightTable.score` returns, which rounds to float32.
        """
        return (0.0 - weights.astype(np.float64)) * self.values


def score_terms(spec: ModelSpec, shared: Mapping[str, Encoded], action: Mapping[str, Encoded]) -> ScoreTerms:
    """Return what the score of one action adds up from."""
    features: list[tuple[tuple[str, str], ...]] = [()]
    values = [np.ones(1)]
    for namespace, encoded in (*shared.items(), *action.items()):
        features += [((namespace, name),) for name in encoded.names]
        values.append(encoded.values.astype(np.float64))
    for first, second in spec.interactions:
        if first in shared and second in action:
            one, other = shared[first], action[second]
            features += [((first, a), (second, b)) for a in one.names for b in other.names]
            values.append(np.outer(one.values.astype(np.float64), other.values).ravel())
    positions = touched_weights(spec, shared, action)
    return ScoreTerms(features=features, values=np.concatenate(values), positions=positions)


def row_features(features: ActionFeatures, row: int) -> Encoded:
    """Return one action's features without padding; names are unknown here and empty."""
    used = features.values[row] != 0.0
    return Encoded(names=(), indices=features.indices[row, used], values=features.values[row, used])


def touched_weights(
    spec: ModelSpec, shared: Mapping[str, Encoded], action: Mapping[str, Encoded]
) -> npt.NDArray[np.int64]:
    """Return int64 table positions that learning an action can change, with repetitions."""
    mask = np.uint32((1 << spec.bits) - 1)
    parts = [np.array([CONSTANT_INDEX], dtype=np.uint32)]
    parts += [encoded.indices for encoded in (*shared.values(), *action.values())]
    for first, second in spec.interactions:
        if first in shared and second in action:
            halves = shared[first].indices * INTERACTION_PRIME
            parts.append(np.bitwise_xor.outer(halves, action[second].indices).ravel())
    positions: npt.NDArray[np.int64] = (np.concatenate(parts) & mask).astype(np.int64)
    return positions
