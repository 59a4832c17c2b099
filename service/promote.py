"""Promote a model: gates, stages, the watch that takes a bad one back, and the log of all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from bandit.health_probe import collapse_reason, probe_entropy
from bandit.joining import Position
from bandit.learner import Learner
from bandit.policy import WeightTable
from service.adoption import predecessor_id
from service.config import Config
from service.config_writer import ConfigWriter
from service.errors import InvalidRequest, NotFound
from service.health_probe import probe_path, read_probe
from service.item_history import ItemHistory
from service.messages import ModelSnapshot, Promotion, encode
from service.model_registry import ArtefactError, ModelRegistry, OpenedArtefact, load_learner
from service.ports import Journal, ModelStore
from service.promote_evidence import Bounds, off_policy_bounds
from service.retrain_figures import reward_range
from service.retrain_scoring import CandidateFeatures, score_decisions
from service.retrain_training import table_of
from service.training_rows import JoinedDecision

ENTROPY = "probe_entropy"
# Largest share of recomputed feature values that may differ from what was served.
MAX_SKEW = 0.001

_snapshot_decoder = msgspec.msgpack.Decoder(ModelSnapshot)


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition of a promotion.

    Attributes:
        name: fit, advantage, entropy or skew.
        passed: Whether it is met.
        reason: The figures, in words.
        is_refuted: Whether the evidence speaks against the model, and is not only too little.
    """

    name: str
    passed: bool
    reason: str
    is_refuted: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """What gates look at besides the artefact.

    Attributes:
        decisions: reads the decisions of the model from a time on, with their rewards.
        items: item changes, by position.
        n_skew_values: Feature values that were recomputed.
        n_skew_mismatches: Those that differ.
        canary: Live difference from a canary of this very artefact; None without one.
    """

    decisions: Callable[[int], Iterator[JoinedDecision]]
    items: ItemHistory
    n_skew_values: int
    n_skew_mismatches: int
    canary: Bounds | None = None


class Promoter:
    """Promotes artefacts and rolls them back.

    Args:
        config: what is declared.
        models: the store of models.
        journal: where promotions are entered.
        writer: sets and removes canaries.
        clock: unix milliseconds.
        author: for the log.
    """

    def __init__(
        self,
        config: Config,
        *,
        models: ModelStore,
        journal: Journal,
        writer: ConfigWriter,
        clock: Callable[[], int],
        author: str,
    ) -> None:
        self._config = config
        self._models = models
        self._registry = ModelRegistry(config, models)
        self._journal = journal
        self._writer = writer
        self._clock = clock
        self._author = author

    async def find(self, artefact: str) -> tuple[str, OpenedArtefact]:
        """Return the model that an artefact is of, and the artefact.

        Raises:
            NotFound: no model has one of that id.
            ArtefactError: it cannot be used.
        """
        for model in self._config.ranking_models:
            if artefact in await self._models.artefact_ids(model):
                opened = await self._registry.open(model, artefact)
                return opened.manifest.model, opened
        raise NotFound(f"no model has an artefact {artefact!r}; hone models lists them")

    async def snapshot(self, model: str) -> ModelSnapshot | None:
        """Return what is published of a model, None before the first."""
        stored = await self._models.load_snapshot(model)
        return None if stored is None else _snapshot_decoder.decode(stored)

    async def gates(self, opened: OpenedArtefact, evidence: Evidence, *, confidence: float = 0.98) -> list[Gate]:
        """Return every gate; bounds hold with `confidence`, shared among the configurations that were compared."""
        model = opened.manifest.model
        try:
            learner = load_learner(opened, self._config.model_spec(model))
        except ArtefactError as error:
            return [Gate("fit", False, str(error))]
        fit = Gate("fit", True, "verified, loads, and has the shape of the declared model")
        live = await self.snapshot(model)
        return [
            fit,
            self._advantage(opened, learner, evidence, live=live, confidence=confidence),
            await self._entropy(learner, opened, live),
            _skew(evidence),
        ]

    async def enter_canary(self, opened: OpenedArtefact, *, surface: str, model: str, reason: str) -> Promotion:
        """Let another declared model go on from an artefact, to serve a canary of a surface.

        Raises:
            InvalidRequest: the surface is not declared, or the other model does not rank or is the surface's own.
        """
        if surface not in self._config.surfaces:
            raise InvalidRequest(f"unknown surface {surface!r}", path="--surface")
        own = self._config.surfaces[surface].model
        if model not in self._config.ranking_models or model == own:
            others = sorted(set(self._config.ranking_models) - {own})
            raise InvalidRequest(
                f"a canary needs another declared model than {own!r}, declared are {others}", path="--canary-model"
            )
        return await self._enter(opened, model=model, stage="canary", reason=reason)

    async def start_canary(self, promotion: Promotion, *, surface: str, share: float) -> None:
        """Give the model of a canary's promotion a share of a surface's users.

        Raises:
            ConfigError: the canary cannot be set.
        """
        canary = {"model": promotion.model, "share": share, "artefact": promotion.artefact}
        await self._writer.put(f"surfaces.{surface}.canary", canary, author=self._author, reason=promotion.reason)

    async def end_canary(self, surface: str, *, reason: str) -> None:
        """Give all users back to the surface's own model."""
        if (await self._writer.effective()).current.config.surfaces[surface].canary is not None:
            await self._writer.put(f"surfaces.{surface}.canary", None, author=self._author, reason=reason)

    async def promote(self, opened: OpenedArtefact, *, reason: str) -> Promotion:
        """Let the model go on from an artefact, for everybody; its canaries end."""
        promotion = await self._enter(opened, model=opened.manifest.model, stage="full", reason=reason)
        for name, surface in (await self._writer.effective()).current.config.surfaces.items():
            if surface.canary is not None and surface.canary.artefact == opened.manifest.artefact:
                await self.end_canary(name, reason=reason)
        return promotion

    async def replaced(self, model: str, *, history: Sequence[tuple[Position, Promotion]]) -> OpenedArtefact:
        """Return what a model's last promotion that stands has replaced.

        Args:
            model: the model.
            history: every promotion and its place in the journal, oldest first.

        Raises:
            NotFound: no promotion stands, or what it replaced is not stored.
        """
        standing: list[Position] = []
        for position, promotion in history:
            if promotion.model == model and promotion.stage != "rollback":
                standing.append(position)
            elif promotion.model == model and standing:
                standing.pop()
        if not standing:
            raise NotFound(f"model {model!r} has no promotion to take back")
        return await self._registry.open(model, predecessor_id(standing[-1]))

    async def roll_back(self, model: str, *, history: Sequence[tuple[Position, Promotion]], reason: str) -> Promotion:
        """Let a model go on from what its last promotion replaced; again, from what the one before replaced.

        Raises:
            NotFound: no promotion stands, or what it replaced is not stored.
        """
        opened = await self.replaced(model, history=history)
        return await self._enter(opened, model=model, stage="rollback", reason=reason)

    async def _enter(self, opened: OpenedArtefact, *, model: str, stage: str, reason: str) -> Promotion:
        """Put the artefact where the model's learner finds it, then enter the promotion in the journal."""
        stored = await self._models.load_artefact(opened.manifest.model, opened.manifest.artefact)
        assert stored is not None
        await self._models.put_artefact(model, opened.manifest.artefact, stored)
        promotion = Promotion(
            at_unix_ms=self._clock(),
            model=model,
            artefact=opened.manifest.artefact,
            checksum=opened.checksum,
            stage=stage,
            author=self._author,
            reason=reason,
        )
        await self._journal.append(0, [encode(promotion)])
        return promotion

    def _advantage(
        self,
        opened: OpenedArtefact,
        learner: Learner,
        evidence: Evidence,
        *,
        live: ModelSnapshot | None,
        confidence: float,
    ) -> Gate:
        """Gate on the lower bound of what the artefact earns beyond the live model, off the log or live."""
        if evidence.canary is not None and evidence.canary.low > 0.0:
            return Gate("advantage", True, f"live, canary minus the rest: {evidence.canary}")
        table = table_of(learner)
        features = CandidateFeatures(self._config.features, evidence.items)
        scored = score_decisions(evidence.decisions(opened.manifest.to_ms), table=table, features=features)
        if not len(scored.reward):
            if live is None or not live.indices:
                return Gate("advantage", True, "the live model has learned nothing and has no log: nothing is replaced")
            return Gate("advantage", False, "no archived decision of the model is later than what was trained on")
        shared = 1.0 - (1.0 - confidence) / opened.manifest.n_searched
        rewards_in = reward_range(self._config.surfaces.values())
        bounds = off_policy_bounds(scored, rewards_in=rewards_in, confidence=shared)
        return Gate("advantage", bounds.low > 0.0, f"off the log, {shared:.2%} bounds: {bounds}", bounds.high < 0.0)

    async def _entropy(self, learner: Learner, opened: OpenedArtefact, live: ModelSnapshot | None) -> Gate:
        if not self._config.health.genre:
            return Gate("entropy", True, "health.genre is not set: not compared")
        try:
            probe = read_probe(probe_path(self._config.data_path))
        except OSError:
            if live is None or not live.indices:
                return Gate("entropy", True, "the live model has learned nothing: nothing to compare with")
            return Gate("entropy", False, "there is no probe set: run hone health probe")
        candidate = probe_entropy(table_of(learner), probe)
        if live is None or not live.indices:
            return Gate("entropy", True, f"{candidate:.3f}; the live model has learned nothing")
        live_table = WeightTable(self._config.model_spec(opened.manifest.model))
        live_table.apply(np.frombuffer(live.indices, "<u4"), np.frombuffer(live.values, "<f4"), version=live.version)
        scores = [m.scores.get(ENTROPY) for m in await self._registry.manifests(opened.manifest.model)]
        earlier = [score.value for score in scores if score is not None and score.value is not None]
        live_entropy = probe_entropy(live_table, probe)
        collapse = collapse_reason(candidate, live=live_entropy, earlier=earlier)
        return Gate("entropy", not collapse, collapse or f"{candidate:.3f}, the live model's is {live_entropy:.3f}")


def _skew(evidence: Evidence) -> Gate:
    n, wrong = evidence.n_skew_values, evidence.n_skew_mismatches
    return Gate("skew", wrong <= MAX_SKEW * n, f"{wrong} of {n} recomputed feature values differ from what was served")
