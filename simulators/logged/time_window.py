"""The part of a log between two times."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """Half-open: a row at `start` is in it, one at `end` is not.

    Attributes:
        start: Of it, None for the beginning of the log.
        end: Of it, None for the end of the log.

    Raises:
        ValueError: on construction, when nothing can be in it.
    """

    start: datetime | None = None
    end: datetime | None = None

    def __post_init__(self) -> None:
        """Refuse a window that is empty."""
        if self.start is not None and self.end is not None and not self.start < self.end:
            raise ValueError(f"the start of a window must be before its end, got {self.start} and {self.end}")

    @classmethod
    def parse(cls, start: str, end: str) -> TimeWindow:
        """Read ISO dates or times, UTC where they name no zone; empty for none.

        Raises:
            ValueError: one of them is no date, or nothing can be between them.

        >>> TimeWindow.parse("2026-11-01", "").from_ms
        1793491200000
        """
        return cls(_parse("from", start), _parse("to", end))

    def __bool__(self) -> bool:
        return self.start is not None or self.end is not None

    @property
    def from_us(self) -> int:
        """Return unix microseconds of the start, 0 without one."""
        return 0 if self.start is None else (self.start - _EPOCH) // _US

    @property
    def to_us(self) -> int:
        """Return unix microseconds of the end, later than any log without one."""
        return 2**62 if self.end is None else (self.end - _EPOCH) // _US

    @property
    def from_ms(self) -> int:
        """Return the first whole unix millisecond in the window."""
        return -(-self.from_us // 1000)

    @property
    def to_ms(self) -> int:
        """Return the first whole unix millisecond after the window."""
        return -(-self.to_us // 1000)

    def __contains__(self, at: datetime) -> bool:
        return self.from_us <= (at - _EPOCH) // _US < self.to_us


ALL_TIME = TimeWindow()


def _parse(name: str, text: str) -> datetime | None:
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{name} must be an ISO date or time such as 2026-11-01, got {text!r}") from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)
