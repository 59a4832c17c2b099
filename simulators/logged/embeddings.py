"""Weights of MIPS from a log: how much more often the target policy shows an action like the one that was shown.

Actions are alike when they have the same embedding: the same genre, the same cluster, the same vector. A log carries
these weights where it has the logged probability and the embedding of every action that could be drawn, not of the
drawn one alone; then the probability of an embedding under both policies is a plain sum, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from bandit.estimators import marginal_weights
from bandit.support import Float64Array
from service.messages import Decision
from simulators.logged.dsjson_lines import LoggedChoice, RejectedLine
from simulators.logged.import_report import LogRefused

BoolArray = npt.NDArray[np.bool_]


def embedding_weight(target: Float64Array, logged: Float64Array, *, is_alike: BoolArray) -> float:
    """Return p(e | target) / p(e | logged) for the embedding e of what was shown.

    Args:
        target: float64 [K], the target policy's probabilities.
        logged: float64 [K], the logged ones; above 0 for what was shown.
        is_alike: bool [K], which actions have the embedding of what was shown, itself among them.
    """
    of_two = np.column_stack([is_alike, ~is_alike]).astype(np.float64)
    shown = np.zeros(1, dtype=np.int64)
    return float(marginal_weights(target[None], logged[None], embedding_pmf=of_two, embeddings=shown)[0])


def note_of(embedding: str) -> str:
    """Return what a reader of MIPS must know."""
    return (
        f"mips takes actions with the same {embedding} for alike: whatever else of an action changes its reward makes "
        "it wrong, and no figure of the log shows that; where ips has support, compare the two"
    )


def refuse_slates(embedding: str, n_slots: int) -> None:
    """Refuse a log of slates.

    Raises:
        LogRefused: it has more than one slot.
    """
    if n_slots > 1:
        raise LogRefused(f"mips (by {embedding}) is of single actions, got slates of up to {n_slots} slots")


def alike_in_line(choice: LoggedChoice, multi: Sequence[msgspec.Raw], *, path: str) -> BoolArray:
    """Return bool [K]: which actions of a DSJSON line have the embedding of what was shown.

    Args:
        choice: as logged.
        multi: the actions of the line.
        path: where the embedding is in an action, such as `A.genre` for `{"A": {"genre": "drama"}}`.

    Raises:
        RejectedLine: an action has none.
    """
    found = [_embedding(multi[action], path) for action in choice.actions]
    return np.array([one == found[choice.shown] for one in found])


def alike_in_decision(decision: Decision, *, column: str) -> BoolArray | None:
    """Return bool [K]: which candidates have the embedding of what stands in the first slot; None without the column.

    Args:
        decision: with at least one slot.
        column: one of the columns that were logged because rules or features read them.
    """
    packed = decision.candidates.columns.get(column)
    if packed is None:
        return None
    dtype, content = packed
    values = np.frombuffer(content, dtype=np.dtype(dtype))
    shown = values[decision.slots[0].action]
    # What has no value (NaN) is alike, too.
    alike: BoolArray = (values == shown) | ((values != values) & (shown != shown))
    return alike


def _embedding(action: msgspec.Raw, path: str) -> bytes:
    value = msgspec.json.decode(action)
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            raise RejectedLine(f"embedding: an action has no {path}")
        value = value[name]
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
