"""A slot's score as a sum: what every feature, and every pair of features that interact, brought to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bandit.policy import WeightTable, score_terms
from bandit.vw_format import Encoded, encode
from service.explanation import BoostPart, ExplainedWeights, ScoreTerm
from service.kept_weights import NoWeights
from service.messages import Decision, SlotRecord

_SHOWN = 6


@dataclass(frozen=True, slots=True)
class ExplainedScore:
    """The terms of one score.

    Attributes:
        terms: By size, largest first.
        total: Their sum.
    """

    terms: list[ScoreTerm]
    total: float


def explain_weights(decision: Decision, weights: WeightTable | NoWeights) -> ExplainedWeights:
    """Say whose weights the terms are."""
    wanted = decision.versions.model
    if isinstance(weights, NoWeights):
        words = f"The scores have no terms: {weights.reason}."
    elif weights.version == wanted:
        words = f"The terms of the scores are of version {wanted}, which the decision was made with."
    else:
        words = (
            f"The terms of the scores are of version {weights.version}: version {wanted}, which the decision was made "
            "with, is no longer kept. They do not sum to the logged scores."
        )
    return ExplainedWeights(
        model=decision.model,
        decision_version=wanted,
        version=None if isinstance(weights, NoWeights) else weights.version,
        in_words=words,
    )


def explain_score(decision: Decision, record: SlotRecord, table: WeightTable) -> ExplainedScore:
    """Return the terms of a slot's score: of the features as served, the position being the reference."""
    parts = score_terms(table.spec, _encoded(decision.features), _encoded(record.features))
    weights = table.weights[parts.positions]
    rewards = parts.rewards(weights).tolist()
    rows = zip(parts.features, parts.values.tolist(), weights.tolist(), rewards, strict=True)
    terms = [
        ScoreTerm(
            features=[f"{namespace}:{name}" for namespace, name in features],
            value=value,
            weight=0.0 - weight,
            contribution=reward,
        )
        for features, value, weight, reward in rows
    ]
    terms.sort(key=lambda term: -abs(term.contribution))
    return ExplainedScore(terms=terms, total=math.fsum(rewards))


def score_in_words(logged: float, score: ExplainedScore | None, boosts: Sequence[BoostPart]) -> str:
    """Say what a score adds up from: its largest terms, the others together, and the boosts."""
    said = f"Score {logged:+.4f}"
    if score is not None:
        largest = [term for term in score.terms[:_SHOWN] if term.contribution != 0.0]
        others = score.terms[len(largest) :]
        rest = math.fsum(term.contribution for term in others)
        addends = [f"{term.contribution:+.4f} {' x '.join(term.features) or 'constant'}" for term in largest]
        # The logged score is rounded to float32.
        is_sum = math.isclose(score.total, logged, rel_tol=1e-6, abs_tol=1e-6)
        said += " = " if is_sum else f" was logged; under the weights at hand it is {score.total:+.4f} = "
        said += ", ".join([*addends, f"{rest:+.4f} {len(others)} others"])
    if boosts:
        said += f". Boosts: {', '.join(f'{part.boost:+.4f} {part.name}' for part in boosts)}"
    return f"{said}."


def _encoded(named: Mapping[str, dict[str, float]]) -> dict[str, Encoded]:
    return {namespace: encode(namespace, features) for namespace, features in named.items()}
