"""Change the catalogue and the users: validated here, durable in the store, applied by every worker from the stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bandit.features import FeatureSchema
from retrieval.items import Item
from service.errors import InvalidRequest
from service.feature_records import item_record
from service.items_view import ITEMS_STREAM
from service.messages import ItemDelete, ItemUpsert, UserProfile, encode
from service.ports import ChangeLog, UserStates
from service.wire import UserBody

_CHUNK = 1_000


class CatalogueWriter:
    """Puts items and users; every method returns when the store has it on disk."""

    def __init__(self, *, schema: FeatureSchema, log: ChangeLog, users: UserStates, clock: Callable[[], int]) -> None:
        self._schema = schema
        self._log = log
        self._users = users
        self._clock = clock

    def check_item(self, item: Item) -> None:
        """Refuse an item that features cannot be made of.

        Raises:
            InvalidRequest: an attribute is not of the declared kind.
        """
        try:
            self._schema.encode("item", item_record(item))
        except ValueError as error:
            raise InvalidRequest(str(error), path="$.attributes") from error

    async def put_items(self, items: Sequence[Item]) -> str:
        """Put items and return the position of the last in the stream."""
        last = "0-0"
        for start in range(0, len(items), _CHUNK):
            entries = [encode(ItemUpsert(item=item)) for item in items[start : start + _CHUNK]]
            last = (await self._log.append(ITEMS_STREAM, entries))[-1]
        return last

    async def delete_item(self, item_id: str) -> str:
        """Delete an item and return the position in the stream."""
        return (await self._log.append(ITEMS_STREAM, [encode(ItemDelete(item_id=item_id))]))[-1]

    async def put_users(self, users: Sequence[UserBody]) -> None:
        """Put user attributes."""
        for start in range(0, len(users), _CHUNK):
            profiles = {
                user.user_id: UserProfile(
                    birth_date=user.birth_date.isoformat() if user.birth_date else None,
                    country=user.country,
                    attributes=user.attributes,
                )
                for user in users[start : start + _CHUNK]
            }
            await self._users.put_profiles(profiles)

    async def erase_user(self, user_id: str) -> None:
        """Delete what is stored under a user's id, also what is on its way."""
        await self._users.erase(user_id, at_unix_ms=self._clock())
