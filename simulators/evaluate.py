"""Evaluate one policy of the Open Bandit data from the other's log: support first, then the panel of estimators."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np

from bandit.confidence_sequence import ConfidenceSequence
from bandit.estimators import ActionRows, Estimate, ips
from bandit.intervals import Interval, clopper_pearson, cluster_bootstrap, cluster_sums, empirical_bernstein
from bandit.support import Float64Array, Support
from simulators.datasets.fetch import Fetched
from simulators.logged.open_bandit import (
    Campaign,
    LoggingPolicy,
    read_log,
    read_prior,
    thompson_pmf,
    uniform_pmf,
)
from simulators.logged.schema import LoggedBandit
from simulators.panel import BOOTSTRAP_SEED, action_panel

# Rows at the mean click rate that are added to each action's own, so that an action shown twice is not believed.
PRIOR_ROWS = 100.0


@dataclass(frozen=True, slots=True)
class Line:
    """One estimator's line of the report.

    Attributes:
        name: Of the estimator, with its parameter.
        value: Estimated value.
        relative_ee: |value - truth| / truth with the target's own log as the truth.
        interval: By bootstrap.
        clipped_share: Share of rows whose weight the estimator cut.
    """

    name: str
    value: float
    relative_ee: float
    interval: Interval
    clipped_share: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a log says of a target policy.

    Attributes:
        logging_policy: Whose log it is.
        target_policy: Whose value is estimated.
        on_policy: Mean reward of each policy in its own log.
        truth_interval: Around the target policy's mean reward in its own log.
        support: Of the weights.
        refusal: Why there are no lines, None when there are.
        lines: The panel.
        intervals: Further intervals, by what they are around.
    """

    logging_policy: LoggingPolicy
    target_policy: LoggingPolicy
    on_policy: dict[LoggingPolicy, float]
    truth_interval: Interval
    support: Support
    refusal: str | None
    lines: tuple[Line, ...] = ()
    intervals: dict[str, Interval] = field(default_factory=dict)


def evaluate_open_bandit(files: Fetched, *, campaign: Campaign, reverse: bool) -> Evaluation:
    """Evaluate Bernoulli Thompson sampling from the uniform log, or, in reverse, uniform from the other's log."""
    logging: LoggingPolicy = "bts" if reverse else "random"
    target: LoggingPolicy = "random" if reverse else "bts"
    log = read_log(files, campaign=campaign, policy=logging)
    target_rewards = read_log(files, campaign=campaign, policy=target).rewards
    pmf = uniform_pmf(log.n_actions) if reverse else thompson_pmf(*read_prior(files, campaign=campaign))
    rows = _rows_with_model(log, pmf)
    on_policy = {logging: float(log.rewards.mean()), target: float(target_rewards.mean())}
    truth = clopper_pearson(ips(ActionRows(target_rewards, np.ones(len(target_rewards)))))
    importance = ips(rows)
    if importance.refusal is not None:
        return Evaluation(logging, target, on_policy, truth, importance.support, importance.refusal)
    # The uniform policy's floor is known; that of Thompson sampling is not, and a smallest propensity seen is no floor.
    floor = None if reverse else 1.0 / log.n_actions
    return Evaluation(
        logging,
        target,
        on_policy,
        truth,
        importance.support,
        None,
        _lines(rows, clusters=log.clusters, truth=on_policy[target]),
        _intervals(rows, importance, floor=floor),
    )


def _lines(rows: ActionRows, *, clusters: np.ndarray, truth: float) -> tuple[Line, ...]:
    panel = action_panel(rows)
    n_clusters = int(clusters.max()) + 1
    sums = [cluster_sums(estimate, clusters=clusters, n_clusters=n_clusters) for estimate in panel.values()]
    intervals = cluster_bootstrap(sums, rng=np.random.default_rng(BOOTSTRAP_SEED))
    return tuple(
        Line(
            name,
            estimate.value,
            abs(estimate.value - truth) / truth,
            interval,
            estimate.support.clipped_share,
        )
        for (name, estimate), interval in zip(panel.items(), intervals, strict=True)
    )


def _intervals(rows: ActionRows, importance: Estimate, *, floor: float | None) -> dict[str, Interval]:
    value = ConfidenceSequence().plus(weights=rows.weights, rewards=rows.rewards)
    advantage = ConfidenceSequence(of_advantage=True).plus(weights=rows.weights, rewards=rows.rewards)
    found = {"value at any look": value.interval(), "advantage over the log at any look": advantage.interval()}
    if floor is not None:
        found["value at this look"] = empirical_bernstein(importance, term_range=(0.0, 1.0 / floor))
    return found


def _rows_with_model(log: LoggedBandit, target_pmf: Float64Array) -> ActionRows:
    """Return rows with a reward model: each action's mean click rate, fitted on the other half of the rows."""
    half = np.arange(len(log.actions)) % 2
    model = np.stack([_click_rates(log, half != side) for side in (0, 1)])  # [half, action]
    target = model @ target_pmf  # [half, position]
    return ActionRows(
        log.rewards,
        log.weights(target_pmf),
        model_logged=model[half, log.actions],
        model_target=target[half, log.positions],
    )


def _click_rates(log: LoggedBandit, used: np.ndarray) -> Float64Array:
    shown = np.bincount(log.actions[used], minlength=log.n_actions)
    clicked = np.bincount(log.actions[used], weights=log.rewards[used], minlength=log.n_actions)
    mean = log.rewards[used].mean()
    rates: Float64Array = (clicked + PRIOR_ROWS * mean) / (shown + PRIOR_ROWS)
    return rates


def as_figures(evaluation: Evaluation) -> dict[str, object]:
    """Return the evaluation as JSON-ready figures."""
    return {
        "logging_policy": evaluation.logging_policy,
        "target_policy": evaluation.target_policy,
        "support": evaluation.support.figures(),
        "refusal": evaluation.refusal,
        "on_policy": evaluation.on_policy,
        "truth_interval": asdict(evaluation.truth_interval),
        "estimates": {
            line.name: {
                "value": line.value,
                "relative_ee": line.relative_ee,
                "interval": asdict(line.interval),
                "clipped_share": line.clipped_share,
            }
            for line in evaluation.lines
        },
        "intervals": {what: asdict(interval) for what, interval in evaluation.intervals.items()},
    }
