"""Types of the native kernels; every array is C-contiguous and one-dimensional unless a shape is given."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_Bools = npt.NDArray[np.bool_]
_Float64s = npt.NDArray[np.float64]
_Float32s = npt.NDArray[np.float32]
_Int64s = npt.NDArray[np.int64]
_UInt32s = npt.NDArray[np.uint32]
_UInt64s = npt.NDArray[np.uint64]

class Limit:
    def place(self, action: int) -> None: ...
    @property
    def mask(self) -> _Bools | None: ...

class CategoryLimit(Limit):
    def __init__(self, codes: npt.NDArray[np.int32], *, no_code: int, limit: int, window: int) -> None: ...

class TagLimit(Limit):
    def __init__(self, tags: _UInt64s, *, limit: int, window: int) -> None: ...

class PoolLimit(Limit):
    def __init__(self, pool: _Bools, *, positions: list[int]) -> None: ...

class Likeness:
    def __init__(self, tags: _UInt64s, *, weight: float) -> None: ...
    def place(self, action: int) -> None: ...
    @property
    def boost(self) -> _Float64s: ...

class SlateState:
    def __init__(
        self,
        *,
        scores: _Float32s,
        fixed_boosts: _Float64s | None,
        is_open: _Bools | None,
        limits: list[Limit],
        likenesses: list[Likeness],
    ) -> None: ...
    def place(self, action: int) -> None: ...
    def view(self, shortlist: int) -> tuple[SlotView, list[int]] | None: ...
    def only(self, action: int) -> SlotView: ...
    @property
    def placed(self) -> list[int]: ...

class SlotView:
    """What a policy sees of one slot; arrays are read-only.

    Attributes:
        scores: float64 [n] of all candidates in UTF-8 id order, boosts included.
        allowed: bool [n], at least one True: what the slot may hold.
        n_allowed: how many.
        greedy: int64 [g], the allowed actions that tie for best, in UTF-8 id order.
        top: int64 [m], the shortlist: best first, ties in UTF-8 id order, at its edge too.
        top_scores: float64 [m], the scores of the shortlist.
        explorer_pmf: float64 [m], what an explorer says of the shortlist; only `VwExplorer` looks at it.
    """

    @property
    def scores(self) -> _Float64s: ...
    @property
    def allowed(self) -> _Bools: ...
    @property
    def n_allowed(self) -> int: ...
    @property
    def greedy(self) -> _Int64s: ...
    @property
    def top(self) -> _Int64s: ...
    @property
    def top_scores(self) -> _Float64s: ...
    explorer_pmf: _Float64s | None

class Mixture:
    """The parts of one slot's pmf; their masses sum to 1.

    Attributes:
        greedy: Mass that the tied best actions share equally.
        shortlist: float64 [m], masses of the shortlist, best first.
        uniform: Mass that everything allowed shares equally.
    """

    def __init__(self, *, greedy: float, shortlist: _Float64s, uniform: float) -> None: ...
    @property
    def greedy(self) -> float: ...
    @property
    def shortlist(self) -> _Float64s: ...
    @property
    def uniform(self) -> float: ...

class SlotPmf:
    """What slot k may hold and with which probability.

    Attributes:
        view: Scores, what is allowed, and the best of it.
        mixture: The parts that the pmf is made of.
        pmf: float64 [n] over all candidates in UTF-8 id order; 0 for what is not allowed.
        boosts: float64 [n], what rules added to the scores for this slot.
        placed_by: `sponsored` or `pinned` when a placement fills the slot with probability 1, else empty.
        is_discovery: The slot is reserved and the pool was not empty.
        gave_way: Rules that were relaxed to leave something to show, by kind and column.
        explorer_pmf: Of the view.
        explore_propensity: Probability that the slot is not given to a best action.
    """

    def __init__(
        self, view: SlotView, mixture: Mixture, placed_by: str, is_discovery: bool, gave_way: tuple[str, ...]
    ) -> None: ...
    @property
    def view(self) -> SlotView: ...
    @property
    def mixture(self) -> Mixture: ...
    @property
    def pmf(self) -> _Float64s: ...
    @property
    def boosts(self) -> _Float64s: ...
    @property
    def placed_by(self) -> str: ...
    @property
    def is_discovery(self) -> bool: ...
    @property
    def gave_way(self) -> tuple[str, ...]: ...
    @property
    def explorer_pmf(self) -> _Float64s | None: ...
    @property
    def explore_propensity(self) -> float: ...
    def parts(self, action: int) -> dict[str, float]:
        """Return how an action's propensity adds up: `greedy`, `uniform`, and `shortlist` as the rest."""

class SlotDraw:
    """One placed item and how it was drawn.

    Attributes:
        slot: From 0.
        action: Position in the candidates.
        uniform: The number that was drawn.
        cumulative_before: Cumulative probability of the actions before it.
        branch: Part of the mixture the uniform fell into; a diagnostic, never a propensity.
        here: The pmf it was drawn from.
        propensity: The probability it was drawn with: an element of the very array that was sampled from.
        boost: What rules added to its score.
        is_greedy: It is a best action.
        n_allowed: How many the slot could hold.
        best: The first of the best actions.
        n_best: How many tie.
        reason: pinned, sponsored, discovery, greedy or explore.
    """

    @property
    def slot(self) -> int: ...
    @property
    def action(self) -> int: ...
    @property
    def uniform(self) -> float: ...
    @property
    def cumulative_before(self) -> float: ...
    @property
    def branch(self) -> str: ...
    @property
    def here(self) -> SlotPmf: ...
    @property
    def propensity(self) -> float: ...
    @property
    def boost(self) -> float: ...
    @property
    def is_greedy(self) -> bool: ...
    @property
    def n_allowed(self) -> int: ...
    @property
    def best(self) -> int: ...
    @property
    def n_best(self) -> int: ...
    @property
    def reason(self) -> str: ...

def all_finite(values: _Float32s) -> bool: ...
def view_slot(scores: _Float64s, allowed: _Bools, *, shortlist: int) -> SlotView:
    """Return the view of a slot with a shortlist of at most `shortlist` actions.

    Args:
        scores: float64 [n].
        allowed: bool [n], at least one True.
        shortlist: size; ties at its edge enter in UTF-8 id order.

    Raises:
        ValueError: nothing is allowed, or a score that is allowed is NaN.
    """

def softmax_mixture(
    view: SlotView, greedy: float, mass: float, uniform: float, temperature: float | None, /
) -> Mixture:
    """Return a mixture whose `mass` is a softmax over the shortlist.

    The temperature is in units of the score; None takes the interquartile range of the shortlist, and where that is 0
    all of it are alike.
    """

def inverse_gap_mixture(view: SlotView, gamma: float, uniform: float, /) -> Mixture:
    """Return a mixture whose shortlist has 1 / (m + gamma (s_best - s)), the best sharing the rest equally."""

def build_pmf(view: SlotView, mixture: Mixture) -> _Float64s:
    """Add up the parts: float64 [n] that is 0 where not allowed and sums to 1 within 1e-12.

    Raises:
        ValueError: the shortlist's masses are not one for each of its actions.
    """

def draw_slot(here: SlotPmf, slot: int, uniform: float, /) -> SlotDraw:
    """Draw one slot by inverse CDF: a function of the pmf and one uniform in [0, 1)."""

class WeightSet:
    def __init__(self, *, bits: int, prime: int) -> None: ...
    def add(self, features: Sequence[_UInt32s], interactions: Sequence[tuple[_UInt32s, _UInt32s]]) -> None: ...
    def positions(self) -> _UInt32s: ...
    def clear(self) -> None: ...

def freshness(available_ms: npt.NDArray[Any], *, now_ms: int, boost: float, half_life_ms: float) -> _Float64s: ...
def finite_product(column: npt.NDArray[Any], *, weight: float) -> _Float64s: ...
def feature_index(seed: int, name: str) -> int:
    """Return VW's 32-bit index of a feature in a namespace whose hash is `seed`."""

def encode_features(seed: int, features: dict[str, float]) -> tuple[tuple[str, ...], _UInt32s, _Float32s]:
    """Return names, uint32 [n] indices and float32 [n] values of the features that are not 0.

    Raises:
        ValueError: a value is not finite in float32.
    """

def philox_uniforms(key: bytes, n: int) -> _Float64s:
    """Return float64 [n] in [0, 1), as numpy draws them from Philox under a key of 16 bytes."""

def score_actions(
    weights: _Float32s,
    *,
    constant_index: int,
    prime: int,
    shared: Sequence[tuple[_UInt32s, _Float32s]],
    actions: Sequence[tuple[_UInt32s, _Float32s, Sequence[int]]],
) -> _Float32s:
    """Return float32 [n], the expected reward of n actions under float32 [2^bits] weights.

    Args:
        weights: the model's table.
        constant_index: of the weight that every example has.
        prime: multiplies the first index of an interaction.
        shared: uint32 and float32 [m] of every shared namespace.
        actions: uint32 and float32 [n, f] of every namespace of the actions, and the positions in `shared` of what it
            interacts with.

    Raises:
        ValueError: shapes do not agree, or the table is no power of two.
    """
