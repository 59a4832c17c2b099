"""Slots of DSJSON lines as estimators need them, and batches of such lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bandit.support import Float64Array
from simulators.logged.batches import LoggedBatch, clusters_of_rows, values_to_go
from simulators.logged.dsjson_lines import LoggedChoice


class SlotRow(NamedTuple):
    """One slot under a target policy.

    Attributes:
        reward: Better is up.
        propensity: Logged.
        target: The target policy's propensity of the same action.
        n_feasible: How many actions the slot could hold.
        max_weight: The largest weight that it could have had.
        score: A model's reward of what was shown, NaN without a model.
        expected: Its mean under the target policy, NaN without a model.
    """

    reward: float
    propensity: float
    target: float
    n_feasible: int
    max_weight: float
    score: float = math.nan
    expected: float = math.nan

    @classmethod
    def of(cls, choice: LoggedChoice, pmf: Float64Array, *, scores: Float64Array | None = None) -> SlotRow:
        """Build the row of a target policy's pmf.

        Args:
            choice: as logged.
            pmf: float64 [K], over the actions of the choice.
            scores: float64 [K], a model's rewards of them.
        """
        return cls(
            reward=choice.reward,
            propensity=choice.propensity,
            target=float(pmf[choice.shown]),
            n_feasible=len(choice.pmf),
            max_weight=max_weight(pmf, choice),
            score=math.nan if scores is None else float(scores[choice.shown]),
            expected=math.nan if scores is None else float(pmf @ scores),
        )


def max_weight(targets: Float64Array, choice: LoggedChoice) -> float:
    """Return the largest weight of a slot: over all actions that could be drawn, not the drawn one alone.

    Infinite when the logged pmf does not name them all.

    Args:
        targets: float64 [K], the target policy's probabilities, or what they are at most.
        choice: as logged.
    """
    if not choice.is_whole:
        return math.inf
    if choice.pmf.min() > 0.0:
        return float((targets / choice.pmf).max())
    drawable = choice.pmf > 0.0
    return float((targets[drawable] / choice.pmf[drawable]).max())


def batch_of(
    lines: Sequence[Sequence[SlotRow]],
    *,
    n_slots: int,
    first: int,
    position_weights: Float64Array,
    are_independent: bool,
    embedding_weights: Sequence[float] | None = None,
) -> LoggedBatch:
    """Return lines as a batch.

    Args:
        lines: slots of each.
        n_slots: of the batch.
        first: number of the first line among those accepted.
        position_weights: float64 [S or more], what a reward at each slot is worth to the model's values.
        are_independent: whether lines can be taken for independent.
        embedding_weights: of each line, see `LoggedBatch`; None without embeddings.
    """
    n, lengths = len(lines), [len(slots) for slots in lines]
    columns = np.zeros((len(SlotRow._fields), n, n_slots))
    columns[1:3] = 1.0
    # bool [n, S]: which slots a line has, in the order in which they follow each other.
    held = np.arange(n_slots) < np.array(lengths)[:, None]
    columns[:, held] = np.array([slot for slots in lines for slot in slots]).T
    rewards, propensities, targets, n_feasible, largest, logged, expected = columns
    has_model = not np.isnan(logged).any()
    for row, length in enumerate(lengths if has_model else ()):
        both = columns[5:, row, :length]
        both[:] = values_to_go(both[0], both[1], position_weights[:length])
    return LoggedBatch(
        rewards=rewards,
        propensities=propensities,
        targets=targets,
        # The format names no users; a decision is a cluster.
        clusters=clusters_of_rows(first, n),
        discovery_weights=np.ones(n),
        n_feasible=n_feasible.astype(np.int64),
        model_logged=logged if has_model else None,
        model_target=expected if has_model else None,
        max_weights=largest[:, 0],
        are_independent=are_independent,
        embedding_weights=None if embedding_weights is None else np.array(embedding_weights),
    )
