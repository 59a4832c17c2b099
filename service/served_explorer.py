"""A VW explorer as one worker serves it: loaded whole, asked for a pmf over each slot's shortlist."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from time import perf_counter

import numpy as np
import structlog

from bandit.columns import Float64Array, Int64Array
from bandit.explorer import Explorer, ExplorerSpec
from bandit.policy import ActionFeatures
from bandit.slate import ExplorerPmf
from bandit.vw_format import encode
from service.messages import ModelSnapshot, WeightDelta
from service.metrics import Metrics

_log = structlog.get_logger("hone.explorer")


class ServedExplorer:
    """Gives the pmf of the newest published explorer; until one is published, of one that has learned nothing.

    Loading holds the interpreter: measured on 2 cores with `--bag 5`, 8-13 ms at 18 bits and 15-28 ms at 20. That is
    how long requests wait, once per publication and worker, in a thread as well as here. The learner loads each model
    in a child process before it publishes it; here the digest says that these are the bytes it checked.
    """

    def __init__(self, name: str, spec: ExplorerSpec, metrics: Metrics) -> None:
        self.name = name
        self.version = 0
        self._spec = spec
        self._metrics = metrics
        self._explorer = Explorer(spec)

    def ask(self, named: Mapping[str, dict[str, float]], features: Mapping[str, ActionFeatures]) -> ExplorerPmf:
        """Return the pmfs of one request: of shared features by name and n actions' hashed ones."""
        shared = {namespace: encode(namespace, features_of) for namespace, features_of in named.items()}
        request = self._explorer.ask(shared, features)

        def pmf(_slot: int, shortlist: Int64Array) -> Float64Array:
            return request.pmf(shortlist)

        return pmf

    def build(self, snapshot: ModelSnapshot) -> tuple[Explorer, int] | None:
        """Return a published explorer with its version; None, counted, when it cannot be used."""
        started = perf_counter()
        try:
            explorer = load_explorer(self._spec, snapshot)
        except ValueError as error:
            self._metrics.explorer_refused.inc()
            _log.error("explorer.refused", model=self.name, version=snapshot.version, error=str(error))
            return None
        self._metrics.explorer_load_seconds.observe(perf_counter() - started)
        return explorer, snapshot.version

    def serve(self, built: tuple[Explorer, int] | None) -> None:
        """Ask another explorer from now on; the present one stays when there is none."""
        if built is not None:
            self._explorer, self.version = built
            self._metrics.model_version.labels(self.name).set(self.version)

    def apply(self, delta: WeightDelta) -> bool:
        """Return whether the version that the entry announces is served already; the snapshot has it otherwise."""
        return delta.base_version <= self.version


def load_explorer(spec: ExplorerSpec, snapshot: ModelSnapshot) -> Explorer:
    """Return the explorer of a snapshot.

    Raises:
        ValueError: the snapshot is damaged, of other arguments or of another feature schema.
    """
    if snapshot.schema_version != spec.schema_version:
        raise ValueError(
            f"the snapshot is of feature schema {snapshot.schema_version}, served is {spec.schema_version}"
        )
    # VW compares some of its options with the model's, and not the interactions.
    if snapshot.arguments != spec.command():
        raise ValueError(f"the snapshot is of {' '.join(snapshot.arguments)!r}, served is {' '.join(spec.command())!r}")
    if workspace_digest(snapshot.workspace) != snapshot.workspace_digest:
        raise ValueError("the snapshot is damaged: its digest is of other bytes")
    return Explorer(spec, bytes(snapshot.workspace))


def workspace_digest(model_bytes: bytes) -> str:
    """Return 32 hexadecimal digits that name the bytes of a model."""
    return blake2b(model_bytes, digest_size=16).hexdigest()


def probe_explorer(spec: ExplorerSpec, model_bytes: bytes) -> None:
    """Load a model and ask it once, as workers will.

    Raises:
        ValueError: it cannot be loaded or gives no pmf.
    """
    explorer = Explorer(spec, model_bytes)
    shared = {"context": encode("context", {"probe": 1.0}), "user": encode("user", {"probe": 1.0})}
    actions = [{"item": encode("item", {f"probe={k}": 1.0})} for k in range(3)]
    if not np.isfinite(explorer.pmf(shared, actions)).all():
        raise ValueError("the explorer gives no pmf")
