"""The panel of estimators over a log of any length: sums by cluster that add up over batches, then values, intervals.

A refused estimate shows its reason and no value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bandit.estimators import (
    ActionRows,
    Estimate,
    clipped_ips,
    direct_method,
    doubly_robust,
    ips,
    mips,
    self_normalised_doubly_robust,
    shrunk_doubly_robust,
    snips,
    switch_doubly_robust,
    value_of_sums,
)
from bandit.intervals import Interval, cluster_bootstrap, cluster_sums
from bandit.slate_estimators import SlateRows, cascade_doubly_robust, iips, one_slot_deviation, rips, slate_ips
from bandit.support import Float64Array, Support, refusal_of
from simulators.logged.batches import N_CLUSTERS, LoggedBatch
from simulators.panel_bounds import BoundSums

CLIPS = (10.0, 20.0, 50.0)
SWITCH_THRESHOLD = 10.0
SHRINKAGE = 100.0
BOOTSTRAP_SEED = 12345


def action_panel(rows: ActionRows) -> dict[str, Estimate]:
    """Return every estimator of single actions that the rows allow, by name with its parameter."""
    panel = {"ips": ips(rows), "snips": snips(rows)}
    panel |= {f"clipped_ips({clip:g})": clipped_ips(rows, clip=clip) for clip in CLIPS}
    if rows.model_logged is None or rows.model_target is None:
        return panel
    return panel | {
        "dm": direct_method(rows),
        "dr": doubly_robust(rows),
        "sndr": self_normalised_doubly_robust(rows),
        f"switch_dr({SWITCH_THRESHOLD:g})": switch_doubly_robust(rows, threshold=SWITCH_THRESHOLD),
        f"dr_os({SHRINKAGE:g})": shrunk_doubly_robust(rows, shrinkage=SHRINKAGE),
    }


def slate_panel(
    rows: SlateRows,
    *,
    marginal_weights: Float64Array | None,
    model_logged: Float64Array | None,
    model_target: Float64Array | None,
) -> dict[str, Estimate]:
    """Return every estimator of slates that the rows allow, by name."""
    found = []
    for normalised in (False, True):
        found += [slate_ips(rows, self_normalised=normalised), rips(rows, self_normalised=normalised)]
        if marginal_weights is not None:
            found.append(iips(rows, marginal_weights=marginal_weights, self_normalised=normalised))
        if model_logged is not None and model_target is not None:
            found.append(
                cascade_doubly_robust(
                    rows, model_logged=model_logged, model_target=model_target, self_normalised=normalised
                )
            )
    return {estimate.name: estimate for estimate in [*found, one_slot_deviation(rows)]}


def batch_panel(batch: LoggedBatch, *, position_weights: Float64Array) -> dict[str, Estimate]:
    """Return the panel of a batch: of single actions when there is one slot, else of slates."""
    weights = batch.weights
    if weights.shape[1] > 1:
        rows = SlateRows(batch.rewards, weights, position_weights, batch.discovery_weights)
        return slate_panel(
            rows,
            marginal_weights=batch.marginal_weights,
            model_logged=batch.model_logged,
            model_target=batch.model_target,
        )
    rewards = batch.rewards[:, 0] * position_weights[0]
    panel = action_panel(
        ActionRows(
            rewards,
            weights[:, 0] * batch.discovery_weights,
            model_logged=None if batch.model_logged is None else batch.model_logged[:, 0],
            model_target=None if batch.model_target is None else batch.model_target[:, 0],
        )
    )
    if batch.embedding_weights is not None:
        panel["mips"] = mips(ActionRows(rewards, batch.embedding_weights * batch.discovery_weights))
    return panel


@dataclass(frozen=True, slots=True)
class PanelLine:
    """One estimator's line of the report.

    Attributes:
        name: Of the estimator, with its parameter.
        value: Estimated value, None when refused.
        interval: By bootstrap over groups of whole users, None when refused or there are too few of them.
        support: The worst of its slots' supports.
        refusal: Why there is no value, None when there is.
    """

    name: str
    value: float | None
    interval: Interval | None
    support: Support
    refusal: str | None

    def figures(self) -> dict[str, Any]:
        """Return the line as JSON-ready figures."""
        return {
            "value": self.value,
            "interval": None if self.interval is None else asdict(self.interval),
            "support": self.support.figures(),
            "refusal": self.refusal,
        }


@dataclass(slots=True)
class PanelSums:
    """Sums of a panel, by estimator: they add up over the batches of a log.

    Attributes:
        sums: float64 [N_CLUSTERS, columns] each, what `value_of_sums` reads.
        supports: One per slot each.
        bounds: Of single actions whose rewards are in [0, 1].
        reward_sum: Of the logged rewards, weighted by position: the value of the logging policy is its mean.
        n: Decisions.
        left_out: Estimators that some batches allowed and others did not.
    """

    sums: dict[str, Float64Array] = field(default_factory=dict)
    supports: dict[str, tuple[Support, ...]] = field(default_factory=dict)
    bounds: BoundSums = field(default_factory=BoundSums)
    reward_sum: float = 0.0
    n: int = 0
    left_out: set[str] = field(default_factory=set)

    def add(self, batch: LoggedBatch, *, position_weights: Float64Array) -> None:
        """Take in a batch; an estimator that one batch does not allow is left out altogether."""
        panel = batch_panel(batch, position_weights=position_weights)
        if self.n:
            missing = self.sums.keys() ^ panel.keys()
            self.left_out |= missing
        for name in self.left_out:
            self.sums.pop(name, None)
            self.supports.pop(name, None)
        self._take({name: one for name, one in panel.items() if name not in self.left_out}, batch)
        self.n += len(batch)
        self.reward_sum += float((batch.rewards @ position_weights).sum())
        self.bounds.add(batch, position_weights=position_weights)

    def _take(self, panel: Mapping[str, Estimate], batch: LoggedBatch) -> None:
        for name, estimate in panel.items():
            sums = cluster_sums(estimate, clusters=batch.clusters, n_clusters=N_CLUSTERS)
            if name in self.sums:
                self.sums[name] += sums
                pairs = zip(self.supports[name], estimate.supports, strict=True)
                self.supports[name] = tuple(before + here for before, here in pairs)
            else:
                self.sums[name], self.supports[name] = sums, estimate.supports

    @classmethod
    def of(cls, batches: Iterable[LoggedBatch], *, position_weights: Float64Array) -> PanelSums:
        """Sum up a log."""
        sums = cls()
        for batch in batches:
            sums.add(batch, position_weights=position_weights)
        return sums

    @property
    def logged_value(self) -> float:
        """Return the value of the logging policy: its mean reward."""
        return self.reward_sum / self.n

    def lines(self, *, refusal: str | None = None) -> tuple[PanelLine, ...]:
        """Return the panel; all of it is refused when a reason is given."""
        used = {name: refusal or refusal_of(self.supports[name]) for name in self.sums}
        intervals = self._intervals()
        return tuple(
            PanelLine(
                name=name,
                value=None if reason else float(value_of_sums(self.sums[name].sum(axis=0))),
                interval=None if reason else intervals.get(name),
                support=min(self.supports[name], key=lambda support: support.ess),
                refusal=reason,
            )
            for name, reason in used.items()
        )

    def _intervals(self) -> dict[str, Interval]:
        intervals = group_intervals(list(self.sums.values()))
        return dict(zip(self.sums, intervals, strict=True)) if intervals else {}


def group_intervals(sums: Sequence[Float64Array]) -> list[Interval] | None:
    """Return each estimator's bootstrap interval over the groups of users that have rows; None with fewer than two.

    Args:
        sums: float64 [N_CLUSTERS, columns] of each estimator on the same rows, as `cluster_sums` gives them.
    """
    used = sums[0][:, 0] > 0.0
    if np.count_nonzero(used) < 2:
        return None
    return cluster_bootstrap([of_one[used] for of_one in sums], rng=np.random.default_rng(BOOTSTRAP_SEED))
