"""Evaluate a target policy from any log, in the memory of a batch: what was read, support, then the panel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from bandit.intervals import Interval
from bandit.support import Float64Array
from simulators.logged.batches import LoggedBatch
from simulators.logged.import_report import ImportReport, LogRefused
from simulators.panel import PanelLine, PanelSums


class LogSource(Protocol):
    """A log with a target policy applied to it."""

    def count_slots(self) -> int:
        """Return the most slots of a decision."""

    @property
    def unsupported(self) -> str:
        """Return why the log cannot carry the target policy, once it has been read; empty when nothing is known."""

    def batches(self, report: ImportReport, *, n_slots: int) -> Iterator[LoggedBatch]:
        """Yield what is accepted, counting the rest."""


@dataclass(frozen=True, slots=True)
class LogEvaluation:
    """What a log says of a target policy.

    Attributes:
        report: What reading found.
        n: Decisions that were used.
        logged_value: Mean reward of the logging policy.
        lines: The panel.
        bounds: Further intervals, by what they are around; of single actions.
        refusal: Why no estimate may be used, None when one may.
    """

    report: ImportReport
    n: int
    logged_value: float
    lines: tuple[PanelLine, ...]
    bounds: dict[str, Interval]
    refusal: str | None

    def figures(self) -> dict[str, Any]:
        """Return the evaluation as JSON-ready figures."""
        return {
            "import": self.report.figures(),
            "decisions": self.n,
            "logged_value": self.logged_value,
            "refusal": self.refusal,
            "estimates": {line.name: line.figures() for line in self.lines},
            "intervals": {what: asdict(interval) for what, interval in self.bounds.items()},
        }

    def text(self) -> str:
        """Return the evaluation as lines of text: what was read and the support first."""
        said = [*self.report.lines(), f"decisions {self.n:,}  mean reward in the log {self.logged_value:.6g}"]
        if self.refusal is not None:
            return "\n".join(said)
        said.append(
            f"{'estimator':<18}{'value':>12}{'95% by bootstrap':>26}{'ESS':>12}{'max w':>10}{'mean w':>9}{'clipped':>9}"
        )
        for line in self.lines:
            support = line.support
            if line.value is None:
                said.append(f"{line.name:<18}{'refused':>12}  {line.refusal}")
                continue
            bounds = "" if line.interval is None else f"{line.interval.lower:.6g} to {line.interval.upper:.6g}"
            said.append(
                f"{line.name:<18}{line.value:>12.6g}{bounds:>26}{support.ess:>12,.0f}{support.max_weight:>10,.2f}"
                f"{support.mean_weight:>9.4f}{support.clipped_share:>9.2%}"
            )
        for what, bound in self.bounds.items():
            said.append(bound_text(what, bound))
        return "\n".join(said)


def bound_text(what: str, bound: Interval) -> str:
    """Return a further interval in words."""
    return f"{what}, 95% by {bound.method}: {bound.lower:.6g} to {bound.upper:.6g} {bound.note}".rstrip()


def evaluate_log(log: LogSource, *, position_weights: Float64Array | None = None) -> LogEvaluation:
    """Read a log once and estimate the value of its target policy.

    Args:
        log: the log.
        position_weights: float64 [S], what a reward at each slot is worth; 1 where it says nothing.

    Raises:
        LogRefused: the log cannot be read, or nothing of it can be used.
    """
    given = np.ones(0) if position_weights is None else position_weights
    n_slots = log.count_slots()
    if len(given) > n_slots:
        raise LogRefused(f"position weights must be at most one for each of {n_slots} slots, got {len(given)}")
    weights = np.ones(n_slots)
    weights[: len(given)] = given
    report = ImportReport()
    # Products of a batch are small: threads would spend more time waiting for each other than they save.
    with threadpool_limits(1, "blas"):
        sums = PanelSums.of(log.batches(report, n_slots=n_slots), position_weights=weights)
    return conclude(sums, report, unsupported=log.unsupported)


def conclude(sums: PanelSums, report: ImportReport, *, unsupported: str) -> LogEvaluation:
    """Return what the sums over a log that has been read say.

    Raises:
        LogRefused: nothing of the log could be used.
    """
    if not sums.n:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in report.rejected.most_common()) or "it is empty"
        raise LogRefused(f"no row of the log can be used: {reasons}")
    if "rips" in sums.sums and "iips" not in sums.sums:
        report.note("iips is left out: its marginal probabilities are listed for short slates of few candidates only")
    for note in sums.bounds.notes():
        report.note(note)
    lines = sums.lines(refusal=unsupported or None)
    refused = [line.refusal for line in lines]
    refusal = refused[0] if all(refused) else None
    return LogEvaluation(
        report=report,
        n=sums.n,
        logged_value=sums.logged_value,
        lines=lines,
        bounds={} if refusal else sums.bounds.intervals(),
        refusal=refusal,
    )
