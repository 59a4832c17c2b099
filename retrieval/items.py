"""What an item is: the one definition that the wire, the streams and every index share."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Attribute = str | float | bool | list[str]

MAX_ITEM_ID_BYTES = 256
# Every country that items name is a column of the catalogue: only what can be a country is taken.
Country = Annotated[str, Meta(pattern="^[A-Z]{2}$")]
# Until the year 9999; films and books are older than 1970.
UnixMs = Annotated[int, Meta(ge=-62_135_596_800_000, le=253_402_300_799_999)]


class Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One item of the catalogue, as its owner put it.

    Attributes:
        id: 1 to 256 bytes of UTF-8 without control characters.
        title: For people; never a feature.
        attributes: Named values that features and the content map read (`genres`, `language`, `year`, ...).
        creator: Who made it (a director, a channel); diversity rules count it.
        min_age: Smallest viewer age in years; None when the rating is unknown.
        regions: ISO 3166 country codes it may be shown in; None means everywhere.
        available_at_unix_ms: When it became available; freshness counts from here.
        expires_at_unix_ms: From when on it may not be shown any more.
        listed: False hides it everywhere without deleting it.
    """

    id: str
    title: str = ""
    attributes: dict[str, Attribute] = msgspec.field(default_factory=dict)
    creator: str | None = None
    min_age: Annotated[int, Meta(ge=0, le=150)] | None = None
    regions: list[Country] | None = None
    available_at_unix_ms: UnixMs | None = None
    expires_at_unix_ms: UnixMs | None = None
    listed: bool = True

    def __post_init__(self) -> None:
        """Refuse ids that could not be stored, logged or ordered.

        Raises:
            ValueError: the id is empty, too long or has control characters.
        """
        size = len(self.id.encode())
        if not 1 <= size <= MAX_ITEM_ID_BYTES:
            raise ValueError(f"item id must be 1 to {MAX_ITEM_ID_BYTES} bytes of UTF-8, got {size}")
        if not self.id.isprintable():
            raise ValueError(f"item id must have no control characters, got {self.id!r}")
