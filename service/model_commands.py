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
from service.adapters.redis_store import RedisChangeLog, RedisJournal, RedisModelStore, connect
from service.bootstrap import load_salt
from service.canary import Canaries
from service.config import Canary, Config
from service.config_writer import ConfigWriter
from service.errors import NotFound
from service.health_probe import probe_path, read_probe
from service.inspect_features import archive_folder, check_archive, read_items
from service.messages import Promotion
from service.model_registry import Manifest, ModelRegistry, OpenedArtefact, Score
from service.promote import ENTROPY, Entered, Evidence, Gate, Promoter
from service.promote_evidence import Bounds, off_policy_bounds
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
        action: promoted, rollback, refused (better, but another gate refuses), ended (somebody else ended the canary,
            took the promotion back or made another) or undecided.
        bounds: The last figures; None before the first.
    """

    action: str
    bounds: Bounds | None


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
        canaries = Canaries(config, folder=archive_folder(config), models=models, writer=writer)
        yield ModelCommands(config, url, promoter, ModelRegistry(config, models), canaries, journal, log, clock, author)
    finally:
        await client.aclose()


@dataclass(slots=True)
class ModelCommands:
    """The use cases, with everything they read."""

    config: Config
    url: str
    promoter: Promoter
    registry: ModelRegistry
    canaries: Canaries
    journal: RedisJournal
    log: RedisChangeLog
    clock: Callable[[], int]
    author: str

    async def add_retrained(self, best: Trained, plan: RetrainPlan, *, n_searched: int) -> Manifest:
        """Store a retrained model as an artefact."""
        live = await self.promoter.snapshot(plan.model)
        parent = live.artefact if live else ""
        manifest = manifest_of(best, plan, n_searched=n_searched, parent=parent, now_ms=self.clock())
        return await self._add(manifest, best.workspace, Learner(best.spec, best.workspace))

    async def add_warm(self, manifest: Manifest, learner: Learner) -> Manifest:
        """Store a warm model as an artefact."""
        return await self._add(manifest, learner.serialize(), learner)

    async def gates(self, artefact: str, *, confidence: float) -> list[Gate]:
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
            canary=await self._live_difference(artefact),
        )
        return await self.promoter.gates(opened, evidence, confidence=confidence)

    async def start_canary(self, artefact: str, *, surface: str, canary: Canary, reason: str) -> None:
        """Start a canary, once its model has gone on from the artefact.

        Raises:
            NotFound: no learner has adopted it in time; nobody was given to the canary.
        """
        _, opened = await self.promoter.find(artefact)
        entered = await self.promoter.enter_canary(opened, surface=surface, model=canary.model, reason=reason)
        await self.wait_adopted(entered)
        await self.promoter.start_canary(surface, canary, reason=reason)

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
        entered = await self.promoter.roll_back(model, history=history, reason=reason)
        await self.wait_adopted(entered)
        return entered.promotion

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

    async def watch_canary(self, artefact: str, *, watch_s: float, every_s: float, confidence: float) -> Verdict:
        """Look at a canary again and again: end it when it is worse, promote its artefact when it is better."""
        began_ms = self.clock()
        bounds: Bounds | None = None
        while True:
            running = await self.canaries.of(artefact)
            if running is None or not await self.canaries.is_its_artefact_live(running):
                return Verdict("ended", bounds)
            bounds = await self.canaries.difference(running)
            if bounds.is_worse:
                ended = await self.canaries.end(running, author=self.author, reason=f"canary is worse: {bounds}")
                return Verdict("rollback" if ended else "ended", bounds)
            if bounds.is_better:
                if any(not gate.passed for gate in await self.gates(artefact, confidence=confidence)):
                    return Verdict("refused", bounds)
                await self.promote(artefact, reason=f"canary is better: {bounds}")
                return Verdict("promoted", bounds)
            if self.clock() - began_ms >= watch_s * 1000:
                return Verdict("undecided", bounds)
            await asyncio.sleep(every_s)

    async def watch_promoted(self, artefact: str, *, watch_s: float, every_s: float, confidence: float) -> Verdict:
        """Look at a promoted model again and again, and take it back when what it replaced would be better.

        It serves everybody, so that there is no control group of its time: what it replaced is valued on its log. Once
        another promotion came, or this one was taken back, there is nothing left to judge.
        """
        model, _ = await self.promoter.find(artefact)
        began_ms = self.clock()
        replaced = await self._replaced(model)
        bounds: Bounds | None = None
        while replaced is not None:
            bounds = await self._regret_of(replaced, model, began_ms, confidence=confidence)
            last = await self._replaced(model)
            if last is None or last.manifest.artefact != replaced.manifest.artefact:
                break
            if bounds.is_better:
                await self.roll_back(model, reason=f"what was replaced is better: {bounds}")
                return Verdict("rollback", bounds)
            if self.clock() - began_ms >= watch_s * 1000:
                return Verdict("promoted", bounds)
            await asyncio.sleep(every_s)
        return Verdict("ended", bounds)

    async def wait_adopted(self, entered: Entered) -> None:
        """Return once the model goes on from the artefact, at this very entry, and that is published.

        Raises:
            NotFound: that did not happen in time; the promotion stands, and is adopted when a learner comes to it.
        """
        deadline_ms = self.clock() + _ADOPTION_S * 1000
        while not await self.promoter.is_adopted(entered):
            if self.clock() > deadline_ms:
                promotion = entered.promotion
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

    async def _live_difference(self, artefact: str) -> Bounds | None:
        """Return what the canary of an artefact shows now, None when none tries it."""
        running = await self.canaries.of(artefact)
        if running is None or not await self.canaries.is_its_artefact_live(running):
            return None
        return await self.canaries.difference(running)

    async def _replaced(self, model: str) -> OpenedArtefact | None:
        """Return what a model's last promotion that stands has replaced, None when none is known to stand."""
        try:
            return await self.promoter.replaced(model, history=promotions_of(await self.changes()))
        except NotFound:
            return None

    async def _regret_of(self, replaced: OpenedArtefact, model: str, from_ms: int, *, confidence: float) -> Bounds:
        """Return how much better what was replaced would be, on the log since."""
        table = table_of(Learner(self.config.model_spec(model), replaced.workspace))
        features = CandidateFeatures(self.config.features, await read_items(self.log))
        scored = score_decisions(self._decisions(model, Span(from_ms)), table=table, features=features)
        rewards_in = reward_range(self.config.surfaces.values())
        return off_policy_bounds(scored, rewards_in=rewards_in, confidence=confidence)
