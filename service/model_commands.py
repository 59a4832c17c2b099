"""What the commands about models do, on a store and an archive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bandit.health_probe import probe_entropy
from bandit.joining import Position
from bandit.learner import Learner
from service.adapters.parquet_archive import archived_position
from service.adapters.redis_store import RedisChangeLog, RedisJournal, RedisModelStore, connect
from service.bootstrap import load_salt
from service.config import Canary, Config
from service.config_writer import ConfigWriter
from service.errors import NotFound
from service.health_probe import probe_path, read_probe
from service.inspect_features import archive_folder, check_archive, read_items
from service.journal_reader import entry_order
from service.messages import Promotion
from service.model_registry import Manifest, ModelRegistry, Score
from service.promote import ENTROPY, Evidence, Gate, Promoter
from service.promote_evidence import Bounds, canary_difference, off_policy_bounds
from service.promotion_log import Change, promotions_of, read_changes
from service.retrain import RetrainPlan, Trained, manifest_of
from service.retrain_figures import reward_range
from service.retrain_scoring import CandidateFeatures, score_decisions
from service.retrain_training import table_of
from service.training_rows import JoinedDecision, Outcome, Span, decision_times, read_outcomes, whole_decisions

_TIMEOUT_S = 30.0
# Decisions whose features are recomputed for the gate on skew.
_N_SKEW = 1_000
_ADOPTION_S = 10.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a watch ended with.

    Attributes:
        action: promoted, rollback or undecided.
        bounds: The last figures.
    """

    action: str
    bounds: Bounds


@dataclass(frozen=True, slots=True)
class ArtefactStage:
    """An artefact and how far it came: canary, full or rollback; empty before any."""

    manifest: Manifest
    stage: str


@dataclass(frozen=True, slots=True)
class ModelLineage:
    """A model, what it goes on from, and its artefacts.

    Attributes:
        model: The model.
        version: Published version, 0 before the first.
        artefact: What it goes on from; empty when it began from nothing.
        artefacts: Oldest first.
    """

    model: str
    version: int
    artefact: str
    artefacts: list[ArtefactStage]


@asynccontextmanager
async def connected(config: Config, url: str, *, clock: Callable[[], int], author: str) -> AsyncIterator[ModelCommands]:
    """Yield the commands on a store."""
    client = connect(url, timeout_s=_TIMEOUT_S)
    try:
        models = RedisModelStore(client)
        journal = RedisJournal(client, n_partitions=config.store.partitions)
        log = RedisChangeLog(client)
        writer = ConfigWriter(config, log=log, journal=journal, clock=clock)
        promoter = Promoter(config, models=models, journal=journal, writer=writer, clock=clock, author=author)
        yield ModelCommands(config, url, promoter, ModelRegistry(config, models), models, journal, log, writer, clock)
    finally:
        await client.aclose()


@dataclass(slots=True)
class ModelCommands:
    """The use cases, with everything they read."""

    config: Config
    url: str
    promoter: Promoter
    registry: ModelRegistry
    models: RedisModelStore
    journal: RedisJournal
    log: RedisChangeLog
    writer: ConfigWriter
    clock: Callable[[], int]

    async def add_retrained(self, best: Trained, plan: RetrainPlan, *, n_searched: int) -> Manifest:
        """Store a retrained model as an artefact."""
        live = await self.promoter.snapshot(plan.model)
        parent = live.artefact if live else ""
        manifest = manifest_of(best, plan, n_searched=n_searched, parent=parent, now_ms=self.clock())
        return await self._add(manifest, best.workspace, Learner(best.spec, best.workspace))

    async def add_warm(self, manifest: Manifest, learner: Learner) -> Manifest:
        """Store a warm model as an artefact."""
        return await self._add(manifest, learner.serialize(), learner)

    async def gates(self, artefact: str, *, confidence: float, unit_s: float) -> list[Gate]:
        """Ask every gate of a promotion, on the archive as it is now."""
        _, opened = await self.promoter.find(artefact)
        model = opened.manifest.model
        folder = self._folder
        n = len(decision_times(folder, model, Span())) if folder.exists() else 0
        every = max(1, n // _N_SKEW)
        report = await check_archive(self.config, self.url, salt=load_salt(self.config), every=every) if n else None
        evidence = Evidence(
            decisions=lambda from_ms: self._decisions(model, Span(from_ms)),
            items=await read_items(self.log),
            n_skew_values=report.n_values if report else 0,
            n_skew_mismatches=report.n_mismatches if report else 0,
            canary=await self._canary_of(artefact, confidence=confidence, unit_s=unit_s),
        )
        return await self.promoter.gates(opened, evidence, confidence=confidence)

    async def start_canary(self, artefact: str, *, surface: str, model: str, share: float, reason: str) -> None:
        """Start a canary, once its model has gone on from the artefact.

        Raises:
            NotFound: no learner has adopted it in time; nobody was given to the canary.
        """
        _, opened = await self.promoter.find(artefact)
        promotion = await self.promoter.enter_canary(opened, surface=surface, model=model, reason=reason)
        await self.wait_adopted(promotion)
        await self.promoter.start_canary(promotion, surface=surface, share=share)

    async def promote(self, artefact: str, *, reason: str) -> None:
        """Promote an artefact for everybody, and wait for the learner.

        Raises:
            NotFound: no learner has adopted it in time; it will when one runs.
        """
        _, opened = await self.promoter.find(artefact)
        await self.wait_adopted(await self.promoter.promote(opened, reason=reason))

    async def roll_back(self, model: str, *, reason: str) -> Promotion:
        """Take a model's last promotion back, and wait for the learner."""
        history = promotions_of(await self.changes())
        promotion = await self.promoter.roll_back(model, history=history, reason=reason)
        await self.wait_adopted(promotion)
        return promotion

    async def changes(self) -> list[tuple[Position, Change]]:
        """Return every change of model, policy and exploration, oldest first."""
        return await read_changes(self._folder, self.journal)

    async def lineage(self) -> list[ModelLineage]:
        """Return all models with their artefacts."""
        stages = {(p.model, p.artefact): p.stage for _, p in promotions_of(await self.changes())}
        found = []
        for model in self.config.ranking_models:
            live = await self.promoter.snapshot(model)
            artefacts = [
                ArtefactStage(manifest, stages.get((model, manifest.artefact), ""))
                for manifest in await self.registry.manifests(model)
            ]
            found.append(ModelLineage(model, live.version if live else 0, live.artefact if live else "", artefacts))
        return found

    async def watch(
        self,
        artefact: str,
        *,
        stage: str,
        surface: str,
        watch_s: float,
        every_s: float,
        confidence: float,
        unit_s: float,
    ) -> Verdict:
        """Look at live reward again and again: take the model back when it is worse, promote a canary that is better.

        A model that serves everybody has no control group of its time: what it replaced is valued on its log instead,
        and taken back once that is better.
        """
        model, _ = await self.promoter.find(artefact)
        began_ms = self.clock()
        while True:
            if stage == "canary":
                bounds = await self._canary_of(artefact, confidence=confidence, unit_s=unit_s)
                if bounds is None:
                    raise NotFound(f"no surface has a canary of {artefact}")
                if bounds.high < 0.0:
                    await self.promoter.end_canary(surface, reason=f"canary is worse: {bounds}")
                    return Verdict("rollback", bounds)
                if bounds.low > 0.0:
                    await self.promote(artefact, reason=f"canary is better: {bounds}")
                    return Verdict("promoted", bounds)
            else:
                bounds = await self._regret_of(model, began_ms, confidence=confidence)
                if bounds.low > 0.0:
                    await self.roll_back(model, reason=f"what was replaced is better: {bounds}")
                    return Verdict("rollback", bounds)
            if self.clock() - began_ms >= watch_s * 1000:
                return Verdict("undecided" if stage == "canary" else "promoted", bounds)
            await asyncio.sleep(every_s)

    async def wait_adopted(self, promotion: Promotion) -> None:
        """Return once the model is published as going on from the artefact.

        Raises:
            NotFound: that did not happen in time; the promotion stands, and is adopted when a learner comes to it.
        """
        deadline_ms = self.clock() + _ADOPTION_S * 1000
        while (live := await self.promoter.snapshot(promotion.model)) is None or live.artefact != promotion.artefact:
            if self.clock() > deadline_ms:
                raise NotFound(
                    f"model {promotion.model!r} has not gone on from {promotion.artefact} within {_ADOPTION_S:g} s: "
                    "does a learner run, and did it count promotion_refused? The promotion stands in the journal."
                )
            await asyncio.sleep(_POLL_S)

    @property
    def _folder(self) -> Path:
        return archive_folder(self.config)

    async def _add(self, manifest: Manifest, workspace: bytes, learner: Learner) -> Manifest:
        scores = dict(manifest.scores)
        path = probe_path(self.config.data_path)
        if path.exists():
            probe = read_probe(path)
            if probe.schema_version == manifest.schema_version:
                scores[ENTROPY] = Score(value=probe_entropy(table_of(learner), probe))
        return (await self.registry.add(msgspec.structs.replace(manifest, scores=scores), workspace)).manifest

    def _decisions(self, model: str, span: Span) -> Iterator[JoinedDecision]:
        return whole_decisions(self._outcomes(model, span))

    def _outcomes(self, model: str, span: Span) -> Iterator[Outcome]:
        return read_outcomes(self.config, self._folder, model, span)

    async def _canary_of(self, artefact: str, *, confidence: float, unit_s: float) -> Bounds | None:
        """Return the live difference of the canary of an artefact that runs now, None when none does."""
        surfaces = (await self.writer.effective()).current.config.surfaces
        for name, surface in surfaces.items():
            if surface.canary is not None and surface.canary.artefact == artefact:
                return await self._difference(name, surface.canary, confidence=confidence, unit_s=unit_s)
        return None

    async def _difference(self, surface: str, canary: Canary, *, confidence: float, unit_s: float) -> Bounds:
        key = f"surfaces.{surface}.canary"
        began_ms = max(o.at_unix_ms for o in await self.writer.history() if o.key == key)
        partitions = range(self.config.store.partitions)
        archived_ms = min(entry_order(archived_position(self._folder, p))[0] for p in partitions)
        window_ms = int(self.config.surfaces[surface].reward.negative_window_s * 1000)
        models = (self.config.surfaces[surface].model, canary.model)
        # One joiner a model, as its learner has: an event without an event id belongs to a decision of one of them.
        outcomes = [
            o for model in models for o in self._outcomes(model, Span(began_ms)) if o.payload.surface == surface
        ]
        return canary_difference(
            outcomes,
            canary_model=canary.model,
            share=canary.share,
            unit_ms=int(unit_s * 1000),
            until_ms=archived_ms - window_ms,
            rewards_in=reward_range([self.config.surfaces[surface]]),
            confidence=confidence,
        )

    async def _regret_of(self, model: str, from_ms: int, *, confidence: float) -> Bounds:
        """Return how much better what the last promotion replaced would be, on the log since."""
        replaced = await self.promoter.replaced(model, history=promotions_of(await self.changes()))
        table = table_of(Learner(self.config.model_spec(model), replaced.workspace))
        features = CandidateFeatures(self.config.features, await read_items(self.log))
        scored = score_decisions(self._decisions(model, Span(from_ms)), table=table, features=features)
        rewards_in = reward_range(self.config.surfaces.values())
        return off_policy_bounds(scored, rewards_in=rewards_in, confidence=confidence)
