"""Answer a recommendation: the one place where retrieval's candidates become the bandit's actions.

Path: user state -> candidates -> eligibility -> scores -> slate -> spool -> response. One store call is awaited (a
second only to claim an event id that the caller chose); everything between it and the spool runs without yielding, on
one snapshot of catalogue, model and configuration.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

import msgspec
import numpy as np

from bandit.features import UnfitValue
from bandit.randomness import build_generator, draw_uniforms
from bandit.rules import Discovery
from bandit.slate import ActionSet, ExplorerPmf, SlateWalk, draw_slate
from bandit.slot import SlotDraw
from retrieval.filters import Viewer
from service.config import Campaign, Config, SurfaceConfig, explorer_of
from service.decision_record import build_slot, pack_actions, pack_shortlisted, response_of, seal
from service.errors import Conflict, InvalidRequest, StoreUnavailable
from service.explain import find_decision
from service.failpoints import reach
from service.feature_records import (
    check_context,
    context_record,
    liked_items,
    profile_digest,
    seconds_since,
    state_showings,
    tired_of,
    user_record,
    viewer_age,
)
from service.items_view import ItemsView
from service.live_config import Effective, LiveConfig
from service.messages import Decision, DecisionSummary, UserProfile, Versions, encode
from service.metrics import Metrics
from service.numerics import build_event_id, keyed_digest, numerics_fingerprint
from service.ports import Claim, Journal, UserState, UserStates
from service.ranking import ColumnRequest, rank, rank_described
from service.retriever import CandidateQuery, Candidates
from service.rule_columns import SHOWING_COLUMNS, RequestColumns, columns_of
from service.served_explorer import ServedExplorer
from service.served_model import ServedModel
from service.sessions import Showings, distinct_interactions
from service.spool import Spool, SpoolEntry
from service.wire import InlineAction, RecommendRequest, RecommendResponse

NOBODY = UserState(profile=UserProfile(), recent=(), consumed=frozenset())
# An event id answers with its first response for at least this long.
MIN_CLAIM_MS = 3_600_000


class Recommender:
    """The recommend use case of one worker.

    Args:
        clock: unix milliseconds.
        salt: secret key of randomness and user keys.
        new_event_id: names a decision made at a time whose caller named none.
        timer: seconds, for the latencies that are logged.
    """

    def __init__(
        self,
        *,
        live: LiveConfig,
        items: ItemsView,
        models: Mapping[str, ServedModel],
        explorers: Mapping[str, ServedExplorer],
        users: UserStates,
        journal: Journal,
        spool: Spool,
        metrics: Metrics,
        clock: Callable[[], int],
        salt: bytes,
        new_event_id: Callable[[int], str] = build_event_id,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._live = live
        # What cannot change live.
        self._schema = live.current.config.features
        self._timeout_s = live.current.config.store.timeout_s
        self._items = items
        self._models = models
        self._explorers = explorers
        self._users = users
        self._journal = journal
        self._spool = spool
        self._metrics = metrics
        self._clock = clock
        self._salt = salt
        self._new_event_id = new_event_id
        self._timer = timer

    async def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """Answer one request.

        Raises:
            InvalidRequest: a field cannot be used.
            Conflict: the event id was answered for another request.
        """
        effective = self._live.current
        surface = self._check(request, effective.config)
        started = self._timer()
        now_ms = self._clock()
        degraded: list[str] = []
        state = await self._fetch_state(request.user_id, degraded)
        fetched = self._timer()
        decision = self._decide(request, effective, state, now_ms, degraded)
        decision.latency_ms["state"] = (fetched - started) * 1e3
        return await self._record(request, surface, decision)

    async def _fetch_state(self, user_id: str | None, degraded: list[str]) -> UserState:
        if user_id is None:
            return NOBODY
        try:
            async with asyncio.timeout(self._timeout_s):
                state = await self._users.fetch(user_id)
        except (StoreUnavailable, TimeoutError):
            self._metrics.user_state_failures.labels("fetch").inc()
            degraded.append("features")
            return NOBODY
        return msgspec.structs.replace(state, recent=distinct_interactions(state.recent))

    def _check(self, request: RecommendRequest, config: Config) -> SurfaceConfig:
        surface = config.surfaces.get(request.surface)
        if surface is None:
            known = ", ".join(sorted(config.surfaces))
            raise InvalidRequest(f"unknown surface {request.surface!r}, declared are {known}", path="$.surface")
        if request.n > surface.max_n:
            raise InvalidRequest(f"n must be at most {surface.max_n} on this surface, got {request.n}", path="$.n")
        if request.candidates is None and request.n > len(self._items.catalogue):
            size = len(self._items.catalogue)
            raise InvalidRequest(f"n must not exceed the catalogue's {size} items, got {request.n}", path="$.n")
        check_context(request.context)
        return surface

    def _decide(
        self, request: RecommendRequest, effective: Effective, state: UserState, now_ms: int, degraded: list[str]
    ) -> Decision:
        """Retrieve, score and draw: no await from here to the spool."""
        surface = effective.config.surfaces[request.surface]
        event_id = request.event_id or self._new_event_id(now_ms)
        model = self._models[self._model_of(request, surface, event_id)]
        watch = _Stopwatch(self._timer)
        running = self._running(surface, now_ms)
        query = self._query(request, surface, state, [row for _, row in running], now_ms)
        shown = state_showings(state, schema=self._schema, now_ms=now_ms)
        named = self._named_features(request, state, shown, now_ms)
        candidates, described = self._candidates(request, surface, query, event_id, degraded)
        watch.lap("candidates")
        wanted = self._columns(surface, running, shown, now_ms)
        if described:
            ranked = rank_described(self._items, model, named, candidates, described, wanted)
        else:
            ranked = rank(self._items, model, named, candidates, wanted)
        watch.lap("score")
        explorer = self._explorers.get(explorer_of(surface))
        explore = explorer.ask(named, ranked.features) if explorer else None
        walk, draws, discovery_probability = self._draw(request, surface, ranked.actions, event_id, now_ms, explore)
        watch.lap("slate")
        for part in degraded:
            self._metrics.degraded.labels(part).inc()
        slots = [build_slot(draw, ranked, self._schema, self._items.catalogue.item) for draw in draws]
        decision = Decision(
            event_id=event_id,
            decided_at_unix_ms=now_ms,
            surface=request.surface,
            model=model.name,
            user_id=request.user_id,
            user_key=keyed_digest(request.user_id, salt=self._salt) if request.user_id else "",
            digest=blake2b(msgspec.json.encode(request, order="deterministic"), digest_size=16).hexdigest(),
            context=request.context,
            seed_item_id=request.seed_item_id,
            recent_ids=[interaction.client_id for interaction in state.recent],
            recent_at_unix_ms=[interaction.at_unix_ms for interaction in state.recent],
            impression_ids=list(dict.fromkeys(shown.event_id for shown in state.impressions)),
            profile_digest=profile_digest(state.profile, salt=self._salt) if request.user_id else "",
            features=named,
            versions=self._versions(effective, model, explorer.version if explorer else 0),
            exploration=surface.exploration,
            rules=surface.rules,
            discovery_positions=list(walk.discovery_positions),
            discovery_probability=discovery_probability,
            candidates=pack_actions(ranked.actions, sources=ranked.sources, source_names=ranked.source_names),
            slots=slots,
            shortlisted=pack_shortlisted(slots, ranked.features) if explorer else None,
            n_requested=request.n,
            degraded=degraded,
            latency_ms=watch.laps_ms,
        )
        return seal(decision)

    def _model_of(self, request: RecommendRequest, surface: SurfaceConfig, event_id: str) -> str:
        """Return which model scores; a user keeps it for as long as the canary stands."""
        canary = surface.canary
        if canary is None:
            return surface.model
        who = f"{canary.model} {canary.artefact} {request.user_id or event_id}"
        (coin,) = draw_uniforms(1, salt=self._salt, purpose="variant", surface=request.surface, event_id=who)
        return canary.model if coin < canary.share else surface.model

    def _versions(self, effective: Effective, model: ServedModel, explorer: int) -> Versions:
        return Versions(
            model=model.version,
            index=self._items.retriever.version,
            catalogue=self._items.position,
            config=effective.version,
            schema=self._schema.version,
            item_stats=self._items.statistics.position,
            item_stats_as_of=self._items.statistics.as_of,
            item_pairs=self._items.pairs.position,
            salt=1,
            numerics=numerics_fingerprint(),
            explorer=explorer,
        )

    def _query(
        self,
        request: RecommendRequest,
        surface: SurfaceConfig,
        state: UserState,
        wanted_rows: list[int],
        now_ms: int,
    ) -> CandidateQuery:
        hidden_ids = {*request.exclude, *(state.consumed if surface.seen == "drop" else ())}
        if surface.fatigue:
            hidden_ids |= tired_of(state, surface.fatigue, now_ms=now_ms)
        if request.seed_item_id:
            if self._items.catalogue.row(request.seed_item_id) is None:
                raise InvalidRequest(f"unknown item {request.seed_item_id!r}", path="$.seed_item_id")
            hidden_ids.add(request.seed_item_id)
        rows = (self._items.catalogue.row(item_id) for item_id in hidden_ids)
        gate = surface.age_gate
        known_age = viewer_age(state.profile, now_ms)
        age = None if gate is None else gate.unknown_user_age if known_age is None else known_age
        country = request.context.get("country")
        return CandidateQuery(
            user_id=request.user_id,
            liked=liked_items(state),
            disliked=[i.item_id for i in state.recent if (i.reward or 0.0) < 0.0],
            seed_item_id=request.seed_item_id,
            viewer=Viewer(
                age=age,
                unknown_item_min_age=gate.unknown_item_min_age if gate else 0,
                country=country if isinstance(country, str) else state.profile.country,
                hidden_rows={row for row in rows if row is not None},
            ),
            now_ms=now_ms,
            wanted_rows=wanted_rows,
        )

    def _named_features(
        self, request: RecommendRequest, state: UserState, shown: Showings, now_ms: int
    ) -> dict[str, dict[str, float]]:
        schema = self._schema
        find = self._items.catalogue.item
        seed = find(request.seed_item_id) if request.seed_item_id else None
        context = context_record(request.context, surface=request.surface, seed=seed, now_ms=now_ms)
        try:
            return {
                "context": schema.named("context", context),
                "user": schema.named("user", user_record(state, shown, find, schema=schema, now_ms=now_ms)),
                # Scores are compared at a reference position; learning uses the real one.
                "position": schema.named("position", {"slot": 0}),
            }
        except UnfitValue as error:
            # What the caller did not send, a seed or a profile brought.
            path = f"$.context.{error.source}" if error.source in request.context else "$.context"
            raise InvalidRequest(str(error), path=path) from error

    def _candidates(
        self,
        request: RecommendRequest,
        surface: SurfaceConfig,
        query: CandidateQuery,
        event_id: str,
        degraded: list[str],
    ) -> tuple[Candidates, dict[int, InlineAction]]:
        if request.candidates is None:

            def new_rng() -> np.random.Generator:
                return build_generator(
                    salt=self._salt, purpose="candidates", surface=request.surface, event_id=event_id
                )

            retriever = self._items.retriever
            return retriever.retrieve(query, surface.sources, limit=surface.n_candidates, new_rng=new_rng), {}
        described = {place: c for place, c in enumerate(request.candidates) if isinstance(c, InlineAction)}
        item_ids = {c for c in request.candidates if isinstance(c, str)}
        if len({c.id for c in described.values()} | item_ids) != len(request.candidates):
            raise InvalidRequest("candidates must not repeat an id", path="$.candidates")
        excluded = set(request.exclude)
        described = {place: c for place, c in described.items() if c.id not in excluded}
        rows = [row for row in map(self._items.catalogue.row, item_ids) if row is not None]
        if len(rows) < len(item_ids):
            degraded.append("unknown_candidates")
        return self._items.retriever.rank_given(np.array(rows, dtype=np.int32), query), described

    def _running(self, surface: SurfaceConfig, now_ms: int) -> list[tuple[Campaign, int]]:
        """Return the campaigns that run now and whose items are in the catalogue, with their rows."""
        running = [(c, self._items.catalogue.row(c.item_id)) for c in surface.campaigns if c.runs_at(now_ms)]
        return [(campaign, row) for campaign, row in running if row is not None]

    def _columns(
        self, surface: SurfaceConfig, running: Sequence[tuple[Campaign, int]], shown: Showings, now_ms: int
    ) -> ColumnRequest:
        names = columns_of(surface.rules) | self._schema.sources("dynamic")
        if names.isdisjoint(SHOWING_COLUMNS):
            return ColumnRequest(names, RequestColumns(campaigns=running), now_ms)
        rows = {item_id: row for item_id in shown.n_seen if (row := self._items.catalogue.row(item_id)) is not None}
        request = RequestColumns(
            campaigns=running,
            n_seen={row: shown.n_seen[item_id] for item_id, row in rows.items()},
            last_shown_s={row: seconds_since(shown.last_shown_at_ms[item_id], now_ms) for item_id, row in rows.items()},
        )
        return ColumnRequest(names, request, now_ms)

    def _draw(
        self,
        request: RecommendRequest,
        surface: SurfaceConfig,
        actions: ActionSet,
        event_id: str,
        now_ms: int,
        explore: ExplorerPmf | None,
    ) -> tuple[SlateWalk, list[SlotDraw], float]:
        positions: tuple[int, ...] = ()
        probability = 1.0
        for rule in surface.rules:
            if isinstance(rule, Discovery):
                rng = build_generator(salt=self._salt, purpose="discovery", surface=request.surface, event_id=event_id)
                positions, probability = rule.draw_positions(request.n, rng)
        walk = SlateWalk(
            actions=actions,
            exploration=surface.exploration,
            rules=surface.rules,
            now_ms=now_ms,
            n_slots=request.n,
            discovery_positions=positions,
            explorer=explore,
        )
        uniforms = draw_uniforms(request.n, salt=self._salt, purpose="slot", surface=request.surface, event_id=event_id)
        return walk, draw_slate(walk, uniforms), probability

    async def _record(self, request: RecommendRequest, surface: SurfaceConfig, decision: Decision) -> RecommendResponse:
        """Write the decision to the spool and answer; with a caller's event id, answer for who holds it."""
        summary = DecisionSummary(
            digest=decision.digest,
            surface=decision.surface,
            user_id=decision.user_id,
            item_ids=[slot.item_id for slot in decision.slots],
            decided_at_unix_ms=decision.decided_at_unix_ms,
        )
        entry = SpoolEntry(
            payload=encode(decision),
            event_id=decision.event_id,
            summary=encode(summary),
            ttl_ms=max(MIN_CLAIM_MS, int(surface.reward.window_s * 1000)),
        )
        reach("recommend.spool")
        try:
            if request.event_id is None:
                self._spool.append(entry)
                reach("recommend.spooled")
                return response_of(decision)
            shipped = self._spool.append_and_ship(entry)
        except OSError:
            self._metrics.degraded.labels("log").inc()
            return response_of(decision, degraded="log")
        try:
            async with asyncio.timeout(self._timeout_s):
                claim = await asyncio.shield(shipped)
        except TimeoutError:
            self._metrics.degraded.labels("claim").inc()
            return response_of(decision, degraded="claim")
        reach("recommend.claimed")
        assert claim is not None
        return response_of(decision) if claim.is_new else await self._first_response(decision, claim)

    async def _first_response(self, decision: Decision, claim: Claim) -> RecommendResponse:
        if claim.summary.digest != decision.digest:
            raise Conflict(f"event_id {decision.event_id!r} was answered for another request")
        first = await find_decision(self._journal, decision.event_id)
        if first is None:
            raise Conflict(f"event_id {decision.event_id!r} was answered and its response is no longer kept")
        return response_of(first)


class _Stopwatch:
    def __init__(self, timer: Callable[[], float]) -> None:
        self.laps_ms: dict[str, float] = {}
        self._timer = timer
        self._last = timer()

    def lap(self, name: str) -> None:
        now = self._timer()
        self.laps_ms[name] = (now - self._last) * 1e3
        self._last = now
