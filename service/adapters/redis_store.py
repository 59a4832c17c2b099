"""The ports on Redis 7+ or Valkey 8+: streams, hashes and small scripts, each within one cluster slot."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b, sha1
from mmap import mmap
from typing import Any, cast

import hiredis
import msgspec
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from service.config import StoreConfig
from service.errors import Fenced, StoreUnavailable
from service.messages import (
    Impression,
    Interaction,
    LearnerProgress,
    UserProfile,
    encode,
    progress_decoder,
    summary_decoder,
)
from service.ports import Claim, Entry, Shipment, UserState
from service.user_members import impression_member, impression_of

# Append the shipments of one origin in one step: each unless it arrived before or its event id is claimed; answers the
# claims that hold, nothing for an event.
# KEYS: journal, number that arrived last, for each shipment its decision key, or the journal for an event.
# ARGV: how long the number is kept in ms, for each shipment number, entry, summary, ttl ms.
_SHIP = """
local before = tonumber(redis.call('GET', KEYS[2]) or '0')
local arrived, answers = before, {}
for k = 3, #KEYS do
    local at = 4 * k - 10
    local number, answer = tonumber(ARGV[at]), {}
    local is_old = number > 0 and number <= arrived
    local held = KEYS[k] ~= KEYS[1] and redis.call('HMGET', KEYS[k], 'id', 'summary') or {}
    if held[1] then
        answer = {held[1], held[2], 0}
    elseif not is_old then
        local id = redis.call('XADD', KEYS[1], '*', 'e', ARGV[at + 1])
        if KEYS[k] ~= KEYS[1] then
            redis.call('HSET', KEYS[k], 'id', id, 'summary', ARGV[at + 2])
            redis.call('PEXPIRE', KEYS[k], ARGV[at + 3])
            answer = {id, ARGV[at + 2], 1}
        end
    end
    if number > arrived then arrived = number end
    answers[k - 2] = answer
end
if arrived > before then redis.call('SET', KEYS[2], string.format('%d', arrived), 'PX', ARGV[1]) end
return answers
"""
# A spool may be found on a disk long after its worker died.
_ARRIVED_MS = 366 * 86_400_000
# KEYS: epoch, checkpoint, progress. ARGV: epoch, their values.
_FENCED_CHECKPOINT = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('FENCED') end
redis.call('SET', KEYS[2], ARGV[2])
redis.call('SET', KEYS[3], ARGV[3])
return 'OK'
"""
_FENCED_ADD = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('FENCED') end
return redis.call('XADD', KEYS[2], '*', 'e', ARGV[2])
"""
_FENCED_LEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('FENCED') end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return 'OK'
"""
_FENCED_DELETE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('FENCED') end
return redis.call('DEL', KEYS[2])
"""
# KEYS: epoch. ARGV: the least that it may be.
_NEXT_EPOCH = """
local epoch = math.max(redis.call('INCR', KEYS[1]), tonumber(ARGV[1]))
redis.call('SET', KEYS[1], string.format('%d', epoch))
return epoch
"""
# KEYS: epoch, stream. ARGV: epoch, entry, 1 to drop what came before it.
_FENCED_PUBLISH = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('FENCED') end
local id = redis.call('XADD', KEYS[2], '*', 'e', ARGV[2])
if ARGV[3] == '1' then redis.call('XTRIM', KEYS[2], 'MINID', id) end
return id
"""
# One earlier snapshot is kept, and the deltas since. A snapshot at the position of the present one replaces it: written
# twice, it must not become its own predecessor.
# KEYS: epoch, snapshot, earlier snapshot, position, stream. ARGV: epoch, snapshot, its position in the stream.
_FENCED_SNAPSHOT = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('FENCED') end
local before = redis.call('GET', KEYS[4])
if before ~= ARGV[3] then
  if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('RENAME', KEYS[2], KEYS[3]) end
  if before then redis.call('XTRIM', KEYS[5], 'MINID', before) end
end
redis.call('SET', KEYS[2], ARGV[2])
redis.call('SET', KEYS[4], ARGV[3])
return 'OK'
"""

# Add members that are newer than the user's erasure, and keep the newest of each set.
# KEYS: erasure, sorted sets. ARGV for each set: limit, ttl s, members. Those are one argument, each score and member by
# turns with the member's length before it: the client spends more time on an argument than the store on a member.
_ADD_NEWER = """
local erased = tonumber(redis.call('GET', KEYS[1]) or '-inf')
for k = 2, #KEYS do
    local limit, ttl, members, at = ARGV[3 * k - 5], ARGV[3 * k - 4], ARGV[3 * k - 3], 1
    while at <= #members do
        local score, member
        score, member, at = struct.unpack('>dI4c0', members, at)
        if score > erased then redis.call('ZADD', KEYS[k], score, member) end
    end
    redis.call('ZREMRANGEBYRANK', KEYS[k], 0, -limit - 1)
    redis.call('EXPIRE', KEYS[k], ttl)
end
"""
_MEMBER_HEADER = struct.Struct(">dI")
# The store knows a script that it has seen by its digest.
_SHIP_SHA, _ADD_NEWER_SHA = (sha1(text.encode(), usedforsecurity=False).hexdigest() for text in (_SHIP, _ADD_NEWER))

_PIECE_BYTES = 524_288
_HEAD_BYTES = 256

_profile_decoder = msgspec.msgpack.Decoder(UserProfile)
_interaction_decoder = msgspec.msgpack.Decoder(Interaction)


def connect(url: str, *, timeout_s: float | None) -> Redis:
    """Return a client without retries of its own: a write that timed out may have happened.

    Args:
        url: Redis URL.
        timeout_s: Longest wait for an answer; None for blocking reads.
    """
    pool = ConnectionPool.from_url(
        url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s or 5.0, retry=Retry(NoBackoff(), 0)
    )
    pool.connection_class = _packing(pool.connection_class)
    return Redis.from_pool(pool)


def _packing(connection_class: type[AbstractConnection]) -> type[AbstractConnection]:
    """Return a class of connections that pack commands in C, as the client without asyncio does; 10 times faster."""

    class Packing(connection_class):  # type: ignore[misc,valid-type] # a class of the URL's scheme
        def pack_command(self, *args: Any) -> list[bytes]:  # noqa: ANN401 - what redis-py takes
            command = args[0].encode() if isinstance(args[0], str) else args[0]
            return [hiredis.pack_command((*command.split(), *args[1:]))]

    return Packing


@asynccontextmanager
async def _store_errors() -> AsyncIterator[None]:
    try:
        yield
    except ResponseError as error:
        if "FENCED" in str(error):
            raise Fenced("a newer learner has taken over") from error
        raise StoreUnavailable(str(error)) from error
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"{type(error).__name__}: {error}") from error


class RedisJournal:
    """`Journal` on streams `hone:{p}:journal`."""

    def __init__(self, client: Redis, *, n_partitions: int) -> None:
        self._client = client
        self.n_partitions = n_partitions

    def partition_of(self, event_id: str) -> int:
        """Return blake2b(event_id) mod P."""
        return int.from_bytes(blake2b(event_id.encode(), digest_size=8).digest(), "little") % self.n_partitions

    async def ship(self, shipments: Sequence[Shipment]) -> list[Claim | None]:
        """Claim, number and append in one pipelined round trip."""
        # Places in `shipments` by partition and origin: what one script takes.
        together: dict[tuple[int, str], list[int]] = {}
        for place, shipment in enumerate(shipments):
            partition = self.partition_of(shipment.event_id) if shipment.event_id else shipment.partition
            together.setdefault((partition, shipment.origin), []).append(place)

        def fill(pipeline: Pipeline) -> None:
            for (partition, origin), places in together.items():
                journal = _journal_key(partition)
                keys = [journal, f"hone:{{{partition}}}:arrived:{origin}"]
                arguments: list[str | bytes] = [str(_ARRIVED_MS)]
                for shipment in (shipments[place] for place in places):
                    keys.append(_decision_key(partition, shipment.event_id) if shipment.event_id else journal)
                    arguments += (str(shipment.number), shipment.entry, shipment.summary, str(shipment.ttl_ms))
                pipeline.evalsha(_SHIP_SHA, len(keys), *keys, *arguments)

        claims: list[Claim | None] = [None] * len(shipments)
        async with _store_errors():
            by_script = await _run_script(self._client, _SHIP, fill)
        for places, answers in zip(together.values(), by_script, strict=True):
            for place, answer in zip(places, answers, strict=True):
                if answer:
                    claims[place] = _claim(answer[0], answer[1], is_new=bool(answer[2]))
        return claims

    async def append(self, partition: int, entries: Sequence[bytes]) -> list[str]:
        """Append in one pipelined round trip."""
        async with _store_errors():
            return await _append(self._client, _journal_key(partition), entries)

    async def read(self, after: Mapping[int, str], *, count: int, block_ms: int) -> dict[int, list[tuple[str, bytes]]]:
        """Read with XREAD; the reader keeps its own position, no consumer group does."""
        names = {_journal_key(partition).encode(): partition for partition in after}
        streams: dict[Any, Any] = {_journal_key(partition): entry_id for partition, entry_id in after.items()}
        async with _store_errors():
            answer = await _xread(self._client, streams, count=count, block_ms=block_ms)
        return {names[name]: [(i.decode(), fields[b"e"]) for i, fields in entries] for name, entries in answer}

    async def claims(self, event_ids: Sequence[str]) -> list[Claim | None]:
        """Look claims up in one pipelined round trip."""
        async with _store_errors():
            pipeline = self._client.pipeline(transaction=False)
            for event_id in event_ids:
                pipeline.hmget(_decision_key(self.partition_of(event_id), event_id), "id", "summary")
            answers = await pipeline.execute()
        return [None if a[0] is None else _claim(a[0], a[1], is_new=False) for a in answers]

    async def entry(self, partition: int, journal_id: str) -> bytes | None:
        """Read one entry with XRANGE."""
        async with _store_errors():
            found: Any = await self._client.xrange(_journal_key(partition), min=journal_id, max=journal_id)
        return found[0][1][b"e"] if found else None

    async def trim(self, partition: int, before: str) -> int:
        """Trim with MINID."""
        async with _store_errors():
            return int(await self._client.xtrim(_journal_key(partition), minid=before, approximate=False))


class RedisChangeLog:
    """`ChangeLog` on plain streams."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def append(self, stream: str, entries: Sequence[bytes]) -> list[str]:
        """Append in one pipelined round trip."""
        async with _store_errors():
            return await _append(self._client, stream, entries)

    async def read(self, after: Mapping[str, str], *, count: int, block_ms: int) -> list[Entry]:
        """Read with XREAD."""
        async with _store_errors():
            answer = await _xread(self._client, dict(after), count=count, block_ms=block_ms)
        return [
            Entry(stream=name.decode(), entry_id=entry_id.decode(), payload=fields[b"e"])
            for name, entries in answer
            for entry_id, fields in entries
        ]

    async def trim(self, stream: str, before: str) -> int:
        """Trim with MINID."""
        async with _store_errors():
            return int(await self._client.xtrim(stream, minid=before, approximate=False))

    async def take_epoch(self, stream: str, *, at_least: int) -> int:
        """Increment the epoch of the stream, which lies in its cluster slot."""
        async with _store_errors():
            return int(await self._client.eval(_NEXT_EPOCH, 1, _epoch_key(stream), str(at_least)))

    async def publish(self, stream: str, epoch: int, entry: bytes, *, is_whole: bool) -> None:
        """Append and trim under the fence."""
        async with _store_errors():
            await self._client.eval(
                _FENCED_PUBLISH, 2, _epoch_key(stream), stream, str(epoch), entry, str(int(is_whole))
            )


class RedisUserStates:
    """`UserStates` on keys `hone:{u:<user_id>}:...`: a string for the profile, sorted sets by accept time."""

    def __init__(self, client: Redis, config: StoreConfig) -> None:
        self._client = client
        self._config = config

    async def fetch(self, user_id: str) -> UserState:
        """Fetch everything in one pipelined round trip."""
        prefix = _user_prefix(user_id)
        async with _store_errors():
            pipeline = self._client.pipeline(transaction=False)
            pipeline.get(f"{prefix}profile")
            pipeline.zrange(f"{prefix}recent", 0, -1)
            pipeline.zrange(f"{prefix}consumed", 0, -1)
            pipeline.zrange(f"{prefix}impressions", 0, -1, withscores=True)
            profile, recent, consumed, impressions = await pipeline.execute()
        return UserState(
            profile=_profile_decoder.decode(profile) if profile else UserProfile(),
            recent=[_interaction_decoder.decode(member) for member in recent],
            consumed=frozenset(member.decode() for member in consumed),
            impressions=tuple(impression_of(member, int(at_ms)) for member, at_ms in impressions),
        )

    async def add_interactions(self, interactions: Mapping[str, Sequence[Interaction]]) -> None:
        """Add members and drop the oldest beyond the limits, in one round trip for all users."""
        config = self._config

        def fill(pipeline: Pipeline) -> None:
            for user_id, of_user in interactions.items():
                recent = [(i.at_unix_ms, encode(i)) for i in of_user]
                consumed = [(i.at_unix_ms, i.item_id.encode()) for i in of_user if (i.reward or 0.0) > 0.0]
                sets = [("recent", config.recent_limit, config.user_state_ttl_s, recent)]
                if consumed:
                    sets.append(("consumed", config.consumed_limit, config.consumed_ttl_s, consumed))
                _add_newer(pipeline, user_id, sets)

        async with _store_errors():
            await _run_script(self._client, _ADD_NEWER, fill)

    async def add_impressions(self, impressions: Mapping[str, Sequence[Impression]]) -> None:
        """Add members and drop the oldest beyond the limit, in one round trip for all users."""
        limit, ttl_s = self._config.impressions_limit, self._config.impressions_ttl_s

        def fill(pipeline: Pipeline) -> None:
            for user_id, shown in impressions.items():
                members = [(i.shown_at_unix_ms, impression_member(i)) for i in shown]
                _add_newer(pipeline, user_id, [("impressions", limit, ttl_s, members)])

        async with _store_errors():
            await _run_script(self._client, _ADD_NEWER, fill)

    async def put_profiles(self, profiles: Mapping[str, UserProfile]) -> None:
        """Set all in one pipelined round trip."""
        async with _store_errors():
            pipeline = self._client.pipeline(transaction=False)
            for user_id, profile in profiles.items():
                pipeline.set(f"{_user_prefix(user_id)}profile", encode(profile))
            await pipeline.execute()

    async def erase(self, user_id: str, *, at_unix_ms: int) -> None:
        """Delete the user's keys and note when, in one transaction."""
        config, prefix = self._config, _user_prefix(user_id)
        longest_s = max(config.user_state_ttl_s, config.consumed_ttl_s, config.impressions_ttl_s)
        async with _store_errors():
            pipeline = self._client.pipeline(transaction=True)
            pipeline.delete(*(f"{prefix}{name}" for name in ("profile", "recent", "consumed", "impressions")))
            pipeline.set(f"{prefix}erased", at_unix_ms, ex=longest_s)
            await pipeline.execute()


class RedisModelStore:
    """`ModelStore` on keys that share the hash tag `{<model>}`."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    def weights_stream(self, model: str) -> str:
        """Return `hone:weights:{<model>}`."""
        return f"hone:weights:{{{model}}}"

    async def take_epoch(self, model: str) -> int:
        """Increment the epoch."""
        async with _store_errors():
            return int(await self._client.incr(_epoch_key(model)))

    async def hold_lease(self, model: str, epoch: int, *, lease_ms: int) -> None:
        """Set under the fence, with its end as expiry."""
        await self._fenced(_FENCED_LEASE, [_epoch_key(model), _lease_key(model)], epoch, str(lease_ms))

    async def release_lease(self, model: str, epoch: int) -> None:
        """Delete under the fence."""
        await self._fenced(_FENCED_DELETE, [_epoch_key(model), _lease_key(model)], epoch)

    async def lease_holder(self, model: str) -> int | None:
        """Get it."""
        async with _store_errors():
            found: Any = await self._client.get(_lease_key(model))
        return None if found is None else int(found)

    async def save_checkpoint(self, model: str, epoch: int, checkpoint: bytes) -> None:
        """Set under the fence, with the few fields that are asked for often in a key of their own."""
        keys = [_epoch_key(model), f"hone:checkpoint:{{{model}}}", f"hone:progress:{{{model}}}"]
        await self._fenced(_FENCED_CHECKPOINT, keys, epoch, checkpoint, encode(progress_decoder.decode(checkpoint)))

    async def load_checkpoint(self, model: str) -> bytes | None:
        """Get it."""
        async with _store_errors():
            found: Any = await self._client.get(f"hone:checkpoint:{{{model}}}")
            return cast("bytes | None", found)

    async def load_progress(self, model: str) -> LearnerProgress | None:
        """Get it."""
        async with _store_errors():
            found: Any = await self._client.get(f"hone:progress:{{{model}}}")
        return None if found is None else progress_decoder.decode(found)

    async def publish_delta(self, model: str, epoch: int, delta: bytes) -> str:
        """Append under the fence."""
        answer = await self._fenced(_FENCED_ADD, [_epoch_key(model), self.weights_stream(model)], epoch, delta)
        entry_id: str = answer.decode()
        return entry_id

    async def publish_snapshot(self, model: str, epoch: int, snapshot: bytes) -> None:
        """Set under the fence, keep the one before it, and trim the deltas that one includes."""
        stream_id = msgspec.msgpack.decode(snapshot)["stream_id"]
        current = _snapshot_key(model)
        keys = [_epoch_key(model), current, f"{current}:earlier", f"{current}:position", self.weights_stream(model)]
        await self._fenced(_FENCED_SNAPSHOT, keys, epoch, snapshot, stream_id)

    async def last_delta(self, model: str) -> tuple[str, bytes] | None:
        """Read the newest entry with XREVRANGE."""
        async with _store_errors():
            found: Any = await self._client.xrevrange(self.weights_stream(model), count=1)
        return (found[0][0].decode(), found[0][1][b"e"]) if found else None

    async def load_snapshot(self, model: str) -> bytes | memoryview | None:
        """Get it in pieces."""
        async with _store_errors():
            return await _get_in_pieces(self._client, f"hone:snapshot:{{{model}}}")

    async def put_artefact(self, model: str, artefact_id: str, artefact: bytes) -> None:
        """Set it if it is not there, and its name, in one transaction."""
        async with _store_errors():
            pipeline = self._client.pipeline(transaction=True)
            pipeline.set(f"hone:artefact:{{{model}}}:{artefact_id}", artefact, nx=True)
            pipeline.sadd(f"hone:artefacts:{{{model}}}", artefact_id)
            await pipeline.execute()

    async def load_artefact(self, model: str, artefact_id: str) -> bytes | None:
        """Get it."""
        async with _store_errors():
            found: Any = await self._client.get(f"hone:artefact:{{{model}}}:{artefact_id}")
            return cast("bytes | None", found)

    async def load_earlier_snapshot(self, model: str) -> bytes | None:
        """Get it."""
        async with _store_errors():
            found: Any = await self._client.get(f"{_snapshot_key(model)}:earlier")
            return cast("bytes | None", found)

    async def artefact_ids(self, model: str) -> list[str]:
        """Read the set of names."""
        async with _store_errors():
            found: Any = await cast("Any", self._client.smembers(f"hone:artefacts:{{{model}}}"))
            return sorted(name.decode() for name in found)

    async def _fenced(self, script: str, keys: list[str], epoch: int, *arguments: bytes | str) -> Any:  # noqa: ANN401
        async with _store_errors():
            return await self._client.eval(script, len(keys), *keys, str(epoch), *arguments)


class RedisHealthBoard:
    """`HealthBoard` on one key."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def publish(self, verdict: bytes, *, ttl_ms: int) -> None:
        """Set with an expiry."""
        async with _store_errors():
            await self._client.set("hone:health", verdict, px=ttl_ms)

    async def fetch(self) -> bytes | None:
        """Get it."""
        async with _store_errors():
            found: Any = await self._client.get("hone:health")
            return cast("bytes | None", found)


def _claim(journal_id: bytes, summary: bytes, *, is_new: bool) -> Claim:
    return Claim(journal_id=journal_id.decode(), summary=summary_decoder.decode(summary), is_new=is_new)


def _decision_key(partition: int, event_id: str) -> str:
    return f"hone:{{{partition}}}:decision:{event_id}"


def _journal_key(partition: int) -> str:
    return f"hone:{{{partition}}}:journal"


def _user_prefix(user_id: str) -> str:
    return f"hone:{{u:{user_id}}}:"


def _add_newer(
    pipeline: Pipeline, user_id: str, sets: Sequence[tuple[str, int, int, Sequence[tuple[int, bytes]]]]
) -> None:
    """Add (score, member) pairs to sets of a user: name, limit, time to live in seconds, pairs."""
    prefix = _user_prefix(user_id)
    keys = [f"{prefix}erased", *(f"{prefix}{name}" for name, *_ in sets)]
    arguments: list[str | bytes] = []
    for _, limit, ttl_s, members in sets:
        packed = b"".join(_MEMBER_HEADER.pack(score, len(member)) + member for score, member in members)
        arguments += (str(limit), str(ttl_s), packed)
    pipeline.evalsha(_ADD_NEWER_SHA, len(keys), *keys, *arguments)


def _snapshot_key(model: str) -> str:
    return f"hone:snapshot:{{{model}}}"


def _epoch_key(name: str) -> str:
    """Return the epoch of a model, or of a stream: in the cluster slot of what is named so."""
    return f"hone:epoch:{{{name}}}"


def _lease_key(model: str) -> str:
    return f"hone:lease:{{{model}}}"


async def _run_script(client: Redis, script: str, fill: Callable[[Pipeline], None]) -> list[Any]:
    """Run a pipeline of calls of one script by its digest, in one round trip."""
    for is_known in (False, True):
        pipeline = client.pipeline(transaction=False)
        fill(pipeline)
        try:
            return await pipeline.execute()
        except NoScriptError:
            # The server never saw it, or has restarted and forgot it; nothing of the pipeline was executed.
            if is_known:
                raise
            await client.script_load(script)
    raise AssertionError


async def _append(client: Redis, stream: str, entries: Sequence[bytes]) -> list[str]:
    pipeline = client.pipeline(transaction=False)
    for entry in entries:
        pipeline.xadd(stream, {"e": entry})
    return [entry_id.decode() for entry_id in await pipeline.execute()]


async def _xread(client: Redis, streams: dict[Any, Any], *, count: int, block_ms: int) -> list[Any]:
    answer = await client.xread(streams, count=count, block=block_ms or None)
    # RESP3 answers a mapping of lists of lists, RESP2 pairs.
    if isinstance(answer, dict):
        return [(name, batches[0]) for name, batches in answer.items()]
    return answer or []


async def _get_in_pieces(client: Redis, key: str) -> bytes | memoryview | None:
    """Return a value read piece by piece: one reply of many megabytes would hold the event loop while it is copied."""
    while True:
        pipeline = client.pipeline(transaction=True)
        pipeline.strlen(key)
        pipeline.getrange(key, 0, _PIECE_BYTES - 1)
        n_bytes, head = await pipeline.execute()
        if not n_bytes:
            return None
        if len(head) == n_bytes:
            return bytes(head)
        # Unlike a bytearray, its pages are only touched as they are filled.
        value = memoryview(mmap(-1, n_bytes))
        value[: len(head)] = head
        for start in range(_PIECE_BYTES, n_bytes, _PIECE_BYTES):
            piece: Any = await client.getrange(key, start, start + _PIECE_BYTES - 1)
            value[start : start + len(piece)] = piece
        # A value that was replaced meanwhile tells so in its first bytes: they hold the epoch and the version.
        if await client.getrange(key, 0, _HEAD_BYTES - 1) == head[:_HEAD_BYTES]:
            return value
