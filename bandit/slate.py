"""Draw a slate slot by slot, with the exact conditional propensity of every slot.

The pmf of slot k is a function of the candidates, the rules, the discovery positions and the items already placed;
`SlateWalk.pmf` is that function. Drawing samples from it, auditing reads it at the logged choices: one definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from bandit._native import Likeness, Limit, SlateState, draw_action
from bandit.columns import BoolArray, Columns, Float64Array, Int64Array
from bandit.exploration import Exploration
from bandit.rules import Boost, Discovery, Diversity, MaxPer, Placement, Rule
from bandit.slot import Mixture, SlotView, build_pmf

ExplorerPmf = Callable[[int, Int64Array], Float64Array]


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


class SlotPmf(msgspec.Struct, frozen=True):
    """What slot k may hold and with which probability.

    Attributes:
        view: Scores, what is allowed, and the best of it.
        mixture: The parts that the pmf is made of.
        pmf: float64 [n] over all candidates in UTF-8 id order; 0 for what is not allowed.
        boosts: float64 [n], what rules added to the scores for this slot.
        placed_by: `sponsored` or `pinned` when a placement fills the slot with probability 1, else empty.
        is_discovery: The slot is reserved and the pool was not empty.
        gave_way: Rules that were relaxed to leave something to show, by kind and column.
    """

    view: SlotView
    mixture: Mixture
    pmf: Float64Array
    boosts: Float64Array
    placed_by: str
    is_discovery: bool
    gave_way: tuple[str, ...]

    @property
    def explore_propensity(self) -> float:
        """Return the probability that the slot is not given to a best action."""
        return max(0.0, 1.0 - float(self.pmf[self.view.greedy].sum()))

    def parts(self, action: int) -> dict[str, float]:
        """Return how an action's propensity adds up: `greedy`, `uniform`, and `shortlist` as the rest."""
        is_greedy = self.view.scores[action] == self.view.scores[self.view.greedy[0]]
        greedy = self.mixture.greedy / len(self.view.greedy) if is_greedy else 0.0
        uniform = self.mixture.uniform / self.view.n_allowed
        return {"greedy": greedy, "shortlist": float(self.pmf[action]) - greedy - uniform, "uniform": uniform}


class SlotDraw(msgspec.Struct, frozen=True):
    """One placed item and how it was drawn.

    Attributes:
        slot: From 0.
        action: Position in the candidates.
        uniform: The number that was drawn.
        cumulative_before: Cumulative probability of the actions before it.
        branch: Part of the mixture the uniform fell into; a diagnostic, never a propensity.
        here: The pmf it was drawn from.
    """

    slot: int
    action: int
    uniform: float
    cumulative_before: float
    branch: str
    here: SlotPmf

    @property
    def propensity(self) -> float:
        """Return the probability it was drawn with: an element of the very array that was sampled from."""
        return float(self.here.pmf[self.action])

    @property
    def is_greedy(self) -> bool:
        """Return whether it is a best action."""
        view = self.here.view
        return bool(view.scores[self.action] == view.scores[view.greedy[0]])

    @property
    def reason(self) -> str:
        """Return pinned, sponsored, discovery, greedy or explore."""
        if self.here.placed_by:
            return self.here.placed_by
        return "discovery" if self.here.is_discovery else "greedy" if self.is_greedy else "explore"


class SlateWalk:
    """The slate so far: gives the pmf of the next slot and takes what was placed there.

    Args:
        actions: the candidates.
        exploration: the policy.
        rules: in declared order; when nothing is left to show, the last gives way first.
        now_ms: time of the decision, for boosts.
        n_slots: slots asked for.
        discovery_positions: slots reserved for discovery.
        explorer: gives a `VwExplorer` policy its pmf over a slot's shortlist, float64 [m], from the slot and int64 [m]
            positions of the candidates.
    """

    def __init__(
        self,
        *,
        actions: ActionSet,
        exploration: Exploration,
        rules: Sequence[Rule],
        now_ms: int,
        n_slots: int,
        discovery_positions: Sequence[int],
        explorer: ExplorerPmf | None = None,
    ) -> None:
        self.actions = actions
        self._explorer = explorer
        self.exploration = exploration
        self.rules = rules
        self.discovery_positions = discovery_positions
        self.history: list[int] = []
        columns, n = actions.columns, len(actions.ids)
        boosts: Float64Array = np.zeros(n)
        likenesses: list[Likeness] = []
        limits: list[Limit] = []
        # What is logged when a limit gives way, in declared order.
        self._limit_names: list[str] = []
        # What may still be drawn; items that a placement keeps back are never drawn, only placed.
        is_open: BoolArray = np.ones(n, dtype=np.bool_)
        self._claims: dict[int, tuple[str, int]] = {}
        is_free: BoolArray = np.ones(n, dtype=np.bool_)
        for rule in rules:
            if isinstance(rule, Boost):
                boosts += rule.build_boost(columns, now_ms)
            elif isinstance(rule, MaxPer):
                self._limit_names.append(f"max_per:{rule.column}")
                limits.append(rule.start(columns))
            elif isinstance(rule, Diversity):
                likenesses.append(rule.start(columns))
            elif isinstance(rule, Discovery):
                self._limit_names.append("discovery")
                limits.append(rule.start(columns, discovery_positions))
            elif isinstance(rule, Placement):
                kept = rule.kept_back(columns, n_slots)
                is_open[kept] = False
                for slot, action in rule.claims(columns, n_slots, kept[is_free[kept]]).items():
                    # The rule declared first has the slot; the other's item then stays away, as it was kept back.
                    if slot not in self._claims:
                        self._claims[slot] = (str(rule.__struct_config__.tag), action)
                        is_free[action] = False
        self._reserved = frozenset(discovery_positions if "discovery" in self._limit_names else ())
        self._state = SlateState(
            scores=actions.scores.astype(np.float64),
            fixed_boosts=boosts,
            is_open=is_open,
            limits=limits,
            likenesses=likenesses,
        )

    def pmf(self) -> SlotPmf | None:
        """Return the pmf of the next slot, None when no candidate is left."""
        slot = len(self.history)
        if slot in self._claims:
            return self._claimed(*self._claims[slot])
        seen = self._state.view(self.exploration.shortlist_size)
        if seen is None:
            return None
        allowed, n_allowed, greedy, top, given_up = seen
        view = SlotView(scores=self._state.boosted, allowed=allowed, n_allowed=n_allowed, greedy=greedy, top=top)
        if self._explorer is not None:
            view = msgspec.structs.replace(view, explorer_pmf=self._explorer(slot, top))
        mixture = self.exploration.mixture(view)
        gave_way = tuple(self._limit_names[limit] for limit in given_up)
        return SlotPmf(
            view=view,
            mixture=mixture,
            pmf=build_pmf(view, mixture),
            boosts=self._state.boosts,
            placed_by="",
            is_discovery=slot in self._reserved and "discovery" not in gave_way,
            gave_way=gave_way,
        )

    def place(self, action: int) -> None:
        """Put a candidate in the next slot.

        Raises:
            ValueError: it is already in the slate, or not a candidate.
        """
        if action in self.history:
            raise ValueError(f"action {action} is already in the slate")
        self._state.place(action)
        self.history.append(action)

    def _claimed(self, placed_by: str, action: int) -> SlotPmf:
        """Return the pmf of a slot that a placement fills."""
        only = np.zeros(len(self.actions.ids), dtype=np.bool_)
        only[action] = True
        none = np.zeros(0, dtype=np.int64)
        return SlotPmf(
            view=SlotView(scores=self._state.boosted, allowed=only, n_allowed=1, greedy=np.array([action]), top=none),
            mixture=Mixture(greedy=1.0, shortlist=np.zeros(0), uniform=0.0),
            pmf=only.astype(np.float64),
            boosts=self._state.boosts,
            placed_by=placed_by,
            is_discovery=False,
            gave_way=(),
        )


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
        draws.append(draw_slot(here, slot=slot, uniform=uniform))
        walk.place(draws[-1].action)
    return draws


def draw_slot(here: SlotPmf, *, slot: int, uniform: float) -> SlotDraw:
    """Draw one slot by inverse CDF: a function of the pmf and one uniform in [0, 1)."""
    action, before = draw_action(here.pmf, uniform)
    branch = _branch(here, action, uniform - before)
    return SlotDraw(slot=slot, action=action, uniform=uniform, cumulative_before=before, branch=branch, here=here)


def _branch(here: SlotPmf, action: int, offset: float) -> str:
    """Say which part of the mixture the uniform fell into, with the right joint law.

    An action's stretch of the unit interval is cut as greedy, then uniform, then shortlist mass.
    """
    if here.placed_by:
        return here.placed_by
    parts = here.parts(action)
    if offset < parts["greedy"]:
        return "greedy"
    return "uniform" if offset < parts["greedy"] + parts["uniform"] else "shortlist"
