"""The counterfactual part: what a log of our own service says every candidate would have earned.

Decisions are walked by the code that serves (`simulators.counterfactual`), once for each candidate. Whole-slate values
come from the panel of estimators; comparisons with the logged policy rest on the one-slot deviation, decision by
decision, with bounds that hold at every look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bandit.confidence_sequence import ConfidenceSequence
from bandit.estimators import ActionRows, Estimate, clipped_ips, ips
from bandit.exploration import VwExplorer
from bandit.intervals import Interval, cluster_sums
from bandit.slate import ActionSet
from bandit.slate_estimators import SlateRows, one_slot_deviation, rips
from bandit.support import Float64Array, Support
from service.adapters.archive_files import read_rows, reading
from service.config import Config
from service.decision_record import unpack_actions
from service.joins import PLACED
from service.messages import Decision
from service.training_rows import JoinedDecision, Span, read_outcomes, whole_decisions
from simulators.counterfactual import Counterfactual, TargetPolicy, build_counterfactual
from simulators.logged.batches import N_CLUSTERS, LoggedBatch, clusters_of_users
from simulators.panel import PanelLine, PanelSums, group_intervals
from simulators.tune.candidates import Candidate, discovery_share_of

CLIPS = (10.0, 20.0, 50.0, float("inf"))
SKIPS = frozenset({"skip", "dislike"})
# What is shown first: of slates, and of single actions.
_MAIN = ("sn_rips", "snips")

NO_WORD = "what an explorer of VW would have done goes by a model that the log lacks; see hone replay --vw"

Progress = Callable[[int, int], None]
SlotKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class LoggedSlates:
    """What the log holds, whatever is asked of it; n decisions of at most S slots, shorter ones padded.

    Attributes:
        incumbent: The policy of the last decision; `n_other` decisions had another one.
        n_other: See above.
        rewards: float64 [n, S], 0 where padded or placed by an editor.
        skips: float64 [n, S], 1 for a slot that was skipped or disliked aloud.
        propensities: float64 [n, S], 1 where padded.
        is_drawn: bool [n, S], slots that a policy filled.
        clusters: int64 [n], group of the user.
        targets: By candidate, float64 [n, S], its propensities of the same items.
        discovery_weights: By candidate, float64 [n].
        models: By candidate, float64 [n, S] twice: the score of what was shown, and the mean score under the candidate.
        unsupported: By candidate, why no log of this policy can carry it; empty for most.
    """

    incumbent: Candidate
    n_other: int
    rewards: Float64Array
    skips: Float64Array
    propensities: Float64Array
    is_drawn: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    clusters: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    targets: Mapping[Candidate, Float64Array]
    discovery_weights: Mapping[Candidate, Float64Array]
    models: Mapping[Candidate, tuple[Float64Array, Float64Array]]
    unsupported: Mapping[Candidate, str]

    def __len__(self) -> int:
        return len(self.clusters)

    @property
    def n_slots(self) -> int:
        """Return S."""
        return int(self.rewards.shape[1])

    def weights(self, candidate: Candidate) -> Float64Array:
        """Return float64 [n, S], the conditional weights of a candidate."""
        weights: Float64Array = self.targets[candidate] / self.propensities
        return weights

    def slates(self, candidate: Candidate, *, skips: bool = False) -> SlateRows:
        """Return the log as the slate estimators read it; the value is the mean over drawn slots."""
        outcomes = self.skips if skips else self.rewards
        alpha = np.full(self.n_slots, len(self) / max(1, int(self.is_drawn.sum())))
        return SlateRows(outcomes, self.weights(candidate), alpha, self.discovery_weights[candidate])


@dataclass(frozen=True, slots=True)
class CandidateValue:
    """What the log says of one candidate.

    Attributes:
        support: Of the whole-slate weights: the worst slot's.
        one_slot_support: Of the weights of single slots.
        refusal: Why there is no whole-slate value; None when there is.
        one_slot_refusal: The same of the one-slot value, on which comparisons rest.
        panel: Whole-slate value by estimator.
        skip_rate: Skips of a slot, by the same estimator as `value`.
        by_clip: Whole-slate value by the largest weight kept, and the share of slots it cut.
        one_slot: Value of deviating in one slot alone, by bootstrap.
        advantage: One-slot value less that of the log, with bounds that hold at every look.
        estimate: The point estimate of the advantage.
    """

    support: Support
    one_slot_support: Support
    refusal: str | None
    one_slot_refusal: str | None
    panel: tuple[PanelLine, ...]
    skip_rate: tuple[float, Interval | None] | None
    by_clip: Mapping[float, tuple[float, float]]
    one_slot: tuple[float, Interval | None]
    advantage: Interval
    estimate: float

    def line(self, name: str) -> PanelLine:
        """Return one estimator's line."""
        return next(line for line in self.panel if line.name == name)

    @property
    def value(self) -> PanelLine:
        """Return the whole-slate value that is shown first."""
        return next(line for line in self.panel if line.name in _MAIN)

    @property
    def disagreement(self) -> float | None:
        """Return the largest difference between whole-slate values; None with fewer than two."""
        values = [line.value for line in self.panel if line.value is not None and line.name != "one_slot"]
        return max(values) - min(values) if len(values) > 1 else None


def archived(
    config: Config, folder: Path, *, surface: str, model: str, span: Span | None = None
) -> Iterator[JoinedDecision]:
    """Yield a surface's archived decisions all of whose outcomes are known."""
    outcomes = read_outcomes(config, folder, model, span or Span())
    yield from whole_decisions(outcome for outcome in outcomes if outcome.payload.surface == surface)


def archived_skips(folder: Path, decisions: Sequence[JoinedDecision]) -> set[SlotKey]:
    """Return which slots of decisions were skipped or disliked, by event id and slot; it takes events with both."""
    wanted = {joined.decision.event_id for joined in decisions}
    begun_ms = min((joined.decision.decided_at_unix_ms for joined in decisions), default=0)
    with reading(folder):
        rows = read_rows(folder, "events", ["event_type", "event_id", "slot"], from_ms=begun_ms)
        return {
            (row["event_id"], row["slot"])
            for _, row in rows
            if row["event_type"] in SKIPS and row["event_id"] in wanted and row["slot"] is not None
        }


def build_slates(
    decisions: Sequence[JoinedDecision],
    skips: set[SlotKey],
    candidates: Sequence[Candidate],
    *,
    progress: Progress | None = None,
) -> LoggedSlates:
    """Walk a log with every candidate; `skips` are the slots that were skipped.

    Raises:
        ValueError: the log is empty, or a record cannot be replayed; the message names the decision.
    """
    if not decisions:
        raise ValueError("the log has no decision all of whose outcomes are known")
    n, n_slots = len(decisions), max(len(joined.decision.slots) for joined in decisions)
    columns = _Columns.of(n, n_slots, candidates)
    for row, joined in enumerate(decisions):
        columns.fill(row, joined, skips)
        if progress is not None and row % 100 == 99:
            progress(row + 1, n)
    policies = [_policy_of(joined.decision) for joined in decisions]
    return LoggedSlates(
        incumbent=policies[-1],
        n_other=sum(policy != policies[-1] for policy in policies),
        rewards=columns.rewards,
        skips=columns.skips,
        propensities=columns.propensities,
        is_drawn=columns.is_drawn,
        clusters=clusters_of_users([j.decision.user_key or j.decision.event_id for j in decisions]),
        targets=columns.targets,
        discovery_weights=columns.discovery_weights,
        models=columns.models,
        unsupported=columns.unsupported,
    )


def _policy_of(decision: Decision) -> Candidate:
    return Candidate(decision.exploration, discovery_share_of(decision.rules))


@dataclass(slots=True)
class _Columns:
    """The arrays of `LoggedSlates` while they are filled."""

    candidates: Sequence[Candidate]
    rewards: Float64Array
    skips: Float64Array
    propensities: Float64Array
    is_drawn: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    targets: dict[Candidate, Float64Array]
    discovery_weights: dict[Candidate, Float64Array]
    models: dict[Candidate, tuple[Float64Array, Float64Array]]
    unsupported: dict[Candidate, str]

    @classmethod
    def of(cls, n: int, n_slots: int, candidates: Sequence[Candidate]) -> _Columns:
        shape = (n, n_slots)
        return cls(
            candidates=candidates,
            rewards=np.zeros(shape),
            skips=np.zeros(shape),
            propensities=np.ones(shape),
            is_drawn=np.zeros(shape, dtype=np.bool_),
            targets={one: np.ones(shape) for one in candidates},
            discovery_weights={one: np.ones(n) for one in candidates},
            models={one: (np.zeros(shape), np.zeros(shape)) for one in candidates},
            unsupported={},
        )

    def fill(self, row: int, joined: JoinedDecision, skips: set[SlotKey]) -> None:
        decision = joined.decision
        actions = unpack_actions(decision.candidates)
        n = len(decision.slots)
        for slot, record in enumerate(decision.slots):
            self.propensities[row, slot] = record.propensity
            if record.reason not in PLACED:
                self.is_drawn[row, slot] = True
                self.rewards[row, slot] = joined.rewards[slot]
                self.skips[row, slot] = (decision.event_id, slot) in skips
        for one in self.candidates:
            if isinstance(one.exploration, VwExplorer):
                # Weighed as logged, so that what is refused is at least no number of its own.
                self.targets[one][row, :n] = self.propensities[row, :n]
                self.unsupported.setdefault(one, NO_WORD)
                continue
            target = TargetPolicy(exploration=one.exploration, rules=one.rules_from(decision.rules))
            found = build_counterfactual(decision, target)
            self.targets[one][row, :n] = found.target
            self.discovery_weights[one][row] = found.discovery_weight
            self._model(one, row, found, actions, decision)
            if found.unsupported:
                self.unsupported.setdefault(one, found.unsupported)

    def _model(self, one: Candidate, row: int, found: Counterfactual, actions: ActionSet, decision: Decision) -> None:
        """Note what the served model thought: scores of before the outcome, so that the rows were not its training."""
        logged, target = self.models[one]
        scores = actions.scores.astype(np.float64)
        for slot, (record, pmf) in enumerate(zip(decision.slots, found.pmfs, strict=True)):
            if self.is_drawn[row, slot]:
                logged[row, slot] = scores[record.action]
                target[row, slot] = float(pmf @ scores)


def value_of(
    log: LoggedSlates, candidate: Candidate, *, rewards_in: tuple[float, float], confidence: float
) -> CandidateValue:
    """Estimate one candidate.

    Args:
        log: With the candidate in it.
        candidate: Which one.
        rewards_in: Range of the reward of a slot; what is outside is cut for the bounds.
        confidence: Of the bounds on the advantage.
    """
    slates = log.slates(candidate)
    panel = _panel(log, candidate, slates)
    unsupported = log.unsupported.get(candidate)
    one_slot = one_slot_deviation(slates)
    flat = _flat(log, slates.weights * slates.discovery_weights[:, None])
    prefix = _flat(log, slates.prefix_weights())
    one_slot_support = Support.of(flat.weights)
    sequence, estimate = _advantage(log, flat, rewards_in=rewards_in, confidence=confidence)
    lines = panel.lines(refusal=unsupported)
    main = next(line for line in lines if line.name == _main(log.n_slots))
    return CandidateValue(
        support=main.support,
        one_slot_support=one_slot_support,
        refusal=main.refusal,
        one_slot_refusal=unsupported or one_slot_support.refusal,
        panel=lines,
        skip_rate=None if main.refusal else _skip_rate(log, candidate),
        by_clip=dict(_clipped(prefix)),
        one_slot=(one_slot.value, _interval(log, one_slot)),
        advantage=sequence.interval(),
        estimate=estimate,
    )


def _main(n_slots: int) -> str:
    return _MAIN[0] if n_slots > 1 else _MAIN[1]


def _panel(log: LoggedSlates, candidate: Candidate, slates: SlateRows) -> PanelSums:
    logged, target = log.models[candidate]
    alpha = slates.position_weights
    batch = LoggedBatch(
        rewards=log.rewards,
        propensities=log.propensities,
        targets=log.targets[candidate],
        clusters=log.clusters,
        discovery_weights=log.discovery_weights[candidate],
        n_feasible=np.zeros(log.rewards.shape, dtype=np.int64),
        model_logged=logged * alpha,
        model_target=target * alpha,
    )
    return PanelSums.of([batch], position_weights=alpha)


def _skip_rate(log: LoggedSlates, candidate: Candidate) -> tuple[float, Interval | None]:
    estimate = rips(log.slates(candidate, skips=True), self_normalised=True)
    return estimate.value, _interval(log, estimate)


def _flat(log: LoggedSlates, weights: Float64Array) -> ActionRows:
    """Return the drawn slots as rows of their own."""
    return ActionRows(log.rewards[log.is_drawn], weights[log.is_drawn])


def _clipped(rows: ActionRows) -> Iterable[tuple[float, tuple[float, float]]]:
    for clip in CLIPS:
        estimate = ips(rows) if np.isinf(clip) else clipped_ips(rows, clip=clip)
        yield clip, (estimate.value, estimate.support.clipped_share)


def _interval(log: LoggedSlates, estimate: Estimate) -> Interval | None:
    """Return the bootstrap interval over users; None with fewer than two."""
    intervals = group_intervals([cluster_sums(estimate, clusters=log.clusters, n_clusters=N_CLUSTERS)])
    return intervals[0] if intervals else None


def _advantage(
    log: LoggedSlates, flat: ActionRows, *, rewards_in: tuple[float, float], confidence: float
) -> tuple[ConfidenceSequence, float]:
    """Return bounds on the one-slot value less that of the log, and its estimate; a decision counts once."""
    decision = np.broadcast_to(np.arange(len(log))[:, None], log.is_drawn.shape)[log.is_drawn]
    weights, rewards = flat.weights, np.clip(flat.rewards, *rewards_in)
    sequence = ConfidenceSequence(of_advantage=True, reward_range=rewards_in, confidence=confidence).plus(
        weights=weights, rewards=rewards, units=decision.astype(np.int64)
    )
    sums = np.bincount(decision, weights=(weights - 1.0) * rewards, minlength=len(log))
    n_drawn = log.is_drawn.sum(axis=1)
    return sequence, float((sums[n_drawn > 0] / n_drawn[n_drawn > 0]).mean())
