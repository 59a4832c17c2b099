"""Intervals on clocks that jump."""

from __future__ import annotations

import doctest

from hypothesis import given
from hypothesis import strategies as st

from service import due
from service.due import is_due


def test_the_documented_examples_hold() -> None:
    assert doctest.testmod(due).failed == 0


@given(st.integers(4, 10_000), st.integers(-50_000, 50_000), st.integers(0, 7))
def test_after_a_jump_of_the_clock_nothing_waits_longer_than_two_intervals(
    every_ms: int, jump_ms: int, jumps_at: int
) -> None:
    now_ms = since_ms = 10**9
    waited_ms = 0
    for look in range(16):
        # Looked at four times in an interval.
        waited_ms += every_ms // 4
        now_ms += every_ms // 4 + (jump_ms if look == jumps_at else 0)
        if is_due(now_ms, since_ms=since_ms, every_ms=every_ms):
            since_ms, waited_ms = now_ms, 0
        assert waited_ms <= 2.25 * every_ms
