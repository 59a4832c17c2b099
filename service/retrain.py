"""Retrain a model from the archive: several configurations in parallel, each scored on a later window of the log."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np

from bandit.policy import ModelSpec
from service.adapters.redis_store import RedisChangeLog, connect
from service.config import Config
from service.errors import InvalidRequest
from service.inspect_features import archive_folder, read_items
from service.item_history import ItemHistory
from service.messages import Decision
from service.model_registry import Manifest, Score, artefact_id, utc_text
from service.retrain_figures import RANKED_BY, figures_of, reward_range
from service.retrain_scoring import CandidateFeatures, ScoredSlots, score_decisions
from service.retrain_training import (
    RetrainConfiguration,
    Weighting,
    configured,
    schema_of,
    spec_of,
    table_of,
    train,
    training_rows,
)
from service.training_rows import JoinedDecision, Outcome, Span, decision_times, read_outcomes, whole_decisions

_TIMEOUT_S = 30.0
# What a search draws from; the first configuration is always the model's own.
_RATES = (1e-3, 1e-1)
_CLIPS = (5.0, 10.0, 20.0, 50.0)
_PASSES = (1, 1, 2, 4)

Progress = Callable[[int, int], None]
"""Called with (configurations done, configurations in all)."""


@dataclass(frozen=True, slots=True)
class RetrainPlan:
    """What to train on and what to hold out.

    Attributes:
        model: The model.
        train: Decisions that are trained on.
        holdout: Later decisions that are scored; empty when nothing is held out.
        weighting: Of the training rows.
        score_every: Every so many held-out decisions are scored.
        confidence: Of every interval.
    """

    model: str
    train: Span
    holdout: Span | None
    weighting: Weighting
    score_every: int
    confidence: float


@dataclass(frozen=True, slots=True)
class Trained:
    """One configuration, trained and scored.

    Attributes:
        configuration: Its arguments.
        spec: Shape of the model.
        workspace: The serialised model.
        n_rows: Outcomes of one pass.
        progressive_loss: Mean squared error of each outcome before it was learned.
        figures: Off-policy figures on the held-out window, by name.
        validation: The same on held-out rows of the uniform part; empty under other weightings.
        n_skipped: Held-out decisions that could not be scored.
    """

    configuration: RetrainConfiguration
    spec: ModelSpec
    workspace: bytes
    n_rows: int
    progressive_loss: float
    figures: dict[str, Score]
    validation: dict[str, Score]
    n_skipped: int

    @property
    def rank(self) -> float:
        """Return what configurations are compared by: doubly robust value, on uniform rows where there are any."""
        score = (self.validation or self.figures).get(RANKED_BY)
        return -np.inf if score is None or score.value is None else score.value


def plan_retrain(
    config: Config,
    model: str,
    *,
    span: Span,
    weighting: Weighting = "ips",
    holdout_share: float = 0.2,
    max_scored: int = 20_000,
    confidence: float = 0.95,
) -> RetrainPlan:
    """Return a plan: the last share of a model's archived decisions is held out.

    Raises:
        InvalidRequest: the model cannot be retrained, or the archive has too few of its decisions.
    """
    if model not in config.models or config.models[model].arguments:
        known = ", ".join(sorted(name for name, m in config.models.items() if not m.arguments))
        raise InvalidRequest(f"model must be one that ranks ({known}), got {model!r}", path="--model")
    times = decision_times(archive_folder(config), model, span)
    if len(times) < 2:
        raise InvalidRequest(
            f"the archive holds {len(times)} decisions of model {model!r} in that range", path="--from"
        )
    first, end = int(times[0]), int(times[-1]) + 1
    cut = int(np.quantile(times, 1.0 - holdout_share)) if holdout_share else end
    held_out = Span(cut, end) if holdout_share else None
    every = max(1, -(-int((times >= cut).sum()) // max_scored))
    return RetrainPlan(model, Span(first, cut), held_out, weighting, every, confidence)


def search_configurations(config: Config, model: str, *, n: int, seed: int = 0) -> list[RetrainConfiguration]:
    """Return the model's own configuration and n - 1 drawn ones of other learning rates, clips and passes."""
    rng = np.random.default_rng(seed)
    own = configured(config, model)
    drawn = [
        msgspec.structs.replace(
            own,
            learning_rate=round(float(np.exp(rng.uniform(*np.log(_RATES)))), 5),
            clip=float(rng.choice(_CLIPS)),
            passes=int(rng.choice(_PASSES)),
        )
        for _ in range(n - 1)
    ]
    return [own, *drawn]


def run_search(
    config: Config,
    url: str,
    plan: RetrainPlan,
    configurations: Sequence[RetrainConfiguration],
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> list[Trained]:
    """Train and score every configuration, `jobs` at a time in processes of their own, in the given order.

    Raises:
        ValueError: a configuration cannot be trained.
    """
    done: dict[int, Trained] = {}
    with _pool(jobs) as pool:
        futures = {pool.submit(_train_on_archive, config, url, plan, c): n for n, c in enumerate(configurations)}
        for future in as_completed(futures):
            done[futures[future]] = future.result()
            if progress is not None:
                progress(len(done), len(configurations))
    return [done[n] for n in range(len(configurations))]


def train_and_score(
    config: Config,
    plan: RetrainPlan,
    configuration: RetrainConfiguration,
    *,
    outcomes: Callable[[Span], Iterator[Outcome]],
    items: ItemHistory,
) -> Trained:
    """Train one configuration and score it.

    Args:
        config: what the log was made with.
        plan: what to train on.
        configuration: the arguments.
        outcomes: reads the outcomes of a range of decision times, anew each time.
        items: item changes, to know all candidates.
    """
    spec = spec_of(config, plan.model, configuration)
    schema = schema_of(config, configuration)
    learner, n_rows = train(
        lambda: training_rows(outcomes(plan.train), schema=schema, weighting=plan.weighting),
        spec=spec,
        configuration=configuration,
    )
    table = table_of(learner)
    features = CandidateFeatures(schema, items)

    def figures(decisions: Iterator[JoinedDecision], *, uniform: bool) -> tuple[dict[str, Score], int]:
        scored = score_decisions(decisions, table=table, features=features)
        if uniform:
            scored = drawn_uniformly(scored)
        rewards_in = reward_range(config.surfaces.values())
        return figures_of(scored, rewards_in=rewards_in, confidence=plan.confidence), scored.n_skipped

    found: dict[str, Score] = {}
    validation: dict[str, Score] = {}
    n_skipped = 0
    if plan.holdout is not None:
        found, n_skipped = figures(
            islice(whole_decisions(outcomes(plan.holdout)), 0, None, plan.score_every), uniform=False
        )
    if plan.weighting == "uniform-validation":
        everything = Span(plan.train.from_ms, plan.holdout.to_ms if plan.holdout else plan.train.to_ms)
        with_uniform = (d for d in whole_decisions(outcomes(everything)) if _has_uniform(d.decision))
        validation, _ = figures(with_uniform, uniform=True)
    loss = learner.loss_sum / max(1, learner.n_learned)
    return Trained(configuration, spec, learner.serialize(), n_rows, loss, found, validation, n_skipped)


def drawn_uniformly(scored: ScoredSlots) -> ScoredSlots:
    """Return the slots that the uniform part drew, at their probability given that it did."""
    kept = scored.is_uniform
    return replace(
        scored,
        decision=scored.decision[kept],
        logged=1.0 / scored.n_feasible[kept],
        target=scored.target[kept],
        reward=scored.reward[kept],
        predicted=scored.predicted[kept],
        expected=scored.expected[kept],
        is_uniform=scored.is_uniform[kept],
        n_feasible=scored.n_feasible[kept],
    )


def best_of(trained: Sequence[Trained]) -> Trained:
    """Return the best configuration, the earliest of equals."""
    return max(trained, key=lambda one: one.rank)


def manifest_of(best: Trained, plan: RetrainPlan, *, n_searched: int, parent: str, now_ms: int) -> Manifest:
    """Return the manifest of a retrained model."""
    return Manifest(
        artefact=artefact_id(best.workspace, at_ms=now_ms),
        model=plan.model,
        kind="retrained",
        parent=parent,
        arguments=best.spec.arguments(),
        bits=best.spec.bits,
        schema_version=best.spec.schema_version,
        created_at=utc_text(now_ms),
        workspace_sha256=hashlib.sha256(best.workspace).hexdigest(),
        weighting=plan.weighting,
        clip=best.configuration.clip,
        passes=best.configuration.passes,
        from_ms=plan.train.from_ms,
        to_ms=plan.train.to_ms,
        n_rows=best.n_rows,
        n_searched=n_searched,
        scores=best.figures | {f"uniform_{name}": score for name, score in best.validation.items()},
    )


def _train_on_archive(config: Config, url: str, plan: RetrainPlan, configuration: RetrainConfiguration) -> Trained:
    folder: Path = archive_folder(config)

    def outcomes(span: Span) -> Iterator[Outcome]:
        return read_outcomes(config, folder, plan.model, span)

    return train_and_score(config, plan, configuration, outcomes=outcomes, items=fetch_item_history(url))


def fetch_item_history(url: str) -> ItemHistory:
    """Read the whole items stream of a store."""

    async def fetch() -> ItemHistory:
        client = connect(url, timeout_s=_TIMEOUT_S)
        try:
            return await read_items(RedisChangeLog(client))
        finally:
            await client.aclose()

    return asyncio.run(fetch())


def _pool(jobs: int) -> Executor:
    # VW and Arrow have threads of their own: a forked child could inherit a lock that nobody holds.
    return ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn"))


def _has_uniform(decision: Decision) -> bool:
    return any(slot.branch == "uniform" for slot in decision.slots)
