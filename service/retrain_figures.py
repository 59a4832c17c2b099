"""What held-out slots say of a model: off-policy values with intervals, and the advantage over the logging policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bandit.confidence_sequence import ConfidenceSequence
from bandit.estimators import ActionRows, Estimate, doubly_robust, ips, snips
from bandit.intervals import Interval, cluster_bootstrap, cluster_sums
from service.config import SurfaceConfig
from service.model_registry import Score
from service.retrain_scoring import ScoredSlots

ADVANTAGE = "advantage"
RANKED_BY = "dr"


def reward_range(surfaces: Iterable[SurfaceConfig]) -> tuple[float, float]:
    """Return the lowest and highest reward that surfaces declare for one slot, at least [0, 1]."""
    low, high = 0.0, 1.0
    for surface in surfaces:
        worths = surface.reward.events.values()
        ends = [end for w in worths for end in ((w.low, w.high) if w.per_unit else (w.reward(0.0),) * 2)]
        low, high = min([low, surface.reward.default, *ends]), max([high, surface.reward.default, *ends])
    return low, high


def advantage(scored: ScoredSlots, *, rewards_in: tuple[float, float], confidence: float) -> ConfidenceSequence:
    """Return bounds on one-slot value minus that of the logging policy; summed rewards outside the range are cut.

    A decision counts once, with the mean over its slots.

    Args:
        scored: slots in the order of the log.
        rewards_in: range of rewards.
        confidence: of both bounds.
    """
    sequence = ConfidenceSequence(of_advantage=True, reward_range=rewards_in, confidence=confidence)
    rewards = np.clip(scored.reward, *rewards_in)
    return sequence.plus(weights=scored.weight, rewards=rewards, units=scored.decision)


def mean_advantage(scored: ScoredSlots) -> float:
    """Return the estimate that `advantage` bounds: the mean over decisions of the mean over their slots."""
    _, of_decision = np.unique(scored.decision, return_inverse=True)
    sums = np.bincount(of_decision, weights=(scored.weight - 1.0) * scored.reward)
    return float((sums / np.bincount(of_decision)).mean())


def figures_of(scored: ScoredSlots, *, rewards_in: tuple[float, float], confidence: float) -> dict[str, Score]:
    """Return the one-slot value by several estimators, that of the log, and the advantage; empty without slots.

    Intervals of values are cluster bootstraps by user, for reading; that of the advantage is a confidence sequence.
    """
    if not len(scored.reward):
        return {}
    rows = ActionRows(scored.reward, scored.weight, scored.predicted, scored.expected)
    logged = ActionRows(scored.reward, np.ones(len(scored.reward)))
    estimates = {"logged": ips(logged), "ips": ips(rows), "snips": snips(rows), "dr": doubly_robust(rows)}
    figures = _with_intervals(estimates, scored, confidence)
    interval = advantage(scored, rewards_in=rewards_in, confidence=confidence).interval()
    figures[ADVANTAGE] = Score(value=mean_advantage(scored), low=interval.lower, high=interval.upper)
    figures["ess"] = Score(value=estimates["ips"].support.ess)
    figures["max_weight"] = Score(value=estimates["ips"].support.max_weight)
    figures["mean_weight"] = Score(value=estimates["ips"].support.mean_weight)
    return figures


def _with_intervals(estimates: Mapping[str, Estimate], scored: ScoredSlots, confidence: float) -> dict[str, Score]:
    names, of_decision = np.unique(np.asarray(scored.clusters, dtype=np.str_), return_inverse=True)
    clusters = of_decision[scored.decision].astype(np.int64)
    intervals: Sequence[Interval | None] = [None] * len(estimates)
    if len(names) > 1:
        panel = [cluster_sums(e, clusters=clusters, n_clusters=len(names)) for e in estimates.values()]
        intervals = cluster_bootstrap(panel, rng=np.random.default_rng(0), confidence=confidence)
    return {
        name: Score(
            value=_finite(estimate.value),
            low=_finite(interval.lower) if interval else None,
            high=_finite(interval.upper) if interval else None,
            refusal=estimate.refusal or "",
        )
        for (name, estimate), interval in zip(estimates.items(), intervals, strict=True)
    }


def _finite(value: float) -> float | None:
    """Return a number, None for a ratio without any weight: JSON has no NaN."""
    return value if np.isfinite(value) else None
