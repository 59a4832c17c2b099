"""How commands print JSON and read times."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec


def json_text(value: object) -> str:
    """Return indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def unix_ms(option: str, text: str) -> int:
    """Return unix milliseconds of an ISO time; without an offset it is UTC.

    Raises:
        ValueError: it is not one.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{option} must be an ISO time such as 2026-11-22T13:00, got {text!r}") from error
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
