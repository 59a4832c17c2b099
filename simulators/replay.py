"""Replay a log through production policy code: the value of the replayed policy and its progressive validation loss.

A policy that learns as it goes is, at each decision, a function of the log before it; its weights have mean 1 like
those of any other, and the panel is of the sequence of policies that it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from bandit.support import Float64Array
from simulators.evaluate_log import LogEvaluation, conclude
from simulators.logged.batches import LoggedBatch
from simulators.logged.import_report import ImportReport
from simulators.panel import PanelSums

_MAX_POINTS = 400


@dataclass(frozen=True, slots=True)
class ReplayedBatch:
    """Decisions of a log under the replayed policy as it was then.

    Attributes:
        batch: With the policy's propensities.
        squared_errors: float64 [any], of the rewards that the policy's model predicted for what was shown, before it
            learned from them; empty when it predicts none.
    """

    batch: LoggedBatch
    squared_errors: Float64Array


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The replay so far.

    Attributes:
        n: Decisions.
        value: Of the replayed policy by IPS of one slot's deviation from the log, over all slots.
        logged_value: Mean reward of the log.
        loss: Mean squared error so far, None without predictions.
        window_loss: The same since the point before.
    """

    n: int
    value: float
    logged_value: float
    loss: float | None
    window_loss: float | None


@dataclass(slots=True)
class ReplayResult:
    """What a replay found.

    Attributes:
        evaluation: The panel over the whole log.
        curve: In order; thinned to a few hundred points.
        n_predicted: Rewards that were predicted.
        loss: Progressive validation loss: their mean squared error, None without predictions.
        settings: What was replayed, for the report.
    """

    evaluation: LogEvaluation
    curve: list[CurvePoint]
    n_predicted: int
    loss: float | None
    settings: dict[str, Any]

    def figures(self) -> dict[str, Any]:
        """Return the result as JSON-ready figures."""
        return {
            "settings": self.settings,
            **self.evaluation.figures(),
            "progressive_loss": self.loss,
            "rewards_predicted": self.n_predicted,
            "curve": [
                {
                    "n": point.n,
                    "value": point.value,
                    "logged_value": point.logged_value,
                    "loss": point.loss,
                    "window_loss": point.window_loss,
                }
                for point in self.curve
            ],
        }


@dataclass(slots=True)
class _Curve:
    """Running sums; half of the points are dropped when there are too many."""

    points: list[CurvePoint] = field(default_factory=list)
    n: int = 0
    value_sum: float = 0.0
    reward_sum: float = 0.0
    n_predicted: int = 0
    error_sum: float = 0.0

    def add(self, replayed: ReplayedBatch, position_weights: Float64Array) -> None:
        batch, errors = replayed.batch, replayed.squared_errors
        rewards = batch.rewards * position_weights
        self.n += len(batch)
        self.value_sum += float((batch.weights * batch.discovery_weights[:, None] * rewards).sum())
        self.reward_sum += float(rewards.sum())
        self.n_predicted += len(errors)
        self.error_sum += float(errors.sum())
        self.points.append(
            CurvePoint(
                n=self.n,
                value=self.value_sum / self.n,
                logged_value=self.reward_sum / self.n,
                loss=self.loss,
                window_loss=float(errors.mean()) if len(errors) else None,
            )
        )
        if len(self.points) > _MAX_POINTS:
            # The newest stays.
            self.points = self.points[1::2] if len(self.points) % 2 == 0 else self.points[::2]

    @property
    def loss(self) -> float | None:
        return self.error_sum / self.n_predicted if self.n_predicted else None


def replay(
    batches: Iterable[ReplayedBatch],
    report: ImportReport,
    *,
    position_weights: Float64Array,
    settings: dict[str, Any],
    unsupported: Callable[[], str] = str,
) -> ReplayResult:
    """Run a replay to its end.

    Args:
        batches: the log under the replayed policy.
        report: counts what is read, while `batches` are.
        position_weights: float64 [S].
        settings: what is replayed, for the report.
        unsupported: says, at the end, why the log cannot carry the policy; empty when nothing is known.

    Raises:
        LogRefused: the log cannot be read, or nothing of it can be used.
    """
    curve, sums = _Curve(), PanelSums()
    for replayed in batches:
        if not len(replayed.batch):
            continue
        for batch in report.watch([replayed.batch]):
            sums.add(batch, position_weights=position_weights)
        curve.add(replayed, position_weights)
    evaluation = conclude(sums, report, unsupported=unsupported())
    return ReplayResult(evaluation, curve.points, curve.n_predicted, curve.loss, settings)
