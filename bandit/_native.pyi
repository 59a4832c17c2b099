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
        scores: _Float64s,
        fixed_boosts: _Float64s,
        is_open: _Bools,
        limits: list[Limit],
        likenesses: list[Likeness],
    ) -> None: ...
    def place(self, action: int) -> None: ...
    def view(self, shortlist: int) -> tuple[_Bools, int, _Int64s, _Int64s, list[int]] | None: ...
    @property
    def boosts(self) -> _Float64s: ...
    @property
    def boosted(self) -> _Float64s: ...

class WeightSet:
    def __init__(self, *, bits: int, prime: int) -> None: ...
    def add(self, features: Sequence[_UInt32s], interactions: Sequence[tuple[_UInt32s, _UInt32s]]) -> None: ...
    def positions(self) -> _UInt32s: ...
    def clear(self) -> None: ...

def freshness(available_ms: npt.NDArray[Any], *, now_ms: int, boost: float, half_life_ms: float) -> _Float64s: ...
def finite_product(column: npt.NDArray[Any], *, weight: float) -> _Float64s: ...
def rank_best(scores: _Float64s, allowed: _Bools, shortlist: int) -> tuple[_Int64s, _Int64s]: ...
def build_pmf(
    allowed: _Bools,
    n_allowed: int,
    greedy: _Int64s,
    top: _Int64s,
    greedy_mass: float,
    masses: _Float64s,
    uniform: float,
) -> _Float64s: ...
def draw_action(pmf: _Float64s, uniform: float) -> tuple[int, float]: ...
def softmax(descending: _Float64s, temperature: float | None) -> _Float64s: ...
def add_costs(
    costs: _Float64s,
    weights: _Float32s,
    indices: _UInt32s,
    values: _Float32s,
    halves: _UInt32s,
    shared_values: _Float32s,
) -> None: ...
