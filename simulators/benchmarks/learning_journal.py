"""The journal that learners are measured on: slates that a real stack decided, under new ids, with their rewards.

Every decision is of a user with a taste of their own, as returning users are: nothing that a learner remembers of one
user's features helps it with the next. Contexts and items repeat as they do in the slates that were served.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from redis.asyncio import Redis

from service.adapters.embedded_store import store_url
from service.adapters.redis_store import RedisJournal, connect
from service.config import Config
from service.messages import Decision, Event, encode

# Written with ids of one's own, so that hours of journal time can be filled in seconds.
JOURNAL = "hone:{0}:journal"
N_SLOTS = 10
N_USERS = 5_000
_N_TEMPLATES = 400
_N_TASTES = 5
# Both are overwritten in the encoded decision; the lengths stay.
_ID, _ID_DIGITS = "bench-", 14
_NO_ID, _NO_TIME_MS = f"{_ID}{0:0{_ID_DIGITS}}", 1_700_000_000_000
_packed = msgspec.msgpack.Encoder().encode


async def fetch_templates(config: Config) -> list[Decision]:
    """Return decisions of full slates from the journal of a stack."""
    client = connect(store_url(config), timeout_s=30.0)
    found: list[Decision] = []
    decoder = msgspec.msgpack.Decoder(Decision)
    after = "0-0"
    while len(found) < _N_TEMPLATES:
        entries = (await RedisJournal(client, n_partitions=1).read({0: after}, count=200, block_ms=0)).get(0)
        if not entries:
            break
        after = entries[-1][0]
        # The tag stands near the beginning of an entry; events and probes are no slates.
        decisions = (decoder.decode(payload) for _, payload in entries if b"decision" in payload[:40])
        found += [decision for decision in decisions if len(decision.slots) == N_SLOTS]
    await client.aclose()
    return found[:_N_TEMPLATES]


class Slates:
    """Encoded decisions and their reward events, cheap enough to be written at thousands a second.

    Args:
        templates: of full slates.
        rewards_per_slate: so many of the slots get a reward event; the others are learned with the default.
        seed: of tastes and of which slots are rewarded.
    """

    def __init__(self, templates: Sequence[Decision], *, rewards_per_slate: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._rewards_per_slate = rewards_per_slate
        genres = sorted({name for t in templates for s in t.slots for name in s.features["item"] if "genre=" in name})
        self._payloads = [
            encode(self._of_user(templates[user % len(templates)], user, genres)) for user in range(N_USERS)
        ]

    def decide(self, number: int, at_ms: int) -> tuple[bytes, list[bytes]]:
        """Return the entry of a decision, and of its reward events."""
        user, event_id = number % N_USERS, f"{_ID}{number:0{_ID_DIGITS}}"
        entry = self._payloads[user].replace(_NO_ID.encode(), event_id.encode(), 1)
        entry = entry.replace(_packed(_NO_TIME_MS), _packed(at_ms), 1)
        slots = self._rng.permutation(N_SLOTS)[: self._rewards_per_slate].tolist()
        return entry, [encode(self._click(user, event_id, slot, at_ms)) for slot in slots]

    def _of_user(self, template: Decision, user: int, genres: Sequence[str]) -> Decision:
        liked = self._rng.choice(len(genres), size=_N_TASTES, replace=False)
        weights = self._rng.dirichlet(np.ones(_N_TASTES))
        taste = {f"taste={genres[genre]}": float(w) for genre, w in zip(liked, weights, strict=True)}
        return msgspec.structs.replace(
            template,
            event_id=_NO_ID,
            user_id=f"ml-{user}",
            user_key=f"key-{user}",
            decided_at_unix_ms=_NO_TIME_MS,
            features={**template.features, "user": {**template.features["user"], **taste}},
        )

    @staticmethod
    def _click(user: int, event_id: str, slot: int, at_ms: int) -> Event:
        return Event(
            accepted_at_unix_ms=at_ms,
            client_id=f"{event_id}-{slot}",
            event_type="click",
            event_id=event_id,
            user_id=f"ml-{user}",
            user_key=f"key-{user}",
            item_id=None,
            slot=slot,
            value=1.0,
            client_unix_ms=None,
        )


async def write_entries(client: Redis, entries: Sequence[tuple[str, bytes]]) -> None:
    """Append (id, entry) pairs to the journal in one round trip; the id is `*` or one's own."""
    pipeline = client.pipeline(transaction=False)
    for entry_id, entry in entries:
        pipeline.xadd(JOURNAL, {"e": entry}, id=entry_id)
    await pipeline.execute()
