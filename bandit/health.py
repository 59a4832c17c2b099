"""Judge the health of the loop from counted intervals: collapse, blindness, drift. Pure: one look is one function call.

The newest `window` intervals are compared with the `reference` intervals before them. Nothing is remembered from one
look to the next, so a watch that starts again judges as one that never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from bandit.health_intervals import VARIETY_SAMPLE, Interval, add_counts
from bandit.health_statistics import (
    FALSE_ALARM,
    MIN_REFERENCE,
    Chart,
    Moments,
    blame,
    build_chart,
    drift,
    gini,
    normalised_entropy,
)

Level = Literal["warning", "alarm"]

# An entropy is read off no fewer greedy slots.
_MIN_DIVERSITY_SLOTS = 1_000
# Without a reward rate to go by, silence needs so many decisions.
_MIN_SILENT_DECISIONS = 100
# Weights that grow beyond so many times their usual norm are running away.
_WEIGHT_GROWTH = 3.0

_BRANCHES: dict[str, Callable[[Interval], Moments]] = {
    "greedy": lambda interval: interval.greedy,
    "explore": lambda interval: interval.explore,
    "control": lambda interval: interval.control,
}


class HealthConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the health watch looks at and how long it looks.

    Attributes:
        genre: Item feature whose values are the genres that recommendations must not collapse on; empty watches none.
        drift: Context and user features whose distribution is watched; categories or buckets, none of the hour.
        feedback: Event types of explicit feedback: a rise of one that is worth less than 0 and a fall of another warn.
        interval_s: Shortest interval that is counted as one, in seconds.
        min_slots: An interval lasts until it has so many slots whose outcome is known.
        window: Newest intervals that are judged.
        reference: Intervals before the window that it is compared with; a day at one a minute.
        entropy_floor: Alarm when the normalised genre entropy of greedy slots is below this, in [0, 1].
        entropy_drop: Alarm when it is below the reference's by more than this share.
        psi: Population stability index from which a feature has drifted.
        silence_s: Alarm when decisions flow for so long and no reward event comes, in seconds.
        learner_lag_s: Alarm when a learner is behind the journal, by more than `checkpoint_s`, for so long, in seconds.
        archiver_lag_s: Alarm when the archiver is behind the journal for so long, beyond `flush_s`, in seconds.
    """

    genre: str = ""
    drift: list[str] = []
    feedback: list[str] = msgspec.field(default_factory=lambda: ["like", "dislike", "skip"])
    interval_s: float = 60.0
    min_slots: int = 200
    window: int = 30
    reference: int = 1_440
    entropy_floor: float = 0.5
    entropy_drop: float = 0.2
    psi: float = 0.25
    silence_s: float = 600.0
    learner_lag_s: float = 60.0
    archiver_lag_s: float = 120.0

    def __post_init__(self) -> None:
        """Refuse what cannot be counted or compared.

        Raises:
            ValueError: a number is out of its range; the message names it.
        """
        for name in ("interval_s", "silence_s", "learner_lag_s", "archiver_lag_s", "psi"):
            if not 0.0 < getattr(self, name) <= 1e9:
                raise ValueError(f"health {name} must be positive, got {getattr(self, name)}")
        for name in ("entropy_floor", "entropy_drop"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"health {name} must be in [0, 1], got {getattr(self, name)}")
        for name, lowest in (("min_slots", 1), ("window", 1), ("reference", MIN_REFERENCE)):
            if getattr(self, name) < lowest:
                raise ValueError(f"health {name} must be at least {lowest}, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        name: What, with the part after a colon.
        level: An alarm harms users or blinds the loop; a warning wants to be looked at.
        value: What was seen.
        limit: What it crossed.
        reason: In words.
    """

    name: str
    level: Level
    value: float
    limit: float
    reason: str


@dataclass(slots=True)
class Judgement:
    """One look.

    Attributes:
        values: What was measured, by name.
        findings: What is not as it should be.
    """

    values: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(self, name: str, *, level: Level, value: float, limit: float, reason: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(name, level, value, limit, reason))


def judge(
    config: HealthConfig,
    intervals: Sequence[Interval],
    *,
    open_intervals: Sequence[Interval],
    now_ms: int,
    n_genres: int,
    is_harmful: Callable[[str], bool],
) -> Judgement:
    """Return what one look sees.

    Args:
        config: limits.
        intervals: closed ones, oldest first.
        open_intervals: those that are not closed yet, oldest first; silence reads them too.
        now_ms: journal time.
        n_genres: different genres of the catalogue.
        is_harmful: whether an event type of explicit feedback is worth less than 0.
    """
    recent = intervals[-config.window :]
    reference = intervals[-(config.window + config.reference) : -config.window]
    judgement = Judgement()
    _judge_rewards(judgement, reference, recent)
    _judge_sessions(judgement, reference, recent)
    _judge_feedback(judgement, config, reference, recent, is_harmful)
    _judge_genres(judgement, config, reference, recent, n_genres)
    _judge_items(judgement, reference, recent)
    _judge_drift(judgement, config, reference, recent)
    _judge_silence(judgement, config, [*intervals, *open_intervals], reference, now_ms)
    _judge_weights(judgement, reference, recent)
    return judgement


def _judge_rewards(judgement: Judgement, reference: Sequence[Interval], recent: Sequence[Interval]) -> None:
    for name, branch in _BRANCHES.items():
        _show(judgement, f"reward_{name}", _sum(branch(i) for i in recent))
    charts = {name: build_chart(list(map(b, reference)), list(map(b, recent))) for name, b in _BRANCHES.items()}
    for name, chart in charts.items():
        _show_chart(judgement, f"reward_{name}", chart)
    greedy, control = charts["greedy"], charts["control"]
    if greedy is None or greedy.value >= greedy.lower:
        return
    name, reason = (
        "reward_fall",
        "too few slots are drawn uniformly to say whether the model or the traffic is the cause",
    )
    cause = blame(greedy, control)
    if control is not None and cause != "unclear":
        went = f"that of uniform draws, the control, went from {control.center:.4g} to {control.value:.4g}"
        fault = "the model is at fault" if cause == "model" else "the traffic changed"
        name = "reward_model_fault" if cause == "model" else "reward_traffic_change"
        reason = f"{fault}: {went}"
    reason += f"; that of greedy slots fell from {greedy.center:.4g} to {greedy.value:.4g}"
    judgement.add(name, level="alarm", value=greedy.value, limit=greedy.lower, reason=reason)


def _judge_sessions(judgement: Judgement, reference: Sequence[Interval], recent: Sequence[Interval]) -> None:
    _show(judgement, "session_length", _sum(i.sessions for i in recent))
    chart = build_chart([i.sessions for i in reference], [i.sessions for i in recent])
    _show_chart(judgement, "session_length", chart)
    if chart is not None and chart.value < chart.lower:
        reason = f"sessions shortened from {chart.center:.4g} to {chart.value:.4g} slates"
        judgement.add("session_length", level="alarm", value=chart.value, limit=chart.lower, reason=reason)


def _judge_feedback(
    judgement: Judgement,
    config: HealthConfig,
    reference: Sequence[Interval],
    recent: Sequence[Interval],
    is_harmful: Callable[[str], bool],
) -> None:
    for event_type in config.feedback:
        name = f"feedback:{event_type}"
        _show(judgement, name, _sum(_feedback(i, event_type) for i in recent))
        chart = build_chart([_feedback(i, event_type) for i in reference], [_feedback(i, event_type) for i in recent])
        _show_chart(judgement, name, chart)
        if chart is None:
            continue
        went = f"{event_type} events a decision went from {chart.center:.4g} to {chart.value:.4g}"
        if is_harmful(event_type) and chart.value > chart.upper:
            judgement.add(name, level="warning", value=chart.value, limit=chart.upper, reason=went)
        elif not is_harmful(event_type) and chart.value < chart.lower:
            judgement.add(name, level="warning", value=chart.value, limit=chart.lower, reason=went)


def _feedback(interval: Interval, event_type: str) -> Moments:
    """Return events a decision; counts of rare events, whose square is themselves."""
    count = float(interval.feedback.get(event_type, 0))
    return Moments(n=float(interval.n_decisions), total=count, squares=count)


def _judge_genres(
    judgement: Judgement,
    config: HealthConfig,
    reference: Sequence[Interval],
    recent: Sequence[Interval],
    n_genres: int,
) -> None:
    counts, before = _genres(recent), _genres(reference)
    if sum(counts.values()) < _MIN_DIVERSITY_SLOTS:
        return
    entropy = judgement.values["genre_entropy"] = normalised_entropy(counts.values(), n_values=n_genres)
    limit, than = config.entropy_floor, "the floor"
    kept = 1.0 - config.entropy_drop
    if len(reference) >= MIN_REFERENCE and sum(before.values()) >= _MIN_DIVERSITY_SLOTS:
        usual = normalised_entropy(before.values(), n_values=n_genres)
        if usual * kept > limit:
            limit, than = usual * kept, f"{kept:.0%} of the usual {usual:.3f}"
    judgement.values["genre_entropy_limit"] = limit
    if entropy < limit:
        genre, count = max(counts.items(), key=lambda pair: (pair[1], pair[0]))
        share = count / sum(counts.values())
        reason = f"greedy slots collapse on few genres: {share:.0%} show {genre}; H/ln G is below {than}"
        judgement.add("genre_collapse", level="alarm", value=entropy, limit=limit, reason=reason)


def _genres(intervals: Sequence[Interval]) -> dict[str, float]:
    counts: dict[str, float] = {}
    for interval in intervals:
        add_counts(counts, interval.genres)
    return counts


def _judge_items(judgement: Judgement, reference: Sequence[Interval], recent: Sequence[Interval]) -> None:
    impressions: dict[str, float] = {}
    for interval in recent:
        add_counts(impressions, interval.items)
    judgement.values["items_shown"] = float(len(impressions))
    judgement.values["items_gini"] = gini(impressions.values())
    _show(judgement, "item_variety", _sum(i.variety for i in recent))
    chart = build_chart([i.variety for i in reference], [i.variety for i in recent])
    _show_chart(judgement, "item_variety", chart)
    if chart is not None and chart.value < chart.lower:
        reason = (
            f"{VARIETY_SAMPLE} greedy slots show {chart.value:.3g} different items, "
            f"{chart.center:.3g} were usual: impressions concentrate"
        )
        judgement.add("item_variety", level="warning", value=chart.value, limit=chart.lower, reason=reason)


def _judge_drift(
    judgement: Judgement, config: HealthConfig, reference: Sequence[Interval], recent: Sequence[Interval]
) -> None:
    if len(reference) < MIN_REFERENCE:
        return
    for feature in config.drift:
        before, now = _bins(reference, feature), _bins(recent, feature)
        moved = drift(before, now)
        if moved is None:
            continue
        name = f"feature_drift:{feature}"
        limit = max(config.psi, moved.noise)
        judgement.values[name] = moved.psi
        judgement.values[f"{name}_limit"] = limit
        if moved.psi > limit:
            n_before, n_now = sum(before.values()), sum(now.values())
            change = {v: now.get(v, 0) / n_now - before.get(v, 0) / n_before for v in {*before, *now}}
            value = max(change, key=lambda v: (abs(change[v]), v))
            reason = (
                f"{feature} is not what it was: {value} went from {before.get(value, 0) / n_before:.1%} "
                f"to {now.get(value, 0) / n_now:.1%} of the visits"
            )
            judgement.add(name, level="warning", value=moved.psi, limit=limit, reason=reason)


def _bins(intervals: Sequence[Interval], feature: str) -> dict[str, float]:
    counts: dict[str, float] = {}
    for interval in intervals:
        add_counts(counts, interval.bins.get(feature, {}))
    return counts


def _judge_silence(
    judgement: Judgement,
    config: HealthConfig,
    everything: Sequence[Interval],
    reference: Sequence[Interval],
    now_ms: int,
) -> None:
    """Alarm when no reward event came for long, and so many decisions that it cannot be chance."""
    n_silent, silent_since_ms = 0, now_ms
    for interval in reversed(everything):
        if interval.last_reward_ms:
            break
        n_silent += interval.n_decisions
        silent_since_ms = interval.from_ms
    silence_s = max(0.0, (now_ms - silent_since_ms) / 1000)
    judgement.values["reward_silence_s"] = silence_s
    rate = sum(i.n_rewards for i in reference) / max(1, sum(i.n_decisions for i in reference))
    # P(no event in n decisions) = exp(-rate n).
    needed = -math.log(FALSE_ALARM) / rate if rate else _MIN_SILENT_DECISIONS
    if silence_s >= config.silence_s and n_silent >= needed:
        reason = f"no reward event for {silence_s:.0f} s and {n_silent} decisions: nothing can be learned"
        judgement.add("reward_silence", level="alarm", value=silence_s, limit=config.silence_s, reason=reason)


def _judge_weights(judgement: Judgement, reference: Sequence[Interval], recent: Sequence[Interval]) -> None:
    for model, norm in (recent[-1].weight_norms if recent else {}).items():
        name = f"weight_norm:{model}"
        judgement.values[name] = norm
        before = sorted(i.weight_norms[model] for i in reference if model in i.weight_norms)
        if not math.isfinite(norm):
            reason = f"weights of {model} are not finite"
            judgement.add(name, level="alarm", value=norm, limit=0.0, reason=reason)
        elif len(before) >= MIN_REFERENCE and norm > _WEIGHT_GROWTH * before[len(before) // 2] > 0.0:
            limit = _WEIGHT_GROWTH * before[len(before) // 2]
            reason = f"weights of {model} grew beyond {_WEIGHT_GROWTH:g} times their usual norm"
            judgement.add(name, level="warning", value=norm, limit=limit, reason=reason)


def _sum(moments: Iterator[Moments]) -> Moments:
    total = Moments()
    for one in moments:
        total.merge(one)
    return total


def _show(judgement: Judgement, name: str, moments: Moments) -> None:
    if moments.n:
        judgement.values[name] = moments.total / moments.n


def _show_chart(judgement: Judgement, name: str, chart: Chart | None) -> None:
    if chart is not None:
        judgement.values[f"{name}_ewma"] = chart.value
        judgement.values[f"{name}_usual"] = chart.center
