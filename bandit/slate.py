"""Draw a slate slot by slot, with the exact conditional propensity of every slot.

The pmf of slot k is a function of the candidates, the rules, the discovery positions and the items already placed;
`SlateWalk.pmf` is that function. Drawing samples from it, auditing reads it at the logged choices: one definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bandit.exploration import Exploration, Float64Array, SlotView, build_pmf, view_slot
from bandit.rules import BoolArray, Columns, Discovery, Freshness, MaxPer, Prior, Rule

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ActionSet:
    """The candidates of one decision, all eligible, as one snapshot.

    Attributes:
        ids: n item ids in UTF-8 byte order, no duplicates.
        scores: float32 [n], expected reward before boosts; logged exactly as used.
        columns: arrays [n] that rules read, by name.
    """

    ids: Sequence[str]
    scores: npt.NDArray[np.float32]
    columns: Columns

    def __post_init__(self) -> None:
        """Check shapes and values.

        Raises:
            ValueError: a shape differs from the ids or a score is not finite.
        """
        n = len(self.ids)
        for name, array in (("scores", self.scores), *self.columns.items()):
            if array.shape != (n,):
                raise ValueError(f"{name} must have shape ({n},), got {array.shape}")
        if not np.isfinite(self.scores).all():
            raise ValueError("scores must be finite")


@dataclass(frozen=True, slots=True)
class SlotPmf:
    """What slot k may hold and with which probability.

    Attributes:
        view: Scores, what is allowed, and its ranking.
        pmf: float64 [n] over all candidates in UTF-8 id order; 0 for what is not allowed.
        is_discovery: The slot is reserved and the pool was not empty.
        gave_way: Rules that were relaxed to leave something to show, by kind and column.
    """

    view: SlotView
    pmf: Float64Array
    is_discovery: bool
    gave_way: tuple[str, ...]

    @property
    def greedy(self) -> Int64Array:
        """Return the tied best actions, in UTF-8 id order."""
        return self.view.ranked[: self.view.n_greedy]

    @property
    def explore_propensity(self) -> float:
        """Return the probability that the slot is not given to a best action."""
        return float(self.pmf[self.view.ranked[self.view.n_greedy :]].sum())


@dataclass(frozen=True, slots=True)
class SlotDraw:
    """One placed item and how it was drawn; see the decision record for the meaning of each number."""

    slot: int
    action: int
    propensity: float
    uniform: float
    cumulative_before: float
    n_feasible: int
    greedy_action: int
    n_greedy: int
    is_greedy: bool
    explore_propensity: float
    is_discovery: bool
    branch: str
    boost: float
    gave_way: tuple[str, ...]


class SlateWalk:
    """The slate so far: gives the pmf of the next slot and takes what was placed there.

    Args:
        actions: the candidates.
        exploration: the policy.
        rules: in declared order; when nothing is left to show, the last gives way first.
        now_ms: time of the decision, for boosts.
        discovery_positions: slots reserved for discovery.
    """

    def __init__(
        self,
        *,
        actions: ActionSet,
        exploration: Exploration,
        rules: Sequence[Rule],
        now_ms: int,
        discovery_positions: Sequence[int],
    ) -> None:
        self.actions = actions
        self.exploration = exploration
        self.rules = rules
        self.discovery_positions = discovery_positions
        self.history: list[int] = []
        self.boosts: Float64Array = np.zeros(len(actions.ids))
        for rule in rules:
            if isinstance(rule, Freshness | Prior):
                self.boosts += rule.build_boost(actions.columns, now_ms)
        self.boosted: Float64Array = actions.scores.astype(np.float64) + self.boosts
        self._descending = np.argsort(-self.boosted, kind="stable")
        self._open: BoolArray = np.ones(len(actions.ids), dtype=np.bool_)
        self._max_per = {id(rule): rule.start(actions.columns) for rule in rules if isinstance(rule, MaxPer)}

    def pmf(self) -> SlotPmf | None:
        """Return the pmf of the next slot, None when no candidate is left."""
        allowed, is_discovery, gave_way = self._allowed()
        if not allowed.any():
            return None
        view = view_slot(self.boosted, allowed, self._descending)
        pmf = build_pmf(view, self.exploration)
        return SlotPmf(view=view, pmf=pmf, is_discovery=is_discovery, gave_way=gave_way)

    def place(self, action: int) -> None:
        """Put a candidate in the next slot.

        Raises:
            ValueError: it is already in the slate.
        """
        if not self._open[action]:
            raise ValueError(f"action {action} is already in the slate")
        self._open[action] = False
        self.history.append(action)

    def _allowed(self) -> tuple[BoolArray, bool, tuple[str, ...]]:
        """Apply the masks; when nothing is left relax them, the last declared first."""
        masks: list[tuple[str, BoolArray]] = []
        reserved = len(self.history) in self.discovery_positions
        for rule in self.rules:
            if isinstance(rule, MaxPer):
                mask = self._max_per[id(rule)].build_mask(self.history)
                if mask is not None:
                    masks.append((f"max_per:{rule.column}", mask))
            elif isinstance(rule, Discovery) and reserved:
                masks.append(("discovery", self.actions.columns[rule.column].astype(np.bool_)))
        gave_way: list[str] = []
        while True:
            allowed = self._open.copy()
            for _, mask in masks:
                allowed &= mask
            if not masks or allowed.any():
                is_discovery = any(name == "discovery" for name, _ in masks)
                return allowed, is_discovery, tuple(gave_way)
            gave_way.append(masks.pop()[0])


def draw_slate(walk: SlateWalk, uniforms: Float64Array) -> list[SlotDraw]:
    """Fill the slate by inverse CDF, one fresh uniform per slot.

    Args:
        walk: a walk with no history yet; it is advanced.
        uniforms: float64 [n_slots] in [0, 1).

    Returns:
        One draw per filled slot; fewer than asked for when the candidates run out.
    """
    draws: list[SlotDraw] = []
    for slot, uniform in enumerate(uniforms.tolist()):
        here = walk.pmf()
        if here is None:
            break
        cdf = np.cumsum(here.pmf)
        # What is not allowed adds nothing, so the first sum above the uniform is at an allowed action. The last sum may
        # fall short of 1 by rounding: the draw then ends on the last possible action.
        action = int(np.searchsorted(cdf, uniform, side="right"))
        if action == len(cdf):
            action = int(np.flatnonzero(here.pmf)[-1])
        before = float(cdf[action - 1]) if action else 0.0
        is_greedy = walk.boosted[action] == walk.boosted[here.view.ranked[0]]
        draws.append(
            SlotDraw(
                slot=slot,
                action=action,
                propensity=float(here.pmf[action]),
                uniform=uniform,
                cumulative_before=before,
                n_feasible=len(here.view.ranked),
                greedy_action=int(here.view.ranked[0]),
                n_greedy=here.view.n_greedy,
                is_greedy=bool(is_greedy),
                explore_propensity=here.explore_propensity,
                is_discovery=here.is_discovery,
                branch=_branch(walk.exploration, here.view, uniform - before, is_greedy=bool(is_greedy)),
                boost=float(walk.boosts[action]),
                gave_way=here.gave_way,
            )
        )
        walk.place(action)
    return draws


def _branch(exploration: Exploration, view: SlotView, offset: float, *, is_greedy: bool) -> str:
    """Say which part of the mixture the uniform fell into: a diagnostic with the right joint law, never a propensity.

    An action's stretch of the unit interval is cut as greedy, then uniform, then shortlist mass.
    """
    greedy_mass = (1.0 - exploration.rate) / view.n_greedy if is_greedy else 0.0
    uniform_mass = exploration.rate * exploration.uniform_share / len(view.ranked)
    if offset < greedy_mass:
        return "greedy"
    return "uniform" if offset < greedy_mass + uniform_mass else "shortlist"
