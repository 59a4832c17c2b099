"""Draw a slate slot by slot, with the exact conditional propensity of every slot.

The pmf of slot k is a function of the candidates, the rules, the discovery positions and the items already placed;
`SlateWalk.pmf` is that function. Drawing samples from it, auditing reads it at the logged choices: one definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bandit.exploration import Exploration, Float64Array, build_pmf
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
        feasible: int64 [m], candidate positions in UTF-8 id order.
        pmf: float64 [m] over `feasible`.
        greedy: bool [m], True where the boosted score is the maximum.
        is_discovery: the slot is reserved and the pool was not empty.
        gave_way: rules that were relaxed to leave something feasible, by kind and column.
    """

    feasible: Int64Array
    pmf: Float64Array
    greedy: BoolArray
    is_discovery: bool
    gave_way: tuple[str, ...]


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


@dataclass(slots=True)
class SlateWalk:
    """The slate so far: gives the pmf of the next slot and takes what was placed there."""

    actions: ActionSet
    exploration: Exploration
    rules: Sequence[Rule]
    now_ms: int
    discovery_positions: Sequence[int]
    history: list[int] = field(default_factory=list)
    boosts: Float64Array = field(init=False)
    boosted: Float64Array = field(init=False)
    _open: BoolArray = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.actions.ids)
        self.boosts = np.zeros(n)
        for rule in self.rules:
            if isinstance(rule, Freshness | Prior):
                self.boosts += rule.build_boost(self.actions.columns, self.now_ms)
        self.boosted = self.actions.scores.astype(np.float64) + self.boosts
        self._open = np.ones(n, dtype=np.bool_)

    def pmf(self) -> SlotPmf | None:
        """Return the pmf of the next slot, None when no candidate is left."""
        feasible, is_discovery, gave_way = self._feasible()
        if not len(feasible):
            return None
        scores = self.boosted[feasible]
        return SlotPmf(
            feasible=feasible,
            pmf=build_pmf(scores, self.exploration),
            greedy=scores == scores.max(),
            is_discovery=is_discovery,
            gave_way=gave_way,
        )

    def place(self, action: int) -> None:
        """Put a candidate in the next slot.

        Raises:
            ValueError: it is already in the slate.
        """
        if not self._open[action]:
            raise ValueError(f"action {action} is already in the slate")
        self._open[action] = False
        self.history.append(action)

    def _feasible(self) -> tuple[Int64Array, bool, tuple[str, ...]]:
        """Apply the masks; when nothing is left relax them, the last declared first."""
        masks: list[tuple[str, BoolArray]] = []
        reserved = len(self.history) in self.discovery_positions
        for rule in self.rules:
            if isinstance(rule, MaxPer):
                mask = rule.build_mask(self.actions.columns, self.history)
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
                return np.flatnonzero(allowed), is_discovery, tuple(gave_way)
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
        # The last cumulative sum may fall short of 1 by rounding: the draw then ends on the last possible action.
        chosen = min(int(np.searchsorted(cdf, uniform, side="right")), int(np.flatnonzero(here.pmf)[-1]))
        action = int(here.feasible[chosen])
        before = float(cdf[chosen - 1]) if chosen else 0.0
        draws.append(
            SlotDraw(
                slot=slot,
                action=action,
                propensity=float(here.pmf[chosen]),
                uniform=uniform,
                cumulative_before=before,
                n_feasible=len(here.feasible),
                greedy_action=int(here.feasible[int(np.argmax(here.greedy))]),
                n_greedy=int(here.greedy.sum()),
                is_greedy=bool(here.greedy[chosen]),
                explore_propensity=float(here.pmf[~here.greedy].sum()),
                is_discovery=here.is_discovery,
                branch=_branch(walk.exploration, here, chosen, uniform - before),
                boost=float(walk.boosts[action]),
                gave_way=here.gave_way,
            )
        )
        walk.place(action)
    return draws


def _branch(exploration: Exploration, here: SlotPmf, chosen: int, offset: float) -> str:
    """Say which part of the mixture the uniform fell into: a diagnostic with the right joint law, never a propensity.

    An action's stretch of the unit interval is cut as greedy, then uniform, then shortlist mass.
    """
    greedy_mass = (1.0 - exploration.rate) / here.greedy.sum() if here.greedy[chosen] else 0.0
    uniform_mass = exploration.rate * exploration.uniform_share / len(here.feasible)
    if offset < greedy_mass:
        return "greedy"
    return "uniform" if offset < greedy_mass + uniform_mass else "shortlist"
