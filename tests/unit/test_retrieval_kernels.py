"""The compiled loops of retrieval against plain readings of what they are to do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval import _native
from retrieval.catalogue import Catalogue
from retrieval.filters import Viewer, eligible_mask
from retrieval.sources import SourceResult, blend


def _plain_best(scores: np.ndarray, n: int) -> list[int]:
    return np.lexsort((np.arange(len(scores)), -scores))[:n].tolist()


@given(st.lists(st.integers(-3, 3) | st.floats(allow_nan=False), max_size=40), st.integers(0, 50))
def test_the_best_are_the_largest_and_equal_ones_stand_in_order(values: list[float], n: int) -> None:
    scores = np.array(values, dtype=np.float64)
    assert _native.best(scores, n).tolist() == _plain_best(scores, n)


# Beyond a few hundred, most are left out by a guess: it must not matter how good that is.
SHAPES = {
    "drawn": lambda rng, m: rng.normal(size=m),
    "rising": lambda rng, m: np.arange(m, dtype=np.float64),
    "falling": lambda rng, m: -np.arange(m, dtype=np.float64),
    "counts": lambda rng, m: np.floor(rng.exponential(0.5, size=m)),
    "alike": lambda rng, m: np.zeros(m),
    # The sample sees only the best, or none of them.
    "best where sampled": lambda rng, m: np.where(np.isin(np.arange(m), np.arange(256) * m // 256), 1.0, 0.0),
    "worst where sampled": lambda rng, m: np.where(np.isin(np.arange(m), np.arange(256) * m // 256), 0.0, 1.0),
    "without end": lambda rng, m: np.where(rng.random(m) < 0.5, np.inf, -np.inf),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_best_of_thousands_are_the_same_however_they_lie(shape: str) -> None:
    rng = np.random.default_rng(4)
    for m in (255, 256, 257, 1_000, 5_000):
        scores = SHAPES[shape](rng, m)
        for n in (0, 1, 2, 17, 100, m // 2, m - 1, m, m + 1):
            assert _native.best(scores, n).tolist() == _plain_best(scores, n)


@pytest.mark.parametrize("m", [3, 1_000])
def test_what_is_no_number_is_none_of_the_best(m: int) -> None:
    scores = np.full(m, np.nan)
    scores[:3] = [1.0, -np.inf, 2.0]
    assert _native.best(scores, 2).tolist() == [2, 0]
    assert _native.best(scores, m).tolist() == [2, 0, 1]


@pytest.mark.parametrize("n", [1, 40, 2_000])
def test_equal_scores_stand_in_the_order_of_their_labels(n: int) -> None:
    rng = np.random.default_rng(5)
    scores, labels = rng.integers(0, 30, size=2_000).astype(np.float64), rng.permutation(2_000)
    assert _native.best(scores, n, labels=labels).tolist() == np.lexsort((labels, -scores))[:n].tolist()


def _plain_blend(sources: list[list[int]], quotas: list[int], limit: int) -> list[tuple[int, int, int]]:
    """Return (row, source, place in it), as the text of `blend` says."""
    placed: dict[int, tuple[int, int, int]] = {}
    for code, (rows, quota) in enumerate(zip(sources, quotas, strict=True)):
        n_own = 0
        for place, row in enumerate(rows):
            if n_own < quota and len(placed) < limit and row not in placed:
                placed[row] = (row, code, place)
                n_own += 1
    rest = []
    for rows in sources:
        left = {row: rows.index(row) for row in rows if row not in placed}
        rest.append(list(left.items()))
    for turn in range(max(map(len, rest), default=0)):
        for code, left in enumerate(rest):
            if turn < len(left) and len(placed) < limit and left[turn][0] not in placed:
                placed[left[turn][0]] = (left[turn][0], code, left[turn][1])
    return list(placed.values())


@given(
    st.lists(st.tuples(st.lists(st.sampled_from([*range(30), 2**31 - 1]), max_size=25), st.integers(0, 9)), max_size=6),
    st.integers(0, 60),
)
def test_a_blend_is_what_its_text_says(given_sources: list[tuple[list[int], int]], limit: int) -> None:
    sources = [
        SourceResult(str(code), np.array(rows, dtype=np.int32), np.arange(len(rows), dtype=np.float32), quota)
        for code, (rows, quota) in enumerate(given_sources)
    ]
    rows, codes, places = blend(sources, limit=limit)
    plain = _plain_blend([rows for rows, _ in given_sources], [quota for _, quota in given_sources], limit)
    assert list(zip(rows.tolist(), codes.tolist(), places.astype(int).tolist(), strict=True)) == plain


def test_rows_that_hash_alike_are_told_apart() -> None:
    # Multiples of a power of two share their low bits, as rows of one item in many do.
    rows = (np.arange(1_000, dtype=np.int64) * 2**20 % 2**31).astype(np.int32)
    distinct = list(dict.fromkeys(rows.tolist()))
    found, *_ = blend([SourceResult("a", rows, np.zeros(len(rows), dtype=np.float32), 400)], limit=5_000)
    assert found.tolist() == distinct


@pytest.mark.parametrize("row", [-1, 4])
def test_a_row_that_no_catalogue_has_is_refused(row: int) -> None:
    anyone = Viewer(age=None, unknown_item_min_age=0, country=None, hidden_rows=())
    with pytest.raises(IndexError, match=rf"row must be in \[0, 4\), got {row}"):
        eligible_mask(Catalogue(capacity=4), np.array([row], dtype=np.int32), anyone, now_ms=1)
