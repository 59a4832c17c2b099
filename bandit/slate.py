"""Draw a slate slot by slot, with the exact conditional propensity of every slot.

The pmf of slot k is a function of the candidates, the rules, the discovery positions and the items already placed;
`SlateWalk.pmf` is that function. Drawing samples from it, auditing reads it at the logged choices: one definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from bandit._native import Likeness, Limit, SlateState, all_finite
from bandit.columns import BoolArray, Columns, Float64Array, Int64Array
from bandit.exploration import Exploration
from bandit.rules import Boost, Discovery, Diversity, MaxPer, Placement, Rule
from bandit.slot import ALL_GREEDY, SlotDraw, SlotPmf, draw_slot

ExplorerPmf = Callable[[int, Int64Array], Float64Array]


class ActionSet(msgspec.Struct, frozen=True):
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
        shape = (len(self.ids),)
        if self.scores.shape != shape:
            raise ValueError(f"scores must have shape {shape}, got {self.scores.shape}")
        for name, column in self.columns.items():
            if column.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {column.shape}")
        if not all_finite(self.scores):
            raise ValueError("scores must be finite")


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
        self._n_placed = 0
        self._shortlist_size = exploration.shortlist_size
        columns, n = actions.columns, len(actions.ids)
        boosts: Float64Array | None = None
        likenesses: list[Likeness] = []
        limits: list[Limit] = []
        # What is logged when a limit gives way, in declared order.
        self._limit_names: list[str] = []
        # What may be drawn; items that a placement keeps back are never drawn, only placed.
        is_open: BoolArray | None = None
        self._claims: dict[int, tuple[str, int]] = {}
        for rule in rules:
            if isinstance(rule, Boost):
                boost = rule.build_boost(columns, now_ms)
                boosts = boost if boosts is None else boosts + boost
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
                is_open = np.ones(n, dtype=np.bool_) if is_open is None else is_open
                is_open[kept] = False
                claimed = [action for _, action in self._claims.values()]
                for slot, action in rule.claims(columns, n_slots, kept[~np.isin(kept, claimed)]).items():
                    # The rule declared first has the slot; the other's item then stays away, as it was kept back.
                    self._claims.setdefault(slot, (str(rule.__struct_config__.tag), action))
        self._reserved = frozenset(discovery_positions if "discovery" in self._limit_names else ())
        self._state = SlateState(
            scores=actions.scores, fixed_boosts=boosts, is_open=is_open, limits=limits, likenesses=likenesses
        )

    @property
    def history(self) -> list[int]:
        """Return the positions of the candidates that were placed, slot by slot."""
        return self._state.placed

    def pmf(self) -> SlotPmf | None:
        """Return the pmf of the next slot, None when no candidate is left."""
        slot = self._n_placed
        if slot in self._claims:
            placed_by, action = self._claims[slot]
            return SlotPmf(self._state.only(action), ALL_GREEDY, placed_by, False, ())
        seen = self._state.view(self._shortlist_size)
        if seen is None:
            return None
        view, given_up = seen
        if self._explorer is not None:
            view.explorer_pmf = self._explorer(slot, view.top)
        gave_way = tuple([self._limit_names[limit] for limit in given_up]) if given_up else ()
        is_discovery = slot in self._reserved and "discovery" not in gave_way
        return SlotPmf(view, self.exploration.mixture(view), "", is_discovery, gave_way)

    def place(self, action: int) -> None:
        """Put a candidate in the next slot.

        Raises:
            ValueError: it is already in the slate, or not a candidate.
        """
        self._state.place(action)
        self._n_placed += 1


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
        draw = draw_slot(here, slot, uniform)
        walk.place(draw.action)
        draws.append(draw)
    return draws
