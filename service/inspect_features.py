"""Check features of an archive against the live store, and backfill the store from the archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
from redis.asyncio import Redis

from service.adapters.parquet_archive import archived_position
from service.adapters.redis_store import RedisChangeLog, RedisModelStore, RedisUserStates, connect
from service.change_reader import read_stream
from service.config import Config
from service.count_items import counting_model
from service.errors import NotFound
from service.feature_check import CheckReport, FeatureChecker
from service.feedback import interaction_of
from service.inspect_log import read_archive
from service.item_history import ItemHistory
from service.items_view import ITEMS_STREAM
from service.journal_reader import position_of
from service.messages import Checkpoint, UserProfile, encode, item_change_decoder
from service.numerics import keyed_digest
from service.offline_features import OfflineStore
from service.ports import ChangeLog, ModelStore, UserStates

_BATCH = 1_000
_TIMEOUT_S = 30.0
_PROFILES = "hone:{u:*}:profile"


@dataclass(frozen=True, slots=True)
class Materialised:
    """How much was written."""

    n_items: int
    n_users: int
    n_interactions: int
    n_impressions: int


async def check_archive(config: Config, url: str, *, salt: bytes, every: int = 1) -> CheckReport:
    """Check every so many archived decisions, with the items stream and the profiles of the live store."""
    client = connect(url, timeout_s=_TIMEOUT_S)
    try:
        items = await read_items(RedisChangeLog(client))
        profiles = await _read_profiles(client, config, salt)
    finally:
        await client.aclose()
    folder = archive_folder(config)
    store = OfflineStore(config, folder)
    try:
        return FeatureChecker(config, store=store, items=items, profiles=profiles, salt=salt).check(
            islice(read_archive(folder), 0, None, every)
        )
    finally:
        store.close()


async def read_items(log: ChangeLog) -> ItemHistory:
    """Read the whole items stream."""
    items = ItemHistory()
    async for change in read_stream(log, ITEMS_STREAM):
        items.add(change.entry_id, item_change_decoder.decode(change.payload))
    return items


async def materialise(config: Config, url: str, *, user_ids: Sequence[str], salt: bytes) -> Materialised:
    """Write what the archive says into the online store.

    Raises:
        NotFound: there is no checkpoint, or the archive has not reached it.
    """
    client = connect(url, timeout_s=_TIMEOUT_S)
    store = OfflineStore(config, archive_folder(config))
    try:
        n_items = await materialise_statistics(config, store, RedisModelStore(client))
        n_interactions, n_impressions = await materialise_users(
            config, store, RedisUserStates(client, config.store), user_ids=user_ids, salt=salt
        )
    finally:
        store.close()
        await client.aclose()
    return Materialised(n_items, len(user_ids), n_interactions, n_impressions)


async def materialise_statistics(config: Config, store: OfflineStore, models: ModelStore) -> int:
    """Put recomputed item statistics into the checkpoint of the learner that counts, as of where it stands.

    The epoch that is taken ends a running learner; the next one publishes what it finds.

    Raises:
        NotFound: there is no checkpoint, or the archive has not reached it.
    """
    model = counting_model(config)
    if model is None:
        raise NotFound("no model that ranks is declared")
    epoch = await models.take_epoch(model)
    stored = await models.load_checkpoint(model)
    if stored is None:
        raise NotFound(f"no checkpoint of model {model!r} to put statistics into: start `hone learn` once")
    checkpoint = msgspec.msgpack.decode(stored, type=Checkpoint)
    for partition, entry_id in checkpoint.positions.items():
        if position_of(0, archived_position(archive_folder(config), int(partition))) < position_of(0, entry_id):
            raise NotFound(f"the archive has not reached {entry_id} of partition {partition}: run `hone archive`")
    as_of = max(position_of(int(p), entry_id) for p, entry_id in checkpoint.positions.items())
    stats = store.whole_statistics(as_of, at_ms=as_of[0])
    restored = msgspec.structs.replace(checkpoint, epoch=epoch, item_stats=encode(stats))
    await models.save_checkpoint(model, epoch, encode(restored))
    return len(stats.item_ids)


async def materialise_users(
    config: Config, store: OfflineStore, users: UserStates, *, user_ids: Sequence[str], salt: bytes
) -> tuple[int, int]:
    """Add the newest archived interactions and impressions of users again; what is there stays as it is."""
    n_interactions = n_impressions = 0
    for user_id in user_ids:
        key = keyed_digest(user_id, salt=salt)
        events = store.events_of(key, limit=config.store.recent_limit)
        recent = [interaction_of(e, item_id=e.item_id, config=config) for e in events if e.item_id is not None]
        if recent:
            await users.add_interactions({user_id: recent})
        shown = store.impressions_of(key, limit=config.store.impressions_limit)
        if shown:
            await users.add_impressions({user_id: shown})
        n_interactions += len(recent)
        n_impressions += len(shown)
    return n_interactions, n_impressions


def archive_folder(config: Config) -> Path:
    """Return where the archive is."""
    return config.data_path / "archive"


async def _read_profiles(client: Redis, config: Config, salt: bytes) -> dict[str, UserProfile]:
    """Return every profile by user key."""
    users = RedisUserStates(client, config.store)
    before, _, after = _PROFILES.partition("*")
    profiles = {}
    async for name in client.scan_iter(match=_PROFILES.replace("{", "[{]").replace("}", "[}]"), count=_BATCH):
        user_id = name.decode().removeprefix(before).removesuffix(after)
        profiles[keyed_digest(user_id, salt=salt)] = (await users.fetch(user_id)).profile
    return profiles
