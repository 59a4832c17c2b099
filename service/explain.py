"""Why each slot: the terms of its score, boosts and removals by rule, and the arithmetic of the propensity."""

from __future__ import annotations

import asyncio

import numpy as np

from bandit.exploration import VwExplorer
from bandit.policy import WeightTable
from bandit.slot import SlotPmf
from service.config import Config
from service.decision_record import walk_of
from service.errors import NotFound
from service.explain_rules import ExplainedRules, RuleWalks
from service.explain_score import ExplainedScore, explain_score, explain_weights, score_in_words
from service.explanation import ExplainedExplorer, ExplainedSlot, Explanation
from service.kept_weights import NoWeights, fetch_table
from service.messages import Decision, SlotRecord, journal_decoder
from service.ports import ChangeLog, Journal, ModelStore

_PART_IN_WORDS = {
    "greedy": "for being best",
    "shortlist": "from the shortlist",
    "uniform": "from the uniform share",
    "sponsored": "for being sponsored",
    "pinned": "for being pinned",
}


class Explainer:
    """Explains decisions that are still in the journal, under the weights that they were made with."""

    def __init__(self, *, config: Config, journal: Journal, models: ModelStore, log: ChangeLog) -> None:
        self._config = config
        self._journal = journal
        self._models = models
        self._log = log

    async def explain(self, event_id: str) -> Explanation:
        """Return the explanation of a decision; whatever takes long runs in a thread.

        Raises:
            NotFound: the decision is not in the journal.
        """
        decision = await find_decision(self._journal, event_id)
        if decision is None:
            raise NotFound(f"no decision {event_id!r} in the journal; older ones are in the archive")
        weights = await self._weights(decision)
        return await asyncio.to_thread(explain, decision, weights)

    async def _weights(self, decision: Decision) -> WeightTable | NoWeights:
        name, schema = decision.model, decision.versions.schema
        model = self._config.models.get(name)
        if model is None:
            return NoWeights(f"model {name!r} is not configured")
        if model.arguments:
            return NoWeights(f"model {name!r} is a VW explorer, which has no additive form")
        spec = self._config.model_spec(name)
        if spec.schema_version != schema:
            return NoWeights(
                f"the decision is of feature schema {schema}, the configuration declares {spec.schema_version}"
            )
        return await fetch_table(self._models, self._log, model=name, spec=spec, version=decision.versions.model)


async def find_decision(journal: Journal, event_id: str) -> Decision | None:
    """Return a decision that is still in the journal, None otherwise."""
    (claim,) = await journal.claims([event_id])
    stored = None if claim is None else await journal.entry(journal.partition_of(event_id), claim.journal_id)
    if stored is None:
        return None
    found = journal_decoder.decode(stored)
    assert isinstance(found, Decision)
    return found


def explain(decision: Decision, weights: WeightTable | NoWeights) -> Explanation:
    """Return the explanation of a decision, recomputed from its record and the weights of its model."""
    walk = walk_of(decision)
    rules = RuleWalks(decision, walk.actions)
    slots = []
    for index, record in enumerate(decision.slots):
        here = walk.pmf()
        assert here is not None
        score = None if isinstance(weights, NoWeights) else explain_score(decision, record, weights)
        slots.append(_explain_slot(decision, record, index, here, score, rules.explain(here, record.action)))
        walk.place(record.action)
        rules.place(record.action)
    return Explanation(
        event_id=decision.event_id,
        surface=decision.surface,
        decided_at_unix_ms=decision.decided_at_unix_ms,
        versions=decision.versions,
        exploration=decision.exploration,
        rules=decision.rules,
        discovery_positions=decision.discovery_positions,
        degraded=decision.degraded,
        n_candidates=len(decision.candidates.ids),
        features=decision.features,
        weights=explain_weights(decision, weights),
        slots=slots,
        slate_propensity=float(np.prod([slot.propensity for slot in decision.slots])),
        latency_ms=decision.latency_ms,
    )


def _explain_slot(
    decision: Decision,
    record: SlotRecord,
    index: int,
    here: SlotPmf,
    score: ExplainedScore | None,
    rules: ExplainedRules,
) -> ExplainedSlot:
    candidates = decision.candidates
    logged = float(np.frombuffer(candidates.scores, dtype="<f4")[record.action])
    parts = here.parts(record.action) if not here.placed_by else {here.placed_by: 1.0}
    return ExplainedSlot(
        slot=index,
        item_id=record.item_id,
        source=candidates.source_names[candidates.sources[record.action]],
        reason=record.reason,
        score=logged,
        score_terms=score.terms if score else [],
        score_sum=score.total if score else None,
        boost=record.boost,
        boosts=rules.boosts,
        boosted_score=float(here.view.scores[record.action]),
        greedy_item_id=candidates.ids[record.greedy_action],
        propensity=record.propensity,
        n_feasible=record.n_feasible,
        n_greedy=record.n_greedy,
        arithmetic=parts,
        in_words=_propensity_in_words(record, here, parts),
        score_in_words=score_in_words(logged, score, rules.boosts),
        rules_in_words=rules.in_words,
        explorer=_explain_explorer(decision, record, here),
        runner_up=rules.runner_up,
        removed=rules.removed,
        uniform_drawn=record.uniform,
        cumulative_before=record.cumulative_before,
        rules_that_gave_way=record.gave_way,
        features=record.features,
    )


def _propensity_in_words(record: SlotRecord, here: SlotPmf, parts: dict[str, float]) -> str:
    explored = here.view.explorer_pmf is not None
    words = _PART_IN_WORDS | ({"shortlist": "from the explorer"} if explored else {})
    because = ", ".join(f"{mass:.6f} {words[part]}" for part, mass in parts.items())
    return (
        f"{record.item_id} was drawn with probability {record.propensity:.6f} "
        f"from {record.n_feasible} feasible items: {because}."
    )


def _explain_explorer(decision: Decision, record: SlotRecord, here: SlotPmf) -> ExplainedExplorer | None:
    """Return what a VW explorer said of the slot's shortlist, None without one."""
    pmf, exploration = here.view.explorer_pmf, decision.exploration
    if pmf is None or not isinstance(exploration, VwExplorer):
        return None
    ids = [decision.candidates.ids[action] for action in here.view.top.tolist()]
    said = dict(zip(ids, pmf.tolist(), strict=True))
    share = said.get(record.item_id)
    of_it = "was not on its shortlist" if share is None else f"got {share:.6f} of it"
    return ExplainedExplorer(
        model=exploration.model,
        version=decision.versions.explorer,
        shortlist_pmf=said,
        in_words=(
            f"{exploration.model} divided {1.0 - exploration.uniform_share:.6f} of the probability among the "
            f"{len(said)} best items; {record.item_id} {of_it}. Its choice has no additive form: the terms are of the "
            f"score of {decision.model}, which made the shortlist."
        ),
    )
