"""VW on DSJSON lines, slot by slot: what a model says of the actions that a slot could hold, and what it learns of it.

A slot of CCB becomes a line of a single action: the context with the slot's own features, and the actions that the
slots above have left. So a model sees of a slot what it sees of a single action, and a policy goes along the logged
slate as it does along one of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import numpy as np
from vowpal_wabbit_next import DSJsonFormatParser, PredictionType, Workspace

from bandit.support import Float64Array
from simulators.logged.batches import Int64Array
from simulators.logged.dsjson_lines import LoggedChoice, LoggedLine, RejectedLine
from simulators.logged.import_report import LogRefused

Named = dict[str, msgspec.Raw]


class _Whole(msgspec.Struct, frozen=True):
    context: Named = msgspec.field(name="c")


_whole_decoder = msgspec.json.Decoder(_Whole)
_slots_decoder = msgspec.json.Decoder(list[Named])


@dataclass(frozen=True, slots=True)
class SlotLine:
    """One slot as a line of a single action.

    Attributes:
        text: The line.
        places: int64 [K], where the actions of the choice are in its `_multi`.
    """

    text: str
    places: Int64Array


def slot_lines(line: LoggedLine) -> list[SlotLine]:
    """Return the slots of a line, each as a line of its own.

    Raises:
        RejectedLine: what a slot could hold is not known, or its features cannot be told from those of the context.
    """
    if not line.is_slate:
        return [SlotLine(line.raw.decode(), np.array(line.slots[0].actions))]
    context = _whole_decoder.decode(line.raw).context
    own = _slots_decoder.decode(context["_slots"]) if "_slots" in context else [{}] * len(line.slots)
    if len(own) != len(line.slots):
        raise RejectedLine("_slots: must be as many as _outcomes")
    shared = {name: value for name, value in context.items() if name not in ("_multi", "_slots")}
    return [_slot_line(line, choice, shared, features) for choice, features in zip(line.slots, own, strict=True)]


def _slot_line(line: LoggedLine, choice: LoggedChoice, shared: Named, features: Named) -> SlotLine:
    if not choice.is_whole:
        raise RejectedLine("_p: must sum to 1, or nobody knows what the slot could hold")
    # `_id` and `_inc` say of a slot what the logged pmf says.
    own = {name: value for name, value in features.items() if not name.startswith("_")}
    if own.keys() & shared.keys():
        raise RejectedLine("_slots: a namespace is one of the context, too")
    n = len(choice.actions)
    # VW wants what was shown first, and counts actions from 1.
    order = [choice.shown, *(action for action in range(n) if action != choice.shown)]
    single = {
        "_label_cost": 0.0 - choice.reward,
        "_label_probability": choice.propensity,
        "_label_Action": choice.shown + 1,
        "_labelIndex": choice.shown,
        "a": [action + 1 for action in order],
        "p": choice.pmf[order].tolist(),
        "c": {**shared, **own, "_multi": [line.multi[action] for action in choice.actions]},
    }
    return SlotLine(msgspec.json.encode(single).decode(), np.arange(n))


class LineModel:
    """A VW model of single actions.

    Args:
        arguments: such as `--cb_adf --cb_type mtr -q UA` or `--cb_explore_adf --bag 5`.
        model: serialised, to go on from; None for an empty one.

    Attributes:
        explores: Whether it gives a pmf of its own; else it gives rewards.

    Raises:
        LogRefused: VW refuses the arguments or the model, or the model is none of single actions.
    """

    def __init__(self, arguments: Sequence[str], *, model: bytes | None = None) -> None:
        try:
            self._workspace: Workspace[Any] = Workspace([*arguments, "--quiet"], model_data=model)
        except RuntimeError as error:
            raise LogRefused(f"VW refuses {' '.join(arguments)!r}: {error}") from error
        kind = self._workspace.prediction_type
        if kind not in (PredictionType.ActionProbs, PredictionType.ActionScores):
            raise LogRefused(f"VW's arguments must be of --cb_adf or --cb_explore_adf, got a model of {kind.name}")
        # The binding makes a new object at every look: `is` never holds.
        self.explores = kind == PredictionType.ActionProbs
        self._parser = DSJsonFormatParser(self._workspace)

    def predict(self, slot: SlotLine) -> Float64Array:
        """Return float64 [K]: rewards of a slot's actions, or the model's own pmf over them when it explores."""
        examples = self._parser.parse_json(slot.text)
        pairs = cast("list[tuple[int, float]]", self._workspace.predict_one(examples))
        predicted: Float64Array = np.zeros(len(pairs))
        for action, value in pairs:
            predicted[action] = value
        predicted = predicted[slot.places]
        # VW's pmf is float32.
        return predicted / predicted.sum() if self.explores else 0.0 - predicted

    def learn(self, slot: SlotLine) -> None:
        """Learn what became of a slot."""
        self._workspace.learn_one(self._parser.parse_json(slot.text))
