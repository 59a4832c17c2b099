"""What each rule did in a slot: its part of the boost, and what it kept out. From the log alone.

A rule is a function of columns, time and history, so a walk under that rule alone says what it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bandit.columns import BoolArray
from bandit.exploration import Greedy
from bandit.rules import Boost, Discovery, Diversity, Placement, Rule
from bandit.slate import ActionSet, SlateWalk
from bandit.slot import SlotPmf
from service.explanation import BoostPart, RemovedItem, RuleName, RunnerUp
from service.messages import Decision

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ExplainedRules:
    """What the rules did in one slot.

    Attributes:
        boosts: What each added to the score of the item.
        runner_up: The best that the slot could also have held.
        removed: The best that rules kept out, best first.
        in_words: The last two.
    """

    boosts: list[BoostPart]
    runner_up: RunnerUp | None
    removed: list[RemovedItem]
    in_words: str


class RuleWalks:
    """The rules of a decision, each at work alone on the slate that was drawn under all of them."""

    def __init__(self, decision: Decision, actions: ActionSet) -> None:
        self._actions = actions
        self._placed: list[int] = []
        self._kept_back: list[tuple[RuleName, BoolArray]] = []
        self._boosts: list[tuple[RuleName, SlateWalk]] = []
        self._limits: list[tuple[RuleName, SlateWalk]] = []
        for position, rule in enumerate(decision.rules):
            name = RuleName(rule=position, name=rule_name(rule))
            if isinstance(rule, Placement):
                kept = np.zeros(len(actions.ids), dtype=np.bool_)
                kept[rule.kept_back(actions.columns, decision.n_requested)] = True
                self._kept_back.append((name, kept))
                continue
            walk = SlateWalk(
                actions=actions,
                exploration=Greedy(),
                rules=[rule],
                now_ms=decision.decided_at_unix_ms,
                n_slots=decision.n_requested,
                discovery_positions=decision.discovery_positions,
            )
            (self._boosts if isinstance(rule, Boost | Diversity) else self._limits).append((name, walk))

    def place(self, action: int) -> None:
        """Put a candidate in the next slot."""
        self._placed.append(action)
        for _, walk in (*self._boosts, *self._limits):
            walk.place(action)

    def explain(self, here: SlotPmf, action: int) -> ExplainedRules:
        """Return what the rules did in the next slot, which holds `action` and whose pmf under all rules is `here`."""
        boosts = [
            BoostPart(rule=name.rule, name=name.name, boost=float(_pmf(walk).boosts[action]))
            for name, walk in self._boosts
        ]
        if here.placed_by:
            return ExplainedRules(boosts, None, [], f"The slot was {here.placed_by}: nothing else could be drawn.")
        runner_up = self._runner_up(here, action)
        removed = self._removed(here)
        return ExplainedRules(boosts, runner_up, removed, _in_words(here, runner_up, removed))

    def masks(self, here: SlotPmf) -> list[tuple[RuleName, BoolArray]]:
        """Return bool [n] of what each rule keeps out of the next slot; rules that gave way keep out nothing."""
        found = []
        is_open = self._is_open()
        gave_way = list(here.gave_way)
        # The rule declared last gives way first.
        for name, walk in reversed(self._limits):
            alone = _pmf(walk)
            kept_out = is_open & ~alone.view.allowed
            if name.name in gave_way and (alone.gave_way or kept_out.any()):
                gave_way.remove(name.name)
            else:
                found.append((name, kept_out))
        return [*((name, is_open & kept) for name, kept in self._kept_back), *reversed(found)]

    def _is_open(self) -> BoolArray:
        is_open = np.ones(len(self._actions.ids), dtype=np.bool_)
        is_open[self._placed] = False
        return is_open

    def _runner_up(self, here: SlotPmf, action: int) -> RunnerUp | None:
        others = here.view.allowed.copy()
        others[action] = False
        if not others.any():
            return None
        best = _best(here, others, 1)[0]
        return RunnerUp(
            item_id=self._actions.ids[best],
            score=float(self._actions.scores[best]),
            boost=float(here.boosts[best]),
            boosted_score=float(here.view.scores[best]),
            propensity=float(here.pmf[best]),
        )

    def _removed(self, here: SlotPmf) -> list[RemovedItem]:
        masks = self.masks(here)
        return [
            RemovedItem(
                item_id=self._actions.ids[out],
                score=float(self._actions.scores[out]),
                boost=float(here.boosts[out]),
                boosted_score=float(here.view.scores[out]),
                removed_by=sorted((name for name, mask in masks if mask[out]), key=lambda name: name.rule),
            )
            for out in _best(here, self._is_open() & ~here.view.allowed, _SHOWN)
        ]


def rule_name(rule: Rule) -> str:
    """Return a rule's kind and column, as records name the rules that gave way.

    >>> rule_name(Diversity(weight=0.1, column="genres")), rule_name(Discovery(share=0.2))
    ('diversity:genres', 'discovery')
    """
    kind = str(rule.__struct_config__.tag)
    return kind if isinstance(rule, Discovery) else f"{kind}:{rule.column}"


def _pmf(walk: SlateWalk) -> SlotPmf:
    here = walk.pmf()
    # What was placed could be placed, so the slot is never out of candidates.
    assert here is not None
    return here


def _best(here: SlotPmf, among: BoolArray, n: int) -> list[int]:
    """Return the n best of some candidates by boosted score, ties in id order."""
    found: npt.NDArray[np.int64] = among.nonzero()[0]
    order = (-here.view.scores[found]).argsort(kind="stable")
    best: list[int] = found[order[:n]].tolist()
    return best


def _in_words(here: SlotPmf, runner_up: RunnerUp | None, removed: Sequence[RemovedItem]) -> str:
    best = float(here.view.scores[here.view.greedy[0]])
    better = [item for item in removed if item.boosted_score > best]
    said = (
        "Nothing else could be shown."
        if runner_up is None
        else f"Runner-up: {runner_up.item_id} with {runner_up.boosted_score:+.4f}, drawn with probability "
        f"{runner_up.propensity:.6f}."
    )
    if better:
        kept_out = [f"{item.item_id} ({', '.join(rule.name for rule in item.removed_by)})" for item in better]
        said += f" Better, but kept out by rules: {', '.join(kept_out)}."
    return said
