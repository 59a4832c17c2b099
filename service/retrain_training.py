"""Train one configuration on logged outcomes, with the importance weights that make the log a sound training set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import msgspec

from bandit.features import FeatureSchema, Namespace
from bandit.learner import MIN_LEARNING_PROPENSITY, Learner
from bandit.policy import ModelSpec, WeightTable
from bandit.vw_format import Encoded, encode
from service.config import Config
from service.decision_record import walk_of
from service.messages import Decision, SlotRecord
from service.training_rows import Outcome

# About a kilobyte each.
_MAX_ENCODED = 65_536

Weighting = Literal["ips", "explored", "uniform-validation", "none"]


class RetrainConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One set of training arguments.

    Attributes:
        learning_rate: VW's `-l`.
        interactions: Pairs of namespaces; others than the declared ones make a model that must be declared to serve.
        clip: Largest importance weight.
        passes: How often the outcomes are learned, in their order.
    """

    learning_rate: float
    interactions: list[tuple[Namespace, Namespace]]
    clip: float = 1.0 / MIN_LEARNING_PROPENSITY
    passes: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be used.

        Raises:
            ValueError: one of them is out of range; the message names it.
        """
        if not 0.0 < self.learning_rate <= 10.0:
            raise ValueError(f"learning_rate must be in (0, 10], got {self.learning_rate}")
        if not 1.0 <= self.clip <= 1e6:
            raise ValueError(f"clip must be in [1, 1e6], got {self.clip}")
        if not 1 <= self.passes <= 100:
            raise ValueError(f"passes must be in [1, 100], got {self.passes}")


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One outcome as it is learned.

    Attributes:
        shared: Context, user and position features as served.
        action: The item's features as served.
        reward: Better is up.
        propensity: That of the weighting, in (0, 1]; the logged one under `ips`.
        position: Slot it stood in.
        branch: Part of the mixture that it was drawn from.
        decided_at_ms: When.
    """

    shared: dict[str, Encoded]
    action: dict[str, Encoded]
    reward: float
    propensity: float
    position: int
    branch: str
    decided_at_ms: int


def configured(config: Config, model: str) -> RetrainConfiguration:
    """Return the arguments that a model learns with online."""
    return RetrainConfiguration(
        learning_rate=config.models[model].learning_rate, interactions=list(config.features.interactions)
    )


def schema_of(config: Config, configuration: RetrainConfiguration) -> FeatureSchema:
    """Return the feature schema of a configuration: the declared one with its interactions."""
    return msgspec.structs.replace(config.features, interactions=configuration.interactions)


def spec_of(config: Config, model: str, configuration: RetrainConfiguration) -> ModelSpec:
    """Return the shape of the model that a configuration trains."""
    return ModelSpec(
        bits=config.models[model].bits,
        learning_rate=configuration.learning_rate,
        interactions=tuple(configuration.interactions),
        schema_version=schema_of(config, configuration).version,
        baseline=config.features.baseline,
        power_t=config.models[model].power_t,
    )


def training_row(outcome: Outcome, *, schema: FeatureSchema, weighting: Weighting) -> TrainingRow | None:
    """Return an outcome as it is learned under a weighting, None when that leaves it out.

    - `ips`: every drawn slot at its logged propensity.
    - `explored`: what exploration drew, at its probability given that exploration drew: p_e = q / m, with q the
      action's mass outside the greedy part and m that part's total mass. Slots that exploit teach nothing.
    - `uniform-validation`: what the uniform part drew is kept out; the rest is learned at its probability given that
      the uniform part, of mass u over n, did not draw: p' = (p - u / n) / (1 - u).
    - `none`: every drawn slot at propensity 1, which repeats the log's popularity; for comparison.

    Source: SCIENCE notes, section 2.
    """
    decision, slot = outcome.payload, outcome.payload.slots[outcome.slot]
    propensity: float | None = slot.propensity
    if weighting == "none":
        propensity = 1.0
    elif weighting == "uniform-validation":
        propensity = propensity_without_uniform(decision, slot)
    elif weighting == "explored":
        propensity = explored_propensity(decision, outcome.slot)
    if propensity is None:
        return None
    # The position is learned where the item stood; scoring uses the reference.
    shared = {**decision.features, "position": schema.named("position", {"slot": outcome.slot})}
    return TrainingRow(
        shared=encode_all(shared),
        action=encode_all(slot.features),
        reward=outcome.reward,
        propensity=propensity,
        position=outcome.slot,
        branch=slot.branch,
        decided_at_ms=decision.decided_at_unix_ms,
    )


def encode_all(named: Mapping[str, Mapping[str, float]]) -> dict[str, Encoded]:
    """Return hashed features by namespace; the same come again and again in a log, and in every pass over it."""
    return {namespace: _encoded(namespace, tuple(features.items())) for namespace, features in named.items()}


@lru_cache(maxsize=_MAX_ENCODED)
def _encoded(namespace: str, named: tuple[tuple[str, float], ...]) -> Encoded:
    return encode(namespace, dict(named))


def propensity_without_uniform(decision: Decision, slot: SlotRecord) -> float | None:
    """Return a slot's probability given that the uniform part did not draw it, None when that part did."""
    if slot.branch == "uniform":
        return None
    mass = decision.exploration.uniform_floor
    return (slot.propensity - mass / slot.n_feasible) / (1.0 - mass)


def explored_propensity(decision: Decision, slot_index: int) -> float | None:
    """Return a slot's probability given that exploration drew it, None when it exploited."""
    if decision.slots[slot_index].branch not in ("uniform", "shortlist"):
        return None
    walk = walk_of(decision)
    for record in decision.slots[:slot_index]:
        walk.place(record.action)
    here = walk.pmf()
    assert here is not None
    parts = here.parts(decision.slots[slot_index].action)
    return (parts["shortlist"] + parts["uniform"]) / (1.0 - here.mixture.greedy)


def train(
    rows: Callable[[], Iterable[TrainingRow]], *, spec: ModelSpec, configuration: RetrainConfiguration
) -> tuple[Learner, int]:
    """Return a model learned from nothing, and the number of rows of one pass.

    Args:
        rows: gives the rows anew for every pass.
        spec: the model's shape.
        configuration: clip and passes.
    """
    learner = Learner(spec, min_propensity=1.0 / configuration.clip)
    for _ in range(configuration.passes):
        for row in rows():
            learner.learn(row.shared, row.action, reward=row.reward, propensity=row.propensity)
    return learner, learner.n_learned // configuration.passes


def training_rows(outcomes: Iterable[Outcome], *, schema: FeatureSchema, weighting: Weighting) -> Iterator[TrainingRow]:
    """Yield the rows of outcomes under a weighting."""
    for outcome in outcomes:
        row = training_row(outcome, schema=schema, weighting=weighting)
        if row is not None:
            yield row


def table_of(learner: Learner) -> WeightTable:
    """Return a learner's weights as they would be served."""
    table = WeightTable(learner.spec)
    weights = learner.all_weights()
    table.apply(weights.indices, weights.values, version=1)
    return table
