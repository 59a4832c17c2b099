"""Decisions as lines that VW reads with `--dsjson`, hashed by it to the indices that learning used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import orjson

from bandit.features import FeatureSchema
from bandit.learner import MIN_LEARNING_PROPENSITY
from bandit.slot import SlotPmf
from bandit.vw_format import ACTION_NAMESPACES, NAMESPACE_LETTERS, SHARED_NAMESPACES, encode, feature_index
from service.learned import LearnedDecision, named_features
from service.messages import Outcome

Named = Mapping[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Explored:
    """What exploring a slot gave its item.

    Attributes:
        explore_probability: Of not taking the greedy part of the mixture.
        explore_propensity: Of the item, once that part was not taken.
        branch_probability: Of the part that drew it: shortlist or uniform.
        branch_propensity: Of the item within that part.
    """

    explore_probability: float
    explore_propensity: float
    branch_probability: float
    branch_propensity: float

    @classmethod
    def of(cls, here: SlotPmf, *, action: int, branch: str) -> Explored:
        """Take a slot's mixture apart."""
        mixture = here.mixture
        masses = {"uniform": mixture.uniform, "shortlist": float(mixture.shortlist.sum())}
        on_shortlist = mixture.shortlist[here.view.top == action]
        own = {"uniform": mixture.uniform / here.view.n_allowed, "shortlist": float(on_shortlist.sum())}
        explored = sum(masses.values())
        return cls(
            explore_probability=explored,
            explore_propensity=sum(own.values()) / explored,
            branch_probability=masses[branch],
            branch_propensity=own[branch] / masses[branch],
        )


@dataclass(frozen=True, slots=True)
class _Choice:
    """What a line chooses from.

    Attributes:
        context: Shared features, and those of each action.
        items: The actions' items.
        pmf: Their probabilities.
        chosen: Which was drawn.
        probability: What it is labelled with.
    """

    context: Mapping[str, Any]
    items: Sequence[str]
    pmf: Sequence[float | np.float32]
    chosen: int
    probability: float | np.float32


def training_line(decision: LearnedDecision, outcome: Outcome, *, schema: FeatureSchema) -> bytes:
    """Return shared features and the drawn action alone, with the label that the learner learns from.

    `_label_probability` is the propensity as the learner clips it; `propensity` is the one that was logged.
    """
    probability = np.float32(max(outcome.propensity, MIN_LEARNING_PROPENSITY))
    return _line(outcome, _drawn(decision, outcome, probability, schema=schema))


def explored_line(
    decision: LearnedDecision, outcome: Outcome, probabilities: Explored, *, schema: FeatureSchema
) -> bytes:
    """Return a training line of an explored slot, labelled with `explore_propensity`, clipped as in training.

    Every probability of `probabilities` stands beside it, unclipped.
    """
    probability = np.float32(max(probabilities.explore_propensity, MIN_LEARNING_PROPENSITY))
    return _line(outcome, _drawn(decision, outcome, probability, schema=schema), extra=asdict(probabilities))


def evaluation_line(
    decision: LearnedDecision,
    outcome: Outcome,
    *,
    schema: FeatureSchema,
    actions: Mapping[str, Any],
    pmf: Sequence[float],
) -> bytes:
    """Return a slot with every action it could hold.

    Args:
        decision: that the slot is of.
        outcome: of the slot.
        schema: of the features.
        actions: features of each action, by item id.
        pmf: the probability of each action in this slot, given the slots before.
    """
    items = list(actions)
    chosen = items.index(outcome.item_id)
    context = {**shared_context(decision, outcome.slot, schema=schema), "_multi": list(actions.values())}
    return _line(outcome, _Choice(context, items, pmf, chosen, pmf[chosen]))


def _drawn(decision: LearnedDecision, outcome: Outcome, probability: np.float32, *, schema: FeatureSchema) -> _Choice:
    """Return the drawn action as the only one."""
    action = action_context(_named(decision.slots[outcome.slot].features))
    context = {**shared_context(decision, outcome.slot, schema=schema), "_multi": [action]}
    return _Choice(context, [outcome.item_id], [probability], 0, probability)


def shared_context(decision: LearnedDecision, slot: int, *, schema: FeatureSchema) -> dict[str, Any]:
    """Return the shared features as learned: the position where the item stood."""
    named = {**_named(decision.features), "position": schema.named("position", {"slot": slot})}
    return _namespaces(named, SHARED_NAMESPACES)


def _named(features: Mapping[str, msgspec.Raw]) -> dict[str, dict[str, float]]:
    return {namespace: named_features(packed) for namespace, packed in features.items()}


def action_context(features: Named) -> dict[str, Any]:
    """Return the features of an action."""
    return _namespaces(features, ACTION_NAMESPACES)


def _line(outcome: Outcome, choice: _Choice, *, extra: Mapping[str, float] | None = None) -> bytes:
    decided_at = datetime.fromtimestamp(outcome.decided_at_unix_ms / 1000, UTC)
    # VW wants the drawn action first, with its probability first.
    order = [choice.chosen, *(index for index in range(len(choice.items)) if index != choice.chosen)]
    line = {
        "_label_cost": np.float32(-outcome.reward),
        "_label_probability": choice.probability,
        "_label_Action": choice.chosen + 1,
        "_labelIndex": choice.chosen,
        "Version": "1",
        "EventId": outcome.event_id,
        "Timestamp": decided_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "a": [index + 1 for index in order],
        "c": choice.context,
        "p": [choice.pmf[index] for index in order],
        "VWState": {"m": outcome.model},
        # VW passes over what follows. The items are in the order of `_multi`.
        "items": choice.items,
        "slot": outcome.slot,
        "surface": outcome.surface,
        "kind": outcome.kind,
        "branch": outcome.branch,
        "propensity": outcome.propensity,
        **(extra or {}),
    }
    return orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def _namespaces(named: Named, namespaces: Sequence[str]) -> dict[str, Any]:
    """Return the features that are not 0, in the order in which the learner adds them up."""
    found = {name: _features(name, named[name]) for name in namespaces if name in named}
    return {NAMESPACE_LETTERS[name]: features for name, features in found.items() if features}


def _features(namespace: str, named: dict[str, float]) -> dict[str, np.float32]:
    encoded = encode(namespace, named)
    seed = feature_index(namespace, "")
    # float32 prints the shortest text that reads back as the same number, whatever VW's parser rounds on the way.
    return {
        _json_name(name, (index - seed) & 0xFFFFFFFF): value
        for name, index, value in zip(encoded.names, encoded.indices.tolist(), encoded.values, strict=True)
    }


def _json_name(name: str, offset: int) -> str:
    """Return a name that VW's JSON parser hashes as its text parser hashes `name`.

    VW takes a name of digits as a number, added to the namespace's hash. So a name that its JSON parser reads otherwise
    (`_` begins its own keys, NUL ends a name) is written as that number.
    """
    return str(offset) if name.startswith("_") or "\0" in name else name
