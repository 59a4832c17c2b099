"""The explanation of a decision, as `GET /v1/decisions/{event_id}` and `hone explain --json` give it."""

from __future__ import annotations

import msgspec

from bandit.exploration import Exploration
from bandit.rules import Rule
from service.messages import Versions


class ScoreTerm(msgspec.Struct, frozen=True, kw_only=True):
    """One addend of a score.

    Attributes:
        features: `namespace:name` of none for the constant, of one feature, or of the two of an interaction.
        value: Of the feature; the product of both for an interaction; 1 for the constant.
        weight: Expected reward for each unit of the value.
        contribution: Weight times value.
    """

    features: list[str]
    value: float
    weight: float
    contribution: float


class RuleName(msgspec.Struct, frozen=True, kw_only=True):
    """One rule of the decision.

    Attributes:
        rule: Its position among the decision's `rules`.
        name: Its kind and column.
    """

    rule: int
    name: str


class BoostPart(msgspec.Struct, frozen=True, kw_only=True):
    """What one rule added to the score."""

    rule: int
    name: str
    boost: float


class RunnerUp(msgspec.Struct, frozen=True, kw_only=True):
    """The best item that the slot could also have held."""

    item_id: str
    score: float
    boost: float
    boosted_score: float
    propensity: float


class RemovedItem(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate that rules kept out of the slot, and every rule that alone would have."""

    item_id: str
    score: float
    boost: float
    boosted_score: float
    removed_by: list[RuleName]


class ExplainedExplorer(msgspec.Struct, frozen=True, kw_only=True):
    """What a VW explorer said of the slot's shortlist."""

    model: str
    version: int
    shortlist_pmf: dict[str, float]
    in_words: str


class ExplainedSlot(msgspec.Struct, frozen=True, kw_only=True):
    """Why one slot holds what it holds.

    Attributes:
        slot: From 0.
        item_id: What was shown.
        source: Candidate source.
        reason: greedy, explore, discovery, sponsored or pinned.
        score: Expected reward before boosts, as logged.
        score_terms: What it adds up from under the weights of `Explanation.weights`, largest first; empty without them.
        score_sum: Their sum: the score, when the weights are those of the decision's version.
        boost: What rules added, as logged.
        boosts: The same by rule.
        boosted_score: Both together.
        greedy_item_id: The first of the best items.
        propensity: Conditional probability given the slots before, as logged.
        n_feasible: How many items the slot could hold.
        n_greedy: How many of them tied for best.
        arithmetic: The parts that the propensity is the sum of.
        in_words: The propensity in a sentence.
        score_in_words: The score, its largest terms and the boosts in a sentence.
        rules_in_words: The runner-up and what rules removed in a sentence.
        explorer: What a VW explorer said, None without one.
        runner_up: None when the slot could hold nothing else.
        removed: The best that rules kept out, best first; items of earlier slots are not among them.
        uniform_drawn: The number that was drawn.
        cumulative_before: Cumulative probability of the feasible items before it.
        rules_that_gave_way: Rules relaxed for this slot.
        features: The item's features as served.
    """

    slot: int
    item_id: str
    source: str
    reason: str
    score: float
    score_terms: list[ScoreTerm]
    score_sum: float | None
    boost: float
    boosts: list[BoostPart]
    boosted_score: float
    greedy_item_id: str
    propensity: float
    n_feasible: int
    n_greedy: int
    arithmetic: dict[str, float]
    in_words: str
    score_in_words: str
    rules_in_words: str
    explorer: ExplainedExplorer | None
    runner_up: RunnerUp | None
    removed: list[RemovedItem]
    uniform_drawn: float
    cumulative_before: float
    rules_that_gave_way: list[str]
    features: dict[str, dict[str, float]]


class ExplainedWeights(msgspec.Struct, frozen=True, kw_only=True):
    """Whose weights the score terms are.

    Attributes:
        model: The model that ranked.
        decision_version: Its version that the decision was made with.
        version: Its version that the terms are of; None when there are no terms.
        in_words: Both in a sentence, or why there are no terms.
    """

    model: str
    decision_version: int
    version: int | None
    in_words: str


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why each slot of a decision."""

    event_id: str
    surface: str
    decided_at_unix_ms: int
    versions: Versions
    exploration: Exploration
    rules: list[Rule]
    discovery_positions: list[int]
    degraded: list[str]
    n_candidates: int
    features: dict[str, dict[str, float]]
    weights: ExplainedWeights
    slots: list[ExplainedSlot]
    slate_propensity: float
    latency_ms: dict[str, float]
