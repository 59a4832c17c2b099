"""How commands print JSON."""

from __future__ import annotations

import msgspec


def json_text(value: object) -> str:
    """Return indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
