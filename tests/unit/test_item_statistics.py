"""A worker's statistics by catalogue row: decay, unknown items, reused rows, replaced writers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from service.item_statistics import ItemStatistics
from service.messages import ItemStats


def _stats(counts: dict[str, tuple[float, float, float]], *, at_ms: int = 0, **changes: Any) -> ItemStats:
    columns = np.array(list(counts.values()), dtype="<f8").reshape(-1, 3)
    return ItemStats(
        at_unix_ms=at_ms,
        item_ids=list(counts),
        n_impressions=columns[:, 0].tobytes(),
        n_clicks=columns[:, 1].tobytes(),
        n_rewards=columns[:, 2].tobytes(),
        counted_at=np.full(len(counts), at_ms, dtype="<i8").tobytes(),
        **changes,
    )


def _read(statistics: ItemStatistics, rows: list[int], now_ms: int = 0) -> dict[str, list[float]]:
    columns = statistics.columns(np.array(rows, dtype=np.int32), now_ms)
    assert all(column.dtype == np.float32 for column in columns.values())
    return {name: column.tolist() for name, column in columns.items()}


@pytest.fixture
def statistics() -> ItemStatistics:
    fresh = ItemStatistics(half_life_ms=1_000.0)
    fresh.bind(0, "a")
    fresh.bind(1, "b")
    return fresh


def test_counts_decay_to_the_time_of_reading(statistics: ItemStatistics) -> None:
    assert statistics.apply("1-0", _stats({"b": (8.0, 4.0, 2.0)}, as_of="1-0-0"))
    assert (statistics.position, statistics.as_of) == ("1-0", "1-0-0")
    assert _read(statistics, [1, 0, -1], 2_000) == {
        "impressions_now": [2.0, 0.0, 0.0],
        "popularity_now": [1.0, 0.0, 0.0],
        "rewards_now": [0.5, 0.0, 0.0],
    }


def test_items_may_come_after_their_statistics_and_lend_their_row_to_others(statistics: ItemStatistics) -> None:
    statistics.apply("1-0", _stats({"late": (1.0, 0.0, 0.0), "a": (2.0, 0.0, 0.0)}))
    statistics.bind(5_000, "late")
    assert _read(statistics, [5_000, 0])["impressions_now"] == [1.0, 2.0]
    statistics.release(0, "a")
    statistics.bind(0, "c")
    assert _read(statistics, [0])["impressions_now"] == [0.0]
    statistics.apply("2-0", _stats({"a": (3.0, 0.0, 0.0)}))
    assert _read(statistics, [0])["impressions_now"] == [0.0]
    statistics.bind(2, "a")
    assert _read(statistics, [2])["impressions_now"] == [3.0]


def test_a_whole_entry_forgets_what_it_does_not_name(statistics: ItemStatistics) -> None:
    statistics.apply("1-0", _stats({"a": (1.0, 0.0, 0.0), "b": (2.0, 0.0, 0.0)}))
    statistics.apply("2-0", _stats({"b": (3.0, 0.0, 0.0)}, is_whole=True))
    assert _read(statistics, [0, 1])["impressions_now"] == [0.0, 3.0]


def test_a_writer_that_was_replaced_is_passed_over(statistics: ItemStatistics) -> None:
    statistics.apply("1-0", _stats({"a": (1.0, 0.0, 0.0)}, epoch=2, as_of="7-0-0"))
    assert not statistics.apply("2-0", _stats({"a": (9.0, 0.0, 0.0)}, epoch=1, as_of="8-0-0"))
    assert (statistics.position, statistics.as_of) == ("2-0", "7-0-0")
    assert _read(statistics, [0])["impressions_now"] == [1.0]


def test_thousands_of_items_grow_the_arrays() -> None:
    statistics = ItemStatistics(half_life_ms=1e12)
    n = 3_000
    statistics.apply("1-0", _stats({f"i{i}": (float(i + 1), 0.0, 0.0) for i in range(n)}))
    for row in range(n):
        statistics.bind(row, f"i{row}")
    assert _read(statistics, list(range(n)))["impressions_now"] == [float(i + 1) for i in range(n)]


def test_the_oldest_entries_hold_float32_and_one_time() -> None:
    statistics = ItemStatistics(half_life_ms=1_000.0)
    statistics.bind(0, "a")
    old = ItemStats(
        at_unix_ms=1_000,
        item_ids=["a"],
        n_impressions=np.float32(2.0).tobytes(),
        n_rewards=np.float32(1.0).tobytes(),
    )
    statistics.apply("1-0", old)
    assert _read(statistics, [0], 2_000) == {"impressions_now": [1.0], "popularity_now": [0.0], "rewards_now": [0.5]}


def test_arrays_that_do_not_fit_are_refused(statistics: ItemStatistics) -> None:
    broken = ItemStats(at_unix_ms=0, item_ids=["a", "b"], n_impressions=b"\0" * 16, n_rewards=b"\0" * 8)
    with pytest.raises(ValueError, match="2 items"):
        statistics.apply("1-0", broken)
