"""Types of the native kernels; every array is C-contiguous and one-dimensional unless something else is said."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Bools = npt.NDArray[np.bool_]
_Float32s = npt.NDArray[np.float32]
_Int32s = npt.NDArray[np.int32]
_Int64s = npt.NDArray[np.int64]

def eligible(
    rows: _Int32s,
    *,
    listed: _Bools,
    available_ms: _Int64s,
    expires_ms: _Int64s,
    allowed: _Bools,  # of any stride
    min_age: npt.NDArray[np.int16],
    now_ms: int,
    age: int | None,
    unknown_age: int,
    unknown_needs: int,
    hidden: _Int32s,
) -> _Bools: ...
def blend(
    rows: Sequence[_Int32s], scores: Sequence[_Float32s], quotas: Sequence[int], limit: int
) -> tuple[_Int32s, npt.NDArray[np.uint8], _Float32s]: ...
def best(scores: npt.NDArray[np.float64], n: int, *, labels: _Int64s | None = None) -> _Int64s: ...
