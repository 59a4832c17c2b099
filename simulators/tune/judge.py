"""From figures to a verdict: is something that was tried better than what is set now, and what should be set. Pure.

Two questions, each with its own evidence. What exploring more costs today is read off the log: the advantage of a
candidate in one slot, with bounds that hold at every look. What it brings in the long run is read off the simulated
runs, paired by seed. All bounds of one question hold together: the error is shared by all that was tried, so that the
best of many is not the one that luck helped most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import t as student_t

from bandit.intervals import Interval
from bandit.support import Float64Array
from simulators.tune.candidates import Candidate

Word = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the verdict goes by.

    Attributes:
        budget: Largest share of today's reward that may be given up, on the log.
        tolerance: Candidates whose long-run reward is within this share of the best count as equal.
        confidence: With which all bounds of one question hold together.
    """

    budget: float = 0.05
    tolerance: float = 0.01
    confidence: float = 0.95

    def shared(self, n_tried: int) -> float:
        """Return at which confidence each of n bounds must hold."""
        return 1.0 - (1.0 - self.confidence) / max(1, n_tried)


@dataclass(frozen=True, slots=True)
class Gain:
    """A difference to the incumbent, relative to the incumbent's reward.

    Attributes:
        value: Estimate.
        low: Lower bound.
        high: Upper bound.
        n: Decisions, or seeds, that it rests on.
    """

    value: float
    low: float
    high: float
    n: int

    def needed(self, *, goal: float, least: float = 0.0) -> float:
        """Return about how many n it takes until the bound on the side of the goal passes it; infinite when never.

        The width of a bound shrinks as one over the root of n; the estimate is taken as the truth, but for one that is
        nearer to the goal than `least`: so small a difference nobody wants to see.
        """
        distance = max(abs(self.value - goal), least)
        width = self.high - self.value if self.value < goal else self.value - self.low
        if distance == 0.0 or not math.isfinite(width):
            return math.inf
        return self.n * max(1.0, (width / distance) ** 2)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one candidate.

    Attributes:
        candidate: It.
        long_run: Gain in simulated reward over the whole run, None for one that was not run on every seed.
        price: Gain on the log, today; None without a log.
        refusal: Why the log says nothing of it; None when it does.
        discovery: Mean share of slots with a hit that is new; NaN in worlds without new items.
        coverage: Mean share of the catalogue that was shown.
        skip_rate: Mean skips of a slot.
    """

    candidate: Candidate
    long_run: Gain | None
    price: Gain | None
    refusal: str | None
    discovery: float
    coverage: float
    skip_rate: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer.

    Attributes:
        word: About the challenger, against the incumbent.
        sentence: The first line of the report.
        recommended: What to set: the challenger when it is better, else the incumbent.
        challenger: The best of what else was tried; None when nothing else can be judged.
        reason: Why, in a few sentences.
        front: Candidates that nothing beats on reward, skips, discovery and coverage at once.
        more_decisions: Logged decisions that would settle it, None when they would not.
        more_seeds: The same of simulated runs.
    """

    word: Word
    sentence: str
    recommended: Candidate
    challenger: Candidate | None
    reason: str
    front: Sequence[Candidate]
    more_decisions: int | None = None
    more_seeds: int | None = None


def paired_gain(tried: Float64Array, incumbent: Float64Array, *, confidence: float) -> Gain:
    """Return the relative gain of runs over the incumbent's on the same seeds, by a t interval on the differences.

    Args:
        tried: float64 [seeds], mean reward of a run.
        incumbent: float64 [seeds].
        confidence: Of the two bounds together.
    """
    n, base = len(tried), float(incumbent.mean())
    differences = (tried - incumbent) / base
    value = float(differences.mean())
    if n < 2:
        return Gain(value, -math.inf, math.inf, n)
    margin = float(student_t.ppf((1.0 + confidence) / 2.0, n - 1)) * float(differences.std(ddof=1)) / math.sqrt(n)
    return Gain(value, value - margin, value + margin, n)


def logged_gain(estimate: float, bounds: Interval, *, logged_value: float, n: int) -> Gain:
    """Return an advantage on the log relative to the log's own reward."""
    if logged_value <= 0.0:
        return Gain(0.0, -math.inf, math.inf, n)
    return Gain(estimate / logged_value, bounds.lower / logged_value, bounds.upper / logged_value, n)


def pareto_front(points: Mapping[Candidate, Sequence[float]]) -> list[Candidate]:
    """Return the candidates that no other one beats: at least as good in every figure and better in one.

    Args:
        points: Figures by candidate, more is better; one that is NaN for all does not count.
    """
    names = list(points)
    table = np.array([list(points[name]) for name in names])
    table = np.where(np.isnan(table), -np.inf, table)
    front = []
    for row, name in enumerate(names):
        no_worse = (table >= table[row]).all(axis=1)
        better = (table > table[row]).any(axis=1)
        if not (no_worse & better).any():
            front.append(name)
    return front


def judge(evidence: Sequence[Evidence], limits: Limits) -> Verdict:
    """Judge what was tried; the first is the incumbent.

    The challenger is the one with the most discovery, then coverage, among those whose long-run reward is within the
    tolerance of the best and whose price on the log is not shown to be over the budget. It is better when its long-run
    gain is above 0 for sure and its price within the budget for sure; worse when one of them is for sure the other way.
    """
    incumbent, *others = evidence
    front = _front(evidence)
    judged = [one for one in others if one.long_run is not None and one.refusal is None and not _too_dear(one, limits)]
    if not judged:
        return _nothing_to_judge(incumbent, others, front, limits)
    challenger = _challenger(judged, limits)
    word = _word(challenger, limits)
    if word != "better":
        # What is shown to be better goes before what merely looks better.
        shown = [one for one in judged if _word(one, limits) == "better"]
        if shown:
            challenger, word = _challenger(shown, limits), "better"
    recommended = challenger if word == "better" else incumbent
    decisions, seeds = _needed(challenger, limits) if word == "cannot tell" else (None, None)
    return Verdict(
        word=word,
        sentence=_sentence(word, challenger, incumbent, decisions, seeds),
        recommended=recommended.candidate,
        challenger=challenger.candidate,
        reason=_reason(word, challenger, incumbent, limits),
        front=front,
        more_decisions=decisions,
        more_seeds=seeds,
    )


def _front(evidence: Sequence[Evidence]) -> list[Candidate]:
    return pareto_front(
        {
            one.candidate: (one.long_run.value, -one.skip_rate, one.discovery, one.coverage)
            for one in evidence
            if one.long_run is not None
        }
    )


def _too_dear(one: Evidence, limits: Limits) -> bool:
    return one.price is not None and one.price.high < -limits.budget


def _challenger(judged: Sequence[Evidence], limits: Limits) -> Evidence:
    """Return the one with the most discovery, then coverage, of those as good as the best in the long run."""

    def reward(one: Evidence) -> float:
        assert one.long_run is not None
        return one.long_run.value

    best = max(map(reward, judged))
    equals = [one for one in judged if reward(one) >= best - limits.tolerance]
    return max(equals, key=lambda one: (_known(one.discovery), _known(one.coverage), reward(one)))


def _known(figure: float) -> float:
    return -math.inf if math.isnan(figure) else figure


def _word(one: Evidence, limits: Limits) -> Word:
    assert one.long_run is not None
    if one.long_run.high < 0.0 or _too_dear(one, limits):
        return "worse"
    is_within_budget = one.price is None or one.price.low > -limits.budget
    return "better" if one.long_run.low > 0.0 and is_within_budget else "cannot tell"


def _needed(one: Evidence, limits: Limits) -> tuple[int | None, int | None]:
    """Return the logged decisions and simulated runs in all that would settle what is not settled."""
    assert one.long_run is not None
    decisions = seeds = None
    if one.price is not None and one.price.low <= -limits.budget:
        decisions = _whole(one.price.needed(goal=-limits.budget), one.price.n)
    if one.long_run.low <= 0.0 <= one.long_run.high:
        seeds = _whole(one.long_run.needed(goal=0.0, least=limits.tolerance), one.long_run.n)
    return decisions, seeds


def _whole(n: float, have: int) -> int | None:
    """Return how many more, to two leading digits; None when no number would do."""
    if not math.isfinite(n) or n > 1e9:
        return None
    more = max(1.0, n - have)
    unit = 10.0 ** max(0, math.floor(math.log10(more)) - 1)
    return int(math.ceil(more / unit) * unit)


def _nothing_to_judge(
    incumbent: Evidence, others: Sequence[Evidence], front: Sequence[Candidate], limits: Limits
) -> Verdict:
    name = incumbent.candidate.name
    dear = [one for one in others if _too_dear(one, limits)]
    refused = [one for one in others if one.refusal is not None]
    if others and len(dear) == len(others):
        sentence = f"Worse: all that was tried gives up more than {limits.budget:.0%} of the reward of {name} today."
        return Verdict("worse", sentence, incumbent.candidate, None, "Keep what is set.", front)
    why = f" ({refused[0].candidate.name}: {refused[0].refusal})" if refused else ""
    sentence = f"Cannot tell: the log supports nothing that was tried beside {name}{why}."
    return Verdict("cannot tell", sentence, incumbent.candidate, None, "Log at a higher rate first.", front)


def _sentence(word: Word, challenger: Evidence, incumbent: Evidence, decisions: int | None, seeds: int | None) -> str:
    name, now = challenger.candidate.name, incumbent.candidate.name
    assert challenger.long_run is not None
    gain = challenger.long_run
    bounds = f"{gain.value:+.1%} [{gain.low:+.1%}, {gain.high:+.1%}]"
    if word == "better":
        return f"Better: {name} earns more than {now} in the long run, {bounds}."
    if word == "worse":
        return f"Worse: {name}, the best of what was tried, earns less than {now} in the long run, {bounds}."
    needs = [f"{decisions:,} more logged decisions"] if decisions is not None else []
    needs += [f"{seeds:,} more simulated runs"] if seeds is not None else []
    takes = f"it would take about {' and '.join(needs)}" if needs else "no amount of data tells what is equal apart"
    return f"Cannot tell whether {name} is better than {now} ({bounds} in the long run): {takes}."


def _reason(word: Word, challenger: Evidence, incumbent: Evidence, limits: Limits) -> str:
    name = challenger.candidate.name
    parts = [
        f"Of all else that is within {limits.tolerance:.0%} of the best long-run reward, {name} discovers and shows "
        f"most: new hits fill {_share(challenger.discovery)} of its slots ({_share(incumbent.discovery)} now), "
        f"and it shows {_share(challenger.coverage)} of the catalogue ({_share(incumbent.coverage)} now)."
    ]
    if challenger.price is None:
        parts.append("No log says what it costs today.")
    else:
        price = challenger.price
        parts.append(
            f"On the log it changes today's reward of a slot by {price.value:+.1%} [{price.low:+.1%}, "
            f"{price.high:+.1%}]; the budget is {-limits.budget:.0%}."
        )
    if word != "better":
        parts.append(f"Nothing is shown to be better, so {incumbent.candidate.name} stays.")
    return " ".join(parts)


def _share(figure: float) -> str:
    return "none" if math.isnan(figure) else f"{figure:.1%}"
