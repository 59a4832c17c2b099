"""VW's own explorers (`--cb_explore_adf`) on a shortlist: the pmf of a few actions, learned on all of them.

An explorer keeps more than one table of weights, or state outside them, so it is treated as a whole: it is serialised,
never read. At catalogue scale these explorers explore too much or support too little: they see a shortlist.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from vowpal_wabbit_next import CBLabel, Workspace

from bandit.columns import Float64Array, Int64Array
from bandit.learner import MIN_LEARNING_PROPENSITY
from bandit.policy import ActionFeatures, Interactions, row_features
from bandit.vw_format import (
    ACTION_NAMESPACES,
    Encoded,
    ExamplePool,
    VwWorkspace,
    learn_example,
    predict_costs,
    table_arguments,
)

# What may be set; everything else of a model is set in one place for all models, and VW's options can also write files.
_SWITCHES = frozenset({"--cb_explore_adf", "--greedify", "--nounif", "--first_only", "--softmax", "--regcb"})
_SWITCHES |= {"--regcbopt", "--squarecb", "--synthcover"}
_WITH_VALUE = frozenset({"--cb_type", "--epsilon", "--bag", "--cover", "--psi", "--rnd", "--rnd_alpha"})
_WITH_VALUE |= {"--rnd_invlambda", "--mellowness", "--gamma_scale", "--gamma_exponent", "--first", "--lambda"}
_WITH_VALUE |= {"--synthcoverpsi", "--random_seed", "--cb_min_cost", "--cb_max_cost"}
# RegCB asks what could still be best among costs within a range, by default [0, 1]. Ours are rewards with the sign
# changed: outside it, where nothing can be told from anything.
_COST_RANGE = ("--cb_min_cost", "-1", "--cb_max_cost", "1")


@dataclass(frozen=True, slots=True)
class ExplorerSpec:
    """What makes two explorers interchangeable: everything but what they learned.

    Attributes:
        arguments: VW's, for example `("--cb_explore_adf", "--bag", "5")`.
        bits: log2 of the table size; loading a model costs memory and time in proportion to it.
        learning_rate: VW's `-l`.
        interactions: pairs of namespaces.
        schema_version: of the feature schema the explorer is trained on.
        baseline: as of a `ModelSpec`.
        power_t: as of a `ModelSpec`.
    """

    arguments: tuple[str, ...]
    bits: int
    learning_rate: float
    interactions: Interactions
    schema_version: str
    baseline: bool = True
    power_t: float = 0.0

    def command(self) -> list[str]:
        """Return VW's command line for this explorer; RegCB's costs are within [-1, 1] if nothing else is said."""
        has_range = {"--cb_min_cost", "--cb_max_cost"}.intersection(self.arguments)
        needs_range = {"--regcb", "--regcbopt"}.intersection(self.arguments)
        costs = _COST_RANGE if needs_range and not has_range else ()
        table = table_arguments(
            self.interactions,
            learning_rate=self.learning_rate,
            bits=self.bits,
            power_t=self.power_t,
            baseline=self.baseline,
        )
        return [*self.arguments, *costs, *table]


def parse_explorer_arguments(text: str) -> tuple[str, ...]:
    """Return VW's arguments of an explorer.

    Raises:
        ValueError: not `--cb_explore_adf`, or an option that is not about exploration.

    >>> parse_explorer_arguments("--cb_explore_adf --bag 5")
    ('--cb_explore_adf', '--bag', '5')
    """
    arguments = tuple(shlex.split(text))
    if "--cb_explore_adf" not in arguments:
        raise ValueError(f"an explorer's arguments must have --cb_explore_adf, got {text!r}")
    waiting = ""
    for argument in arguments:
        if waiting:
            if argument.startswith("-") and not argument[1:2].isdigit():
                raise ValueError(f"{waiting} must be followed by its value, got {argument!r}")
            waiting = ""
        elif argument in _WITH_VALUE:
            waiting = argument
        elif argument not in _SWITCHES:
            allowed = " ".join(sorted(_SWITCHES | _WITH_VALUE))
            raise ValueError(f"{argument!r} cannot be set for an explorer, allowed are {allowed}")
    if waiting:
        raise ValueError(f"{waiting} must be followed by its value, got nothing")
    return arguments


class Explorer:
    """One VW model with a `--cb_explore_adf` reduction."""

    def __init__(self, spec: ExplorerSpec, model_bytes: bytes | None = None) -> None:
        """Start empty, or from `model_bytes` of an earlier `serialize`.

        The bytes must be whole: VW loads many damaged models without a word, and some of them crash the process.

        Raises:
            ValueError: VW refuses the arguments or the model.
        """
        self.spec = spec
        self._mask = np.uint32((1 << spec.bits) - 1)
        self._pool = ExamplePool()
        try:
            self._workspace: VwWorkspace = Workspace(spec.command(), model_data=model_bytes)
        except RuntimeError as error:
            raise ValueError(f"explorer {' '.join(spec.arguments)!r}: {error}") from error
        self.n_learned = 0
        self.loss_sum = 0.0

    def learn(
        self,
        shared: Mapping[str, Encoded],
        actions: Sequence[Mapping[str, Encoded]],
        *,
        chosen: int,
        reward: float,
        propensity: float,
    ) -> None:
        """Learn one outcome among all actions of its shortlist.

        Args:
            shared: context, user and position features as they were served.
            actions: features of every action as they were served.
            chosen: position of the placed one.
            reward: better is up.
            propensity: the logged conditional propensity, in (0, 1].
        """
        label = CBLabel(label=(-reward, max(propensity, MIN_LEARNING_PROPENSITY)))
        masked = [self._masked(action) for action in actions]
        learn_example(self._workspace, self._pool.fill(self._masked(shared), masked, chosen=chosen, label=label))
        self.n_learned += 1

    def pmf(self, shared: Mapping[str, Encoded], actions: Sequence[Mapping[str, Encoded]]) -> Float64Array:
        """Return float64 [m], VW's pmf over the actions in their order; it sums to 1 within 1e-12."""
        examples = self._pool.fill(self._masked(shared), [self._masked(action) for action in actions])
        return _by_action(predict_costs(self._workspace, examples), len(actions))

    def ask(self, shared: Mapping[str, Encoded], features: Mapping[str, ActionFeatures]) -> ExplorerRequest:
        """Return the explorer's pmfs for one request; ask only one request at a time."""
        return ExplorerRequest(self, self._masked(shared), features)

    def serialize(self) -> bytes:
        """Return the whole model."""
        return bytes(self._workspace.serialize())

    def _masked(self, namespaces: Mapping[str, Encoded]) -> dict[str, Encoded]:
        # `--rnd` draws a feature's first weight from its index, which VW's parsers mask.
        return {name: Encoded(e.names, e.indices & self._mask, e.values) for name, e in namespaces.items()}


class ExplorerRequest:
    """The pmfs of one request; an action that stands on several shortlists is built once."""

    def __init__(
        self, explorer: Explorer, shared: Mapping[str, Encoded], features: Mapping[str, ActionFeatures]
    ) -> None:
        self._explorer = explorer
        self._features = features
        self._shared = explorer._pool.fill_shared(shared)
        self._place_of: dict[int, int] = {}

    def pmf(self, shortlist: Int64Array) -> Float64Array:
        """Return float64 [m], VW's pmf over a shortlist of action positions, in its order."""
        pool = self._explorer._pool
        examples = [self._shared]
        for action in shortlist.tolist():
            place = self._place_of.get(action)
            if place is None:
                place = self._place_of[action] = len(self._place_of)
                row = action_features(self._features, action)
                pool.fill_action(place, self._explorer._masked(row), label=CBLabel())
            examples.append(pool.action(place))
        return _by_action(predict_costs(self._explorer._workspace, examples), len(shortlist))


def action_features(features: Mapping[str, ActionFeatures], action: int) -> dict[str, Encoded]:
    """Return the features of one action by namespace; names are unknown and empty."""
    return {name: row_features(features[name], action) for name in ACTION_NAMESPACES if name in features}


def _by_action(pairs: Sequence[tuple[int, float]], n: int) -> Float64Array:
    """Return float64 [n] from VW's float32 pairs, which are ordered by probability and sum to 1 within float32 only.

    What is no pmf at all (a model whose weights have overflowed) becomes the uniform one: it is logged like any other.
    """
    pmf = np.zeros(n)
    for action, probability in pairs:
        pmf[action] = max(probability, 0.0)
    total = pmf.sum()
    if not (np.isfinite(total) and total > 0.0):
        return np.full(n, 1.0 / n)
    pmf /= total
    return pmf
