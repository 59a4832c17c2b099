"""Blending of sources."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.sources import SourceResult, blend


def _source(name: str, rows: list[int], quota: int) -> SourceResult:
    scores = np.linspace(1.0, 0.5, len(rows)).astype(np.float32)
    return SourceResult(name=name, rows=np.asarray(rows, dtype=np.int32), scores=scores, quota=quota)


def test_each_source_fills_its_quota_then_room_goes_round() -> None:
    rows, codes, scores = blend([_source("als", [1, 2, 3, 4], 2), _source("popular", [5, 6, 7, 8], 1)], limit=6)
    assert rows.tolist() == [1, 2, 5, 3, 6, 4]
    assert codes.tolist() == [0, 0, 1, 0, 1, 0]
    assert (rows.dtype, codes.dtype, scores.dtype) == (np.int32, np.uint8, np.float32)
    assert scores[0] == 1.0


def test_the_earlier_source_keeps_a_row_and_the_later_takes_its_next() -> None:
    rows, codes, _ = blend([_source("a", [1, 2], 2), _source("b", [2, 1, 3, 4], 2)], limit=4)
    assert rows.tolist() == [1, 2, 3, 4]
    assert codes.tolist() == [0, 0, 1, 1]


def test_a_row_beyond_the_earlier_quota_may_be_placed_by_a_later_source() -> None:
    rows, codes, _ = blend([_source("a", [1, 2], 1), _source("b", [2], 1)], limit=5)
    assert rows.tolist() == [1, 2]
    assert codes.tolist() == [0, 1]


def test_the_limit_cuts_the_last_sources_first() -> None:
    rows, codes, _ = blend([_source("a", [1, 2, 3], 3), _source("b", [4, 5], 2)], limit=4)
    assert rows.tolist() == [1, 2, 3, 4]
    assert codes.tolist() == [0, 0, 0, 1]


def test_no_sources_or_no_room_give_nothing() -> None:
    for found in (blend([], limit=5), blend([_source("a", [], 3)], limit=5), blend([_source("a", [1], 1)], limit=0)):
        assert [len(part) for part in found] == [0, 0, 0]


SOURCES = st.lists(st.tuples(st.lists(st.integers(0, 25), max_size=15), st.integers(0, 8)), max_size=5)


@given(SOURCES, st.integers(0, 40))
def test_blend_is_distinct_full_and_true_to_its_sources(given_sources: list[tuple[list[int], int]], limit: int) -> None:
    sources = [_source(str(n), rows, quota) for n, (rows, quota) in enumerate(given_sources)]
    rows, codes, scores = blend(sources, limit=limit)
    every = {row for listed, _ in given_sources for row in listed}
    assert len(set(rows.tolist())) == len(rows) == min(limit, len(every))
    for row, code, score in zip(rows.tolist(), codes.tolist(), scores.tolist(), strict=True):
        listed = sources[code].rows.tolist()
        assert score == sources[code].scores[listed.index(row)]


@given(SOURCES)
def test_no_source_is_denied_its_quota_by_another_ones_spare_rows(given_sources: list[tuple[list[int], int]]) -> None:
    sources = [_source(str(n), rows, quota) for n, (rows, quota) in enumerate(given_sources)]
    rows, codes, _ = blend(sources, limit=sum(quota for _, quota in given_sources))
    for code, source in enumerate(sources):
        own = int((codes == code).sum())
        elsewhere = set(rows[codes != code].tolist())
        assert own >= min(source.quota, len(set(source.rows.tolist()) - elsewhere))


def test_results_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows and scores must be equally long, got \[2\] and \[1\] \(source als\)"):
        SourceResult("als", np.zeros(2, dtype=np.int32), np.zeros(1, dtype=np.float32), 1)
    with pytest.raises(ValueError, match="quota must not be negative"):
        _source("als", [1], -1)
    with pytest.raises(ValueError, match="at most 255 sources"):
        blend([_source("a", [1], 1)] * 256, limit=1)
