"""A model as one worker serves it: the weight table, checked against VW on sampled requests."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import structlog

from bandit.policy import ActionFeatures, ModelSpec, VwReference, WeightTable
from bandit.vw_format import Encoded, Float32Array
from service.messages import ModelSnapshot, WeightDelta
from service.metrics import Metrics

_CHECK_EVERY = 1_000
_TOLERANCE = 1e-4

_log = structlog.get_logger("hone.model")


class ServedModel:
    """Scores with the table; one request in a thousand is scored by VW too, and a mismatch disables the table."""

    def __init__(self, name: str, spec: ModelSpec, metrics: Metrics) -> None:
        self.name = name
        self.spec = spec
        self._table = WeightTable(spec)
        self._reference = VwReference(spec)
        self._metrics = metrics
        self._trusts_table = True
        self._n_scored = 0

    @property
    def version(self) -> int:
        """Return the published version that is served."""
        return self._table.version

    def score(self, shared: Mapping[str, Encoded], actions: Mapping[str, ActionFeatures]) -> Float32Array:
        """Return float32 [n] expected rewards."""
        if not self._trusts_table:
            return self._reference.score(self._table.weights, shared, actions)
        scores = self._table.score(shared, actions)
        self._n_scored += 1
        if self._n_scored % _CHECK_EVERY == 1 and not self._agrees(scores, shared, actions):
            return self._reference.score(self._table.weights, shared, actions)
        return scores

    def build(self, snapshot: ModelSnapshot) -> WeightTable:
        """Return the table of a snapshot; in any thread, because a large one takes longer than a request may wait.

        Raises:
            ValueError: the snapshot is of another shape or feature schema.
        """
        if (snapshot.bits, snapshot.schema_version) != (self.spec.bits, self.spec.schema_version):
            raise ValueError(
                f"model {self.name!r} serves {self.spec.bits} bits of schema {self.spec.schema_version}, "
                f"the snapshot has {snapshot.bits} bits of schema {snapshot.schema_version}"
            )
        table = WeightTable(self.spec)
        _apply(table, snapshot.indices, snapshot.values, version=snapshot.version)
        return table

    def serve(self, table: WeightTable) -> None:
        """Score with another table from now on."""
        self._table = table
        # The next request is a sampled one.
        self._n_scored = 0
        self._metrics.model_version.labels(self.name).set(self.version)

    def apply(self, delta: WeightDelta) -> bool:
        """Apply a delta that does not begin past the served version; False when it does, and nothing is changed.

        Deltas hold values, not differences: one that repeats what is served changes nothing.
        """
        if delta.base_version > self.version:
            self._metrics.model_gaps.inc()
            return False
        _apply(self._table, delta.indices, delta.values, version=max(delta.version, self.version))
        self._metrics.model_version.labels(self.name).set(self.version)
        return True

    def _agrees(
        self, scores: Float32Array, shared: Mapping[str, Encoded], actions: Mapping[str, ActionFeatures]
    ) -> bool:
        expected = self._reference.score(self._table.weights, shared, actions)
        gap = float(np.abs(scores - expected).max(initial=0.0))
        if gap <= _TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0.0))):
            return True
        self._trusts_table = False
        self._metrics.scorer_mismatches.inc()
        _log.error("model.scorer_mismatch", model=self.name, version=self.version, gap=gap)
        return False


def _apply(table: WeightTable, indices: bytes, values: bytes, *, version: int) -> None:
    table.apply(np.frombuffer(indices, dtype="<u4"), np.frombuffer(values, dtype="<f4"), version=version)
