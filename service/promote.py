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
from service.canary import canary_key
from service.config import Canary, Config
from service.config_writer import ConfigWriter
from service.errors import InvalidRequest, NotFound
from service.health_probe import probe_path, read_probe
from service.item_history import ItemHistory
from service.journal_reader import entry_order, position_of
from service.messages import ModelSnapshot, Promotion, encode
from service.model_registry import ArtefactError, Manifest, ModelRegistry, OpenedArtefact, load_learner, misfit
from service.ports import Journal, ModelStore
from service.promote_evidence import Bounds, off_policy_bounds, shared_confidence
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
class Entered:
    """A promotion and its place in the journal."""

    promotion: Promotion
    position: Position


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
        """Return every gate; bounds hold with `confidence`, shared among all that was compared on the same log."""
        model = opened.manifest.model
        try:
            learner = load_learner(opened, self._config.model_spec(model))
        except ArtefactError as error:
            return [Gate("fit", False, str(error))]
        fit = Gate("fit", True, "verified, loads, and has the shape of the declared model")
        live = await self.snapshot(model)
        others = [m for m in await self._registry.manifests(model) if m.artefact != opened.manifest.artefact]
        shared = shared_confidence(confidence, share=share_of_error(opened.manifest, others))
        is_new = live is None or not live.indices
        return [
            fit,
            self._advantage(opened, learner, evidence, is_new=is_new, confidence=shared),
            self._entropy(learner, opened, live, others),
            _skew(evidence, is_new=is_new),
        ]

    async def enter_canary(self, opened: OpenedArtefact, *, surface: str, model: str, reason: str) -> Entered:
        """Let another declared model go on from an artefact, to serve a canary of a surface.

        Raises:
            InvalidRequest: the surface is not declared, or the other model does not rank, serves already, or is
                of another shape than the artefact.
        """
        if surface not in self._config.surfaces:
            raise InvalidRequest(f"unknown surface {surface!r}", path="--surface")
        if opened.manifest.model != self._config.surfaces[surface].model:
            raise InvalidRequest(
                f"{opened.manifest.artefact} is of model {opened.manifest.model!r}, "
                f"surface {surface!r} has {self._config.surfaces[surface].model!r}",
                path="--surface",
            )
        # A model on trial forgets what it was: one that serves must not be.
        serving = {s.model for s in self._config.surfaces.values()}
        serving |= {
            s.canary.model
            for name, s in (await self._writer.effective()).current.config.surfaces.items()
            if s.canary is not None and name != surface
        }
        if model not in self._config.ranking_models or model in serving:
            free = sorted(set(self._config.ranking_models) - serving)
            raise InvalidRequest(
                f"a canary needs a declared model that serves nothing else, got {model!r}, there are {free}",
                path="--canary-model",
            )
        if reason_against := misfit(opened.manifest, self._config.model_spec(model)):
            raise InvalidRequest(
                f"model {model!r} cannot go on from {opened.manifest.artefact}: {reason_against}", path="--canary-model"
            )
        return await self._enter(opened, model=model, stage="canary", reason=reason)

    async def start_canary(self, surface: str, canary: Canary, *, reason: str) -> None:
        """Give the model of a canary a share of a surface's users.

        Raises:
            ConfigError: the canary cannot be set.
        """
        await self._writer.put(canary_key(surface), msgspec.to_builtins(canary), author=self._author, reason=reason)

    async def promote(self, opened: OpenedArtefact, *, reason: str) -> Entered:
        """Let the model go on from an artefact, for everybody; its canaries end."""
        entered = await self._enter(opened, model=opened.manifest.model, stage="full", reason=reason)
        for name, surface in (await self._writer.effective()).current.config.surfaces.items():
            if surface.canary is not None and surface.canary.artefact == opened.manifest.artefact:
                await self._writer.put(canary_key(name), None, author=self._author, reason=reason)
        return entered

    async def is_adopted(self, entered: Entered) -> bool:
        """Return whether the model's learner has gone on from the artefact at this very entry, and published that."""
        return predecessor_id(entered.position) in await self._models.artefact_ids(entered.promotion.model)

    async def replaced(self, model: str, *, history: Sequence[tuple[Position, Promotion]]) -> OpenedArtefact:
        """Return what a model's last promotion that stands has replaced.

        Args:
            model: the model.
            history: every promotion and its place in the journal, oldest first.

        Raises:
            NotFound: no promotion stands, or the last is not adopted yet.
        """
        entered = [(position, promotion) for position, promotion in history if promotion.model == model]
        kept = set(await self._models.artefact_ids(model))
        # What a learner has refused changed nothing; what it has not come to yet cannot be taken back.
        adopted = [(position, promotion) for position, promotion in entered if predecessor_id(position) in kept]
        if entered and entered[-1] not in adopted and not await self._is_past(model, entered[-1][0]):
            raise NotFound(f"the last promotion of model {model!r} is not adopted yet: does a learner run?")
        standing: list[str] = []
        for position, promotion in adopted:
            if promotion.stage != "rollback":
                standing.append(predecessor_id(position))
            elif promotion.artefact in standing:
                # Two who roll back at once take the same promotion back, not two.
                del standing[standing.index(promotion.artefact) :]
        if not standing:
            raise NotFound(f"model {model!r} has no promotion to take back")
        return await self._registry.open(model, standing[-1])

    async def roll_back(self, model: str, *, history: Sequence[tuple[Position, Promotion]], reason: str) -> Entered:
        """Let a model go on from what its last promotion replaced; again, from what the one before replaced.

        Raises:
            NotFound: no promotion stands, or the last is not adopted yet.
        """
        opened = await self.replaced(model, history=history)
        return await self._enter(opened, model=model, stage="rollback", reason=reason)

    async def _is_past(self, model: str, position: Position) -> bool:
        """Return whether the learner's checkpoint includes an entry."""
        progress = await self._models.load_progress(model)
        applied = progress.positions.get(str(position[1])) if progress else None
        return applied is not None and entry_order(applied) >= (position[0], position[2])

    async def _enter(self, opened: OpenedArtefact, *, model: str, stage: str, reason: str) -> Entered:
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
        (entry_id,) = await self._journal.append(0, [encode(promotion)])
        return Entered(promotion, position_of(0, entry_id))

    def _advantage(
        self, opened: OpenedArtefact, learner: Learner, evidence: Evidence, *, is_new: bool, confidence: float
    ) -> Gate:
        """Gate on the lower bound of what the artefact earns beyond the live model, off the log or live."""
        canary = evidence.canary
        if canary is not None and (canary.is_better or canary.is_worse):
            return Gate("advantage", canary.is_better, f"live, canary minus the rest: {canary}", canary.is_worse)
        table = table_of(learner)
        features = CandidateFeatures(self._config.features, evidence.items)
        scored = score_decisions(evidence.decisions(opened.manifest.to_ms), table=table, features=features)
        if not len(scored.reward):
            if is_new and not scored.n_skipped:
                return Gate("advantage", True, "the live model has learned nothing and has no log: nothing is replaced")
            skipped = f"; {scored.n_skipped} cannot be scored again" if scored.n_skipped else ""
            return Gate("advantage", False, f"no archived decision of the model is later than its training{skipped}")
        rewards_in = reward_range(self._config.surfaces.values())
        bounds = off_policy_bounds(scored, rewards_in=rewards_in, confidence=confidence)
        skipped = f"; {scored.n_skipped} more cannot be scored again" if scored.n_skipped else ""
        crossed = "; the bounds cross: the logged propensities cannot be right" if bounds.low > bounds.high else ""
        reason = f"off the log, {confidence:.2%} bounds: {bounds}{skipped}{crossed}"
        return Gate("advantage", bounds.is_better, reason, bounds.is_worse)

    def _entropy(
        self, learner: Learner, opened: OpenedArtefact, live: ModelSnapshot | None, others: Sequence[Manifest]
    ) -> Gate:
        if not self._config.health.genre:
            return Gate("entropy", True, "health.genre is not set: not compared")
        try:
            probe = read_probe(probe_path(self._config.data_path))
            candidate = probe_entropy(table_of(learner), probe)
        except OSError:
            if live is None or not live.indices:
                return Gate("entropy", True, "the live model has learned nothing: nothing to compare with")
            return Gate("entropy", False, "there is no probe set: run hone health probe")
        except ValueError as error:
            return Gate("entropy", False, str(error))
        if live is None or not live.indices:
            return Gate("entropy", True, f"{candidate:.3f}; the live model has learned nothing")
        live_table = WeightTable(self._config.model_spec(opened.manifest.model))
        live_table.apply(np.frombuffer(live.indices, "<u4"), np.frombuffer(live.values, "<f4"), version=live.version)
        live_entropy = probe_entropy(live_table, probe)
        collapse = collapse_reason(candidate, live=live_entropy, earlier=earlier_entropies(opened.manifest, others))
        return Gate("entropy", not collapse, collapse or f"{candidate:.3f}, the live model's is {live_entropy:.3f}")


def share_of_error(manifest: Manifest, others: Sequence[Manifest]) -> float:
    """Return which share of the error on its evidence a model may use; those of all tries together are below 1.

    Every model made since the evidence began is a try. After n of them, each of the next k may use 1 / (n + 1) -
    1 / (n + k + 1), divided by k. An equal share of the tries so far would add up to 1 + 1/2 + 1/3 and so on.
    """
    made = (manifest.created_at, manifest.artefact)
    earlier = [m for m in others if m.kind != "predecessor" and (m.created_at, m.artefact) < made]
    n = sum(m.n_searched for m in earlier if m.created_at_ms > manifest.to_ms)
    return 1.0 / ((n + 1) * (n + manifest.n_searched + 1))


def earlier_entropies(manifest: Manifest, others: Sequence[Manifest]) -> list[float]:
    """Return the probe entropies of the retrains before one, oldest first.

    Its own among them would widen their spread until it fits.
    """
    made = (manifest.created_at, manifest.artefact)
    retrained = (m for m in others if m.kind == "retrained" and (m.created_at, m.artefact) < made)
    scores = (m.scores.get(ENTROPY) for m in retrained)
    return [score.value for score in scores if score is not None and score.value is not None]


def _skew(evidence: Evidence, *, is_new: bool) -> Gate:
    n, wrong = evidence.n_skew_values, evidence.n_skew_mismatches
    if not n and not is_new:
        return Gate("skew", False, "no archived decision could be recomputed: what was served is not known to be right")
    return Gate("skew", wrong <= MAX_SKEW * n, f"{wrong} of {n} recomputed feature values differ from what was served")
