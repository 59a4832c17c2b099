"""Take what happened: durable first, then the user's state, so that the next request sees it."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import structlog

from service.config import Config
from service.errors import InvalidRequest, StoreUnavailable
from service.failpoints import reach
from service.group_commit import GroupCommit
from service.messages import Erasure, Event, Interaction, encode
from service.metrics import Metrics
from service.numerics import keyed_digest
from service.ports import Journal, UserStates
from service.spool import Spool, SpoolEntry
from service.wire import AcceptedResponse, EventBody, Rejection, RewardBody

_log = structlog.get_logger("hone.feedback")


@dataclass(frozen=True, slots=True)
class _About:
    """Which user and item an event is about, as far as known."""

    user_id: str | None
    item_id: str | None


class Feedback:
    """The events use case of one worker.

    Args:
        clock: unix milliseconds.
        salt: secret key of user keys.
    """

    def __init__(
        self,
        *,
        config: Config,
        users: UserStates,
        journal: Journal,
        spool: Spool,
        metrics: Metrics,
        clock: Callable[[], int],
        salt: bytes,
    ) -> None:
        self._config = config
        self._users = users
        self._journal = journal
        self._spool = spool
        self._metrics = metrics
        self._clock = clock
        self._salt = salt
        self._commits = GroupCommit(self._commit)

    async def accept(self, bodies: Sequence[EventBody]) -> AcceptedResponse:
        """Accept a batch: an entry that cannot be used is rejected by itself, the others are durable on return.

        Raises:
            OSError: neither the journal nor the spool could be written; nothing is acknowledged.
        """
        events: list[Event] = []
        rejected: list[Rejection] = []
        seen: set[tuple[str, str]] = set()
        n_duplicate = 0
        for index, body in enumerate(bodies):
            try:
                _check(body)
            except InvalidRequest as error:
                rejected.append(Rejection(index=index, detail=error.detail, path=error.path))
                continue
            if body.id is not None:
                key = (body.type, body.id)
                if key in seen:
                    n_duplicate += 1
                    continue
                seen.add(key)
            events.append(self._event(body))
        if events:
            await self._commits.add(events)
            reach("feedback.acknowledge")
        for fate, count in (("accepted", len(events)), ("duplicate", n_duplicate), ("rejected", len(rejected))):
            self._metrics.events.labels(fate).inc(count)
        return AcceptedResponse(accepted=len(events), duplicate=n_duplicate, rejected=rejected)

    async def reward(self, body: RewardBody) -> AcceptedResponse:
        """Accept the plain form.

        Raises:
            InvalidRequest: it is not finite, or the slate has several items and neither slot nor item is given.
        """
        if not math.isfinite(body.reward):
            raise InvalidRequest(f"reward must be finite, got {body.reward}", path="$.reward")
        if body.slot is None and body.item_id is None and await self._slate_size(body.event_id) != 1:
            raise InvalidRequest("slot or item_id is needed unless the slate has one item", path="$.slot")
        event = EventBody(
            type="reward",
            id=body.id,
            event_id=body.event_id,
            slot=body.slot,
            item_id=body.item_id,
            value=body.reward,
        )
        return await self.accept([event])

    async def erase(self, user_id: str) -> None:
        """Journal that a user is to be forgotten; durable on return.

        Every partition gets the entry: it is then the last that its readers know of the user.

        Raises:
            StoreUnavailable: some partitions may have it; doing it again is safe.
        """
        erasure = Erasure(user_key=keyed_digest(user_id, salt=self._salt), at_unix_ms=self._clock())
        for partition in range(self._journal.n_partitions):
            reach("feedback.erase")
            await self._journal.append(partition, [encode(erasure)])
        reach("feedback.erased")

    async def _slate_size(self, event_id: str) -> int | None:
        (claim,) = await self._journal.claims([event_id])
        return None if claim is None else len(claim.summary.item_ids)

    def _event(self, body: EventBody) -> Event:
        return Event(
            accepted_at_unix_ms=self._clock(),
            # Retries of one shipment carry one id, so an event without an id of the caller still counts once.
            client_id=body.id or uuid.uuid4().hex,
            event_type=body.type,
            event_id=body.event_id,
            user_id=body.user_id,
            user_key=keyed_digest(body.user_id, salt=self._salt) if body.user_id else "",
            item_id=body.item_id,
            slot=body.slot,
            value=body.value,
            client_unix_ms=None if body.ts is None else int(body.ts.timestamp() * 1000),
        )

    async def _commit(self, requests: Sequence[Sequence[Event]]) -> list[OSError | None]:
        """Make the events of several requests durable and known, and return what kept each request from it."""
        refused = await self._journal_or_spool(requests)
        kept = [event for events, error in zip(requests, refused, strict=True) if error is None for event in events]
        if kept:
            reach("feedback.users")
            await self._update_users(kept)
        return refused

    async def _journal_or_spool(self, requests: Sequence[Sequence[Event]]) -> list[OSError | None]:
        refused: list[OSError | None] = [None] * len(requests)
        by_partition: dict[int, list[tuple[int, bytes]]] = {}
        for index, events in enumerate(requests):
            for event in events:
                partition = self._journal.partition_of(event.event_id or event.user_key)
                by_partition.setdefault(partition, []).append((index, encode(event)))
        for partition, entries in by_partition.items():
            reach("feedback.journal")
            try:
                await self._journal.append(partition, [payload for _, payload in entries])
            except StoreUnavailable as error:
                _log.warning("feedback.spooled", error=str(error), n_events=len(entries))
                reach("feedback.spool")
                for index, of_request in groupby(entries, key=itemgetter(0)):
                    spooled = [SpoolEntry(payload=payload, partition=partition) for _, payload in of_request]
                    try:
                        self._spool.append_synced(spooled)
                        self._metrics.events.labels("spooled").inc(len(spooled))
                    except OSError as no_spool:
                        refused[index] = no_spool
            reach("feedback.journaled")
        return refused

    async def _update_users(self, events: Sequence[Event]) -> None:
        """Add the interactions eagerly; the learner adds the same ones again, so a failure here only delays them."""
        try:
            abouts = await self._resolve(events)
            by_user: dict[str, list[Interaction]] = {}
            for event, about in zip(events, abouts, strict=True):
                if about.user_id is not None and about.item_id is not None:
                    interaction = interaction_of(event, item_id=about.item_id, config=self._config)
                    by_user.setdefault(about.user_id, []).append(interaction)
            if by_user:
                await self._users.add_interactions(by_user)
        except StoreUnavailable:
            self._metrics.user_state_failures.labels("add").inc()

    async def _resolve(self, events: Sequence[Event]) -> list[_About]:
        """Say who and what each event is about, asking for the decisions of those that do not tell."""
        open_ids = sorted({e.event_id for e in events if e.event_id and (e.user_id is None or e.item_id is None)})
        claims = dict(zip(open_ids, await self._journal.claims(open_ids) if open_ids else (), strict=True))
        abouts = []
        for event in events:
            claim = claims.get(event.event_id or "")
            user_id, item_id = event.user_id, event.item_id
            if claim is not None:
                user_id = user_id or claim.summary.user_id
                slate = claim.summary.item_ids
                if item_id is None and event.slot is not None and event.slot < len(slate):
                    item_id = slate[event.slot]
            abouts.append(_About(user_id=user_id, item_id=item_id))
        return abouts


def interaction_of(event: Event, *, item_id: str, config: Config) -> Interaction:
    """Return what a user's recent interactions keep of an event; the same event gives the same bytes.

    Its worth is the one of the first declared surface that names the event's type.
    """
    worth = None
    for surface in config.surfaces.values():
        worth = surface.reward.reward(event.event_type, event.value)
        if worth is not None:
            break
    return Interaction(
        item_id=item_id,
        event_type=event.event_type,
        reward=worth,
        at_unix_ms=event.accepted_at_unix_ms,
        client_id=event.client_id,
    )


def _check(body: EventBody) -> None:
    if not math.isfinite(body.value):
        raise InvalidRequest(f"value must be finite, got {body.value}", path="$.value")
    if body.event_id is None and (body.user_id is None or body.item_id is None):
        raise InvalidRequest("an event needs event_id, or user_id and item_id", path="$.event_id")
    if body.event_id is not None and body.slot is None and body.item_id is None and body.type != "reward":
        raise InvalidRequest("an event of a decision needs slot or item_id", path="$.slot")
