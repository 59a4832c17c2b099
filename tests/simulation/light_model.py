"""What stands for the slow parts that are not simulated: VW's workspace, and Parquet's encoding of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bandit.learner import Learner, WeightChange
from bandit.policy import ModelSpec
from bandit.vw_format import Encoded
from service.durable_files import sync_file
from service.failpoints import reach


class LightLearner:
    """An adaptive linear model: what it has learned, and in which order, shows in its weights to the bit."""

    def __init__(self, spec: ModelSpec, model_bytes: bytes | None = None) -> None:
        self.spec = spec
        n_weights = 1 << spec.bits
        self._weights = (
            np.zeros((n_weights, 3), dtype=np.float32)
            if model_bytes is None
            else np.frombuffer(model_bytes, dtype=np.float32).reshape(n_weights, 3).copy()
        )
        self._touched: set[int] = set()
        self.n_learned = 0
        self.loss_sum = 0.0

    def learn(
        self, shared: Mapping[str, Encoded], action: Mapping[str, Encoded], *, reward: float, propensity: float
    ) -> None:
        """Move the weights of the features towards the reward."""
        arrays = [encoded.indices for part in (shared, action) for _, encoded in sorted(part.items())]
        at = np.unique(np.concatenate(arrays).astype(np.int64) % len(self._weights))
        error = np.float32(reward) - self._weights[at, 0].sum()
        self._weights[at, 1] += error * error
        self._weights[at, 0] += error / np.float32(max(propensity, 0.05)) / np.sqrt(1.0 + self._weights[at, 1])
        self._weights[at, 2] += 1.0
        self.loss_sum += float(error) ** 2
        self.n_learned += 1
        self._touched.update(at.tolist())

    def change(self) -> WeightChange:
        """Return what was touched."""
        return self._named(np.array(sorted(self._touched), dtype=np.int64))

    def forget_change(self) -> None:
        """Start over."""
        self._touched.clear()

    def all_weights(self) -> WeightChange:
        """Return what is not zero."""
        return self._named(np.flatnonzero(self._weights[:, 0]))

    def norm(self) -> float:
        """Return the Euclidean norm of the weights."""
        return float(np.linalg.norm(self._weights[:, 0]))

    def occupied_share(self) -> float:
        """Return the share of weights in use."""
        return float(np.count_nonzero(self._weights[:, 0])) / len(self._weights)

    def serialize(self) -> bytes:
        """Return everything."""
        return self._weights.tobytes()

    def _named(self, at: np.ndarray) -> WeightChange:
        return WeightChange(indices=at.astype(np.uint32), values=self._weights[at, 0])


def training(is_light: bool) -> Callable[[bytes], np.ndarray]:
    """Return what reads weights and their state [n, 3] from a serialised model."""

    def read(workspace: bytes) -> np.ndarray:
        if is_light:
            return np.frombuffer(workspace, dtype=np.float32).reshape(-1, 3)
        from tests.simulation.actors import CONFIG, MODEL

        # The fourth column is scratch.
        learner = Learner(CONFIG.model_spec(MODEL), workspace)
        return learner._workspace.weights()[:, 0, :3].copy()

    return read


class LightArrow:
    """Stands for pyarrow where rows become a table."""

    class Table:
        """A table is its rows."""

        @staticmethod
        def from_pylist(rows: list[dict[str, Any]], schema: Any) -> list[dict[str, Any]]:
            return rows


def light_rows(target: Path, kind: str, tables: Iterable[list[dict[str, Any]]], *, n_erased: int = 0) -> Path:
    """Write and sync rows beside `target` as `write_rows` does, in a form that is quick to write and to read."""
    rows: list[dict[str, Any]] = [row for table in tables for row in table]
    partial = target.with_name(f"{target.name}.partial")
    with partial.open("wb") as file:
        reach("archive.rows")
        file.write(msgspec.msgpack.encode(rows))
        reach("archive.rows_sync")
        sync_file(file)
    return partial
