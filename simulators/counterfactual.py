"""What another policy would have done at each slot of a logged decision, by the code that serves.

The target policy walks along the logged slate: at slot k it stands before the items that the log put into slots before
k, and its pmf there says with which probability it would have put the logged item. Everything that the target policy
does not change is as logged: candidates, columns, time, discovery positions. So with the logged policy itself every
weight is exactly 1, on the numerics that decided.

Items outside the logged candidates have no support: rankers on the same candidates can be compared, retrievers cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from bandit.exploration import Exploration, Greedy
from bandit.rules import Discovery, Rule
from bandit.slate import ExplorerPmf
from bandit.support import Float64Array
from service.decision_record import walk_of
from service.messages import Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetPolicy:
    """What is done otherwise than in the log; None leaves a part as it was in each decision.

    Attributes:
        exploration: How the mass of a slot is split.
        rules: All rules, in declared order.
        score: Gives float32 [n] scores of a decision's candidates, such as those of another model.
        explorer: Gives the pmf of a VW explorer, for an `exploration` that asks one. Without it the explorer is the
            logged one, whose word is known on the logged shortlists only.
    """

    exploration: Exploration | None = None
    rules: Sequence[Rule] | None = None
    score: Callable[[Decision], npt.NDArray[np.float32]] | None = None
    explorer: Callable[[Decision], ExplorerPmf] | None = None

    def applied_to(self, decision: Decision) -> Decision:
        """Return the decision with this policy's inputs in place of the logged ones.

        Raises:
            ValueError: the scores are not one for each candidate.
        """
        candidates = decision.candidates
        if self.score is not None:
            scores = self.score(decision)
            if scores.shape != (len(candidates.ids),):
                expected = (len(candidates.ids),)
                raise ValueError(
                    f"scores must have shape {expected}, got {scores.shape} (decision {decision.event_id})"
                )
            candidates = msgspec.structs.replace(candidates, scores=scores.astype("<f4").tobytes())
        return msgspec.structs.replace(
            decision,
            exploration=decision.exploration if self.exploration is None else self.exploration,
            rules=decision.rules if self.rules is None else list(self.rules),
            candidates=candidates,
        )


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """One logged decision of S placed slots under a target policy.

    Attributes:
        logged: float64 [S], mu_k: the logged propensity of the item at slot k, given the slots before.
        target: float64 [S], pi_k: the target policy's, given the same slots before.
        scores: float64 [S], of the logged items under the target policy, boosts left out.
        pmfs: S of float64 [n], the target policy's pmf over the candidates; all 0 where it could place nothing.
        discovery_weight: pi(D) / mu(D) of the coin that drew the discovery positions.
        ends_alike: Whether the target policy, too, would place nothing after the last slot.
        unsupported: Why the log cannot carry the target policy whatever its size, empty when it can.
    """

    logged: Float64Array
    target: Float64Array
    scores: Float64Array
    pmfs: tuple[Float64Array, ...]
    discovery_weight: float
    ends_alike: bool
    unsupported: str

    @property
    def weights(self) -> Float64Array:
        """Return float64 [S], the conditional weights w_k = pi_k / mu_k."""
        return self.target / self.logged


def build_counterfactual(decision: Decision, target: TargetPolicy) -> Counterfactual:
    """Return what the target policy would have done along the logged slate.

    Raises:
        ValueError: a logged propensity is not in (0, 1], a logged item is not among the candidates, or a VW explorer
            is asked of what it was not asked in the log; the message names decision and slot.
    """
    decided = target.applied_to(decision)
    explorer = None if target.explorer is None else target.explorer(decided)
    try:
        walk = walk_of(_reserving_as_logged(decided), explorer=explorer)
    except KeyError as error:
        raise ValueError(f"a rule reads column {error}, which the log lacks (decision {decision.event_id})") from error
    n_candidates = len(decision.candidates.ids)
    logged, placed, pmfs = [], [], []
    for slot, record in enumerate(decision.slots):
        where = f"(decision {decision.event_id}, slot {slot})"
        # NaN compares false.
        if not 0.0 < record.propensity <= 1.0:
            raise ValueError(f"propensity must be in (0, 1], got {record.propensity} {where}")
        if not 0 <= record.action < n_candidates or record.action in walk.history:
            raise ValueError(
                f"action must be one of {n_candidates} candidates that is not placed yet, got {record.action} {where}"
            )
        try:
            here = walk.pmf()
        except ValueError as error:
            raise ValueError(f"the target policy cannot be evaluated: {error} {where}") from error
        pmf = np.zeros(n_candidates) if here is None else here.pmf
        logged.append(record.propensity)
        placed.append(float(pmf[record.action]))
        pmfs.append(pmf)
        walk.place(record.action)
    weight, unsupported = _discovery_weight(decision, decided)
    return Counterfactual(
        logged=np.array(logged),
        target=np.array(placed),
        scores=walk.actions.scores[walk.history].astype(np.float64),
        pmfs=tuple(pmfs),
        discovery_weight=weight,
        ends_alike=_ends(decided),
        unsupported=unsupported,
    )


def _reserving_as_logged(decided: Decision) -> Decision:
    """Return the decision without rules that reserve slots where the log reserved none.

    They do nothing there, and the log lacks the column of a pool that it had no use for.
    """
    if decided.discovery_positions:
        return decided
    return msgspec.structs.replace(decided, rules=[rule for rule in decided.rules if not isinstance(rule, Discovery)])


def _ends(decided: Decision) -> bool:
    """Return whether nothing can be placed after the logged slots."""
    if len(decided.slots) >= decided.n_requested:
        return True
    # What may be placed does not depend on the exploration, and no explorer has a word on a slot that was not filled.
    walk = walk_of(msgspec.structs.replace(_reserving_as_logged(decided), exploration=Greedy()))
    for record in decided.slots:
        walk.place(record.action)
    return walk.pmf() is None


def _discovery_weight(decision: Decision, decided: Decision) -> tuple[float, str]:
    """Return pi(D) / mu(D), and why the log does not support the target's D.

    Without a rule that reserves slots D is empty: a slot that was reserved held nothing but the pool, so that the log
    says nothing there of a policy that reserves none.
    """
    rule, logged = _discovery(decided.rules), _discovery(decision.rules)
    if rule == logged:
        return 1.0, ""
    n_slots = decision.n_requested
    weight = rule.positions_probability(decision.discovery_positions, n_slots) / decision.discovery_probability
    counts = logged.count_pmf(n_slots)
    missing = sorted(rule.count_pmf(n_slots).keys() - counts.keys())
    if not missing:
        return weight, ""
    return weight, (
        f"discovery share {rule.share:g} reserves {_or(missing)} of {n_slots} slots, share {logged.share:g} of the log "
        f"reserved {_or(sorted(counts))} (decision {decision.event_id})"
    )


def _discovery(rules: Sequence[Rule]) -> Discovery:
    """Return the rule that reserves slots: the last one, as in the draw, and one of share 0 where there is none."""
    found = [rule for rule in rules if isinstance(rule, Discovery) and rule.share > 0.0]
    return found[-1] if found else Discovery(share=0.0)


def _or(counts: Sequence[int]) -> str:
    return " or ".join(map(str, counts))
