"""One tuning study: the log, the simulated runs, the comparison with the truth, and the verdict on all of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np

from bandit.exploration import Epsilon
from service.training_rows import JoinedDecision
from simulators.tune.candidates import Candidate
from simulators.tune.curves import AT_THE_END, MEASURES, Curves, Plan, simulate
from simulators.tune.judge import Evidence, Gain, Limits, Verdict, judge, logged_gain, paired_gain
from simulators.tune.log_values import CandidateValue, LoggedSlates, SlotKey, build_slates, value_of
from simulators.tune.sample import SampleLog, sample_decisions, true_values

Say = Callable[[str], Callable[[int, int], None]]
# What rounding may do to a line through sums of some thousand terms.
LINEAR_WITHIN = 1e-9


@dataclass(frozen=True, slots=True)
class Linearity:
    """The check that one-slot values of epsilon-greedy lie on a line in the rate, as they must.

    Attributes:
        greedy: Value of a slot at rate 0 on that line.
        explore: Value at rate 1.
        residual: Largest distance of a value from the line, in units of the reward.
        n: Rates on it.
    """

    greedy: float
    explore: float
    residual: float
    n: int

    @property
    def holds(self) -> bool:
        """Return whether all are on it."""
        return self.residual <= LINEAR_WITHIN


@dataclass(frozen=True, slots=True)
class LogPart:
    """What one log says.

    Attributes:
        source: Where it comes from, for the reader.
        n: Decisions.
        n_slots: Drawn slots.
        n_other: Decisions of another policy than the last one's.
        logged_value: Mean reward of a slot.
        logged_skips: Mean skips of a slot.
        values: By candidate.
        linearity: None with fewer than three rates.
    """

    source: str
    n: int
    n_slots: int
    n_other: int
    logged_value: float
    logged_skips: float
    values: Mapping[Candidate, CandidateValue]
    linearity: Linearity | None


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that the report shows; the first candidate is the incumbent.

    Attributes:
        surface: Whose exploration.
        candidates: All that was tried.
        log: What the log says.
        sample: What the simulated log says; the same as `log` when that is the simulated one.
        truth: True mean reward of a slot by candidate, on the simulated log's visits.
        curves: The simulated runs.
        plan: How they were made.
        evidence: What the verdict rests on.
        limits: What it goes by.
        verdict: It.
    """

    surface: str
    candidates: Sequence[Candidate]
    log: LogPart
    sample: LogPart
    truth: Mapping[Candidate, float]
    curves: Curves
    plan: Plan
    evidence: Sequence[Evidence]
    limits: Limits
    verdict: Verdict

    def relative_errors(self, candidate: Candidate) -> dict[str, float]:
        """Return |estimate - truth| / truth by estimator, of those that were not refused, on the simulated log."""
        truth, found = self.truth[candidate], self.sample.values[candidate]
        values = {line.name: line.value for line in found.panel}
        if found.one_slot_refusal is not None:
            values.pop("one_slot", None)
        return {name: abs(value - truth) / truth for name, value in values.items() if value is not None}

    def figures(self) -> dict[str, Any]:
        """Return the study as JSON-ready figures."""
        return {
            "verdict": {
                "word": self.verdict.word,
                "sentence": self.verdict.sentence,
                "reason": self.verdict.reason,
                "recommended": _described(self.verdict.recommended),
                "more_decisions": self.verdict.more_decisions,
                "more_seeds": self.verdict.more_seeds,
                "front": [one.name for one in self.verdict.front],
            },
            "surface": self.surface,
            "limits": asdict(self.limits),
            "log": _log_figures(self.log),
            "simulation": {
                "world": repr(self.plan.world),
                "n_decisions": self.plan.n_decisions,
                "seeds": list(self.plan.seeds),
                "search": self.plan.search,
            },
            "candidates": {one.name: self._candidate(one) for one in self.candidates},
        }

    def _candidate(self, one: Candidate) -> dict[str, Any]:
        evidence = next(found for found in self.evidence if found.candidate == one)
        runs = self.curves.runs.get(one, {})
        measures = {name: self.curves.measure(one, name) for name in (*MEASURES, *AT_THE_END)} if runs else {}
        return {
            **_described(one),
            "log": _value_figures(self.log.values[one]),
            "long_run_gain": None if evidence.long_run is None else asdict(evidence.long_run),
            "price": None if evidence.price is None else asdict(evidence.price),
            "n_runs": len(runs),
            "runs": {name: _finite_mean(found) for name, found in measures.items()},
            "truth": self.truth.get(one),
            "relative_ee": self.relative_errors(one) if one in self.truth else {},
        }


def study(
    candidates: Sequence[Candidate],
    *,
    surface: str,
    sample: SampleLog,
    plan: Plan,
    limits: Limits,
    pool: Executor,
    say: Say,
    log: tuple[str, Sequence[JoinedDecision], set[SlotKey]] | None = None,
    rewards_in: tuple[float, float] = (0.0, 1.0),
) -> Study:
    """Do all of it.

    Args:
        candidates: The incumbent first.
        surface: Whose exploration, for the report.
        sample: The simulated log.
        plan: Of the simulated runs.
        limits: What the verdict goes by.
        pool: Runs simulations.
        say: Called with what begins; returns what to call with (done, in all).
        log: Of the service: its name, decisions and skipped slots; None takes the simulated one.
        rewards_in: Range of the reward of a slot of that log.

    Raises:
        ValueError: the log is empty or cannot be replayed.
    """
    confidence = limits.shared(len(candidates) - 1)
    slates = build_slates(*sample_decisions(sample), candidates, progress=say("Walking the simulated log"))
    name = f"simulated, seed {sample.sample.seed}"
    of_sample = log_part(slates, candidates, source=name, rewards_in=(0.0, 1.0), confidence=confidence)
    of_log = of_sample
    if log is not None:
        source, decisions, skips = log
        slates = build_slates(decisions, skips, candidates, progress=say("Walking the log"))
        of_log = log_part(slates, candidates, source=source, rewards_in=rewards_in, confidence=confidence)
    truth = true_values(sample, candidates, pool=pool, progress=say("True values of the simulated log"))
    curves = simulate(candidates, plan, pool=pool, progress=say("Simulating"))
    evidence = gather(candidates, of_log, curves, limits)
    return Study(
        surface=surface,
        candidates=candidates,
        log=of_log,
        sample=of_sample,
        truth=truth,
        curves=curves,
        plan=plan,
        evidence=evidence,
        limits=limits,
        verdict=judge(evidence, limits),
    )


def log_part(
    slates: LoggedSlates,
    candidates: Sequence[Candidate],
    *,
    source: str,
    rewards_in: tuple[float, float],
    confidence: float,
) -> LogPart:
    """Return what a walked log says of the candidates."""
    values = {one: value_of(slates, one, rewards_in=rewards_in, confidence=confidence) for one in candidates}
    n_drawn = int(slates.is_drawn.sum())
    return LogPart(
        source=source,
        n=len(slates),
        n_slots=n_drawn,
        n_other=slates.n_other,
        logged_value=float(slates.rewards.sum()) / n_drawn,
        logged_skips=float(slates.skips.sum()) / n_drawn,
        values=values,
        linearity=linearity_of({one: found.one_slot[0] for one, found in values.items()}),
    )


def linearity_of(one_slot: Mapping[Candidate, float]) -> Linearity | None:
    """Return how well one-slot values lie on a line in the rate: those of the incumbent's own epsilon-greedy."""
    first = next(iter(one_slot))
    family = {
        one: value
        for one, value in one_slot.items()
        if isinstance(one.exploration, Epsilon) and _but_rate(one) == _but_rate(first)
    }
    if len(family) < 3:
        return None
    rates = np.array([one.rate for one in family], dtype=np.float64)
    values = np.array(list(family.values()))
    low, high = int(rates.argmin()), int(rates.argmax())
    slope = (values[high] - values[low]) / (rates[high] - rates[low])
    at_0 = values[low] - slope * rates[low]
    residual = float(np.abs(values - at_0 - slope * rates).max())
    return Linearity(float(at_0), float(at_0 + slope), residual, len(family))


def gather(candidates: Sequence[Candidate], log: LogPart, curves: Curves, limits: Limits) -> list[Evidence]:
    """Return what is known of every candidate."""
    confidence = limits.shared(len(candidates) - 1)
    finished = set(curves.finished)
    base = curves.measure(candidates[0], "value")
    found = []
    for one in candidates:
        value = log.values[one]
        price = logged_gain(value.estimate, value.advantage, logged_value=log.logged_value, n=log.n)
        if one == candidates[0] and not log.n_other:
            # The log is its own; bounds on what is 0 by definition would only confuse.
            price = Gain(0.0, 0.0, 0.0, log.n)
        has_runs = one in curves.runs
        found.append(
            Evidence(
                candidate=one,
                long_run=paired_gain(curves.measure(one, "value"), base, confidence=confidence)
                if one in finished
                else None,
                price=price,
                refusal=value.one_slot_refusal,
                discovery=_mean(curves, one, "new_good_share") if has_runs else math.nan,
                coverage=_mean(curves, one, "coverage") if has_runs else math.nan,
                skip_rate=_mean(curves, one, "skip_rate") if has_runs else math.nan,
            )
        )
    return found


def _but_rate(candidate: Candidate) -> tuple[Any, float]:
    tree = msgspec.to_builtins(candidate.exploration)
    tree.pop("rate", None)
    return tree, candidate.discovery_share


def _mean(curves: Curves, candidate: Candidate, name: str) -> float:
    found = _finite_mean(curves.measure(candidate, name))
    return math.nan if found is None else found


def _finite_mean(figures: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    known = figures[~np.isnan(figures)]
    return float(known.mean()) if len(known) else None


def _described(one: Candidate) -> dict[str, Any]:
    described = {"exploration": msgspec.to_builtins(one.exploration), "discovery_share": one.discovery_share}
    return {**described, "explorer": one.explorer} if one.explorer else described


def _log_figures(log: LogPart) -> dict[str, Any]:
    return {
        "source": log.source,
        "n_decisions": log.n,
        "n_slots": log.n_slots,
        "n_other_policy": log.n_other,
        "logged_value": log.logged_value,
        "logged_skip_rate": log.logged_skips,
        "linearity": None if log.linearity is None else asdict(log.linearity),
    }


def _value_figures(found: CandidateValue) -> dict[str, Any]:
    return {
        "support": {**found.support.figures(), "refusal": found.refusal},
        "one_slot_support": {**found.one_slot_support.figures(), "refusal": found.one_slot_refusal},
        "panel": {line.name: line.figures() for line in found.panel},
        "disagreement": found.disagreement,
        "skip_rate": None if found.skip_rate is None else found.skip_rate[0],
        "by_clip": {
            "none" if math.isinf(clip) else f"{clip:g}": {"value": value, "clipped_share": share}
            for clip, (value, share) in found.by_clip.items()
        },
        "one_slot": {"value": found.one_slot[0], "interval": found.one_slot[1] and asdict(found.one_slot[1])},
        "advantage": asdict(found.advantage),
    }
