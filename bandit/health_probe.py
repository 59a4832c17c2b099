"""A frozen set of contexts that every model scores, to see what it would show: does it collapse on few genres?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bandit.health_statistics import normalised_entropy
from bandit.policy import ActionFeatures, WeightTable
from bandit.vw_format import Encoded

# A slate's worth of best items of each context.
N_TOP = 10
# A candidate's entropy may be this share below the live model's, and so many standard deviations below earlier ones.
MAX_DROP = 0.1
MAX_SDS = 3.0
N_RETRAINS = 7
# With fewer earlier retrains their spread is not known.
_MIN_RETRAINS = 3
# Retrains on the same log differ so little that their spread alone would block what nobody would notice.
_SMALLEST_SD = 0.005


@dataclass(frozen=True, slots=True)
class ProbeContext:
    """One context and the actions it is asked about.

    Attributes:
        shared: Shared features by namespace, position at its reference.
        actions: Features of n actions by namespace.
        genres: Of each action, n lists.
    """

    shared: Mapping[str, Encoded]
    actions: Mapping[str, ActionFeatures]
    genres: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """The contexts.

    Attributes:
        schema_version: Feature schema that they are encoded by; a model of another one cannot be probed.
        contexts: In a fixed order.
    """

    schema_version: str
    contexts: Sequence[ProbeContext]

    @property
    def n_genres(self) -> int:
        """Return the different genres among all actions."""
        return len({genre for context in self.contexts for genres in context.genres for genre in genres})


def probe_entropy(table: WeightTable, probe: ProbeSet, *, n_top: int = N_TOP) -> float:
    """Return the normalised genre entropy of a model's `n_top` best items of every context.

    Actions that tie at the edge share what is left, so that a model that has learned nothing shows everything alike.

    Raises:
        ValueError: the model is of another feature schema, or the set is empty.
    """
    if table.spec.schema_version != probe.schema_version:
        raise ValueError(
            f"the probe set is of feature schema {probe.schema_version}, the model of {table.spec.schema_version}; "
            "build it again with hone health probe"
        )
    if not probe.contexts:
        raise ValueError("the probe set has no contexts")
    counts: dict[str, float] = {}
    for context in probe.contexts:
        scores = table.score(context.shared, context.actions)
        edge = np.sort(scores)[::-1][min(n_top, len(scores)) - 1]
        above, tied = scores > edge, scores == edge
        share = (min(n_top, len(scores)) - above.sum()) / tied.sum()
        for action in np.flatnonzero(above | tied).tolist():
            genres = context.genres[action]
            for genre in genres:
                counts[genre] = counts.get(genre, 0.0) + (1.0 if above[action] else float(share)) / len(genres)
    return normalised_entropy(counts.values(), n_values=probe.n_genres)


def collapse_reason(candidate: float, *, live: float, earlier: Sequence[float]) -> str:
    """Return why a candidate model must not be promoted, empty when its probe entropy is no worse.

    Args:
        candidate: its probe entropy.
        live: that of the live model, on the same set.
        earlier: those of earlier retrains, oldest first; the last seven count.
    """
    if candidate < live * (1.0 - MAX_DROP):
        return f"probe entropy {candidate:.3f} is more than {MAX_DROP:.0%} below the live model's {live:.3f}"
    last = earlier[-N_RETRAINS:]
    if len(last) >= _MIN_RETRAINS:
        mean, sd = statistics.fmean(last), max(statistics.stdev(last), _SMALLEST_SD)
        if candidate < mean - MAX_SDS * sd:
            return (
                f"probe entropy {candidate:.3f} is more than {MAX_SDS:g} sd below the {mean:.3f} "
                f"of the last {len(last)} retrains"
            )
    return ""
