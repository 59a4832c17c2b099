"""Features as Vowpal Wabbit hashes them: names to indices, namespaces to examples.

Nothing here formats text that VW would parse, so a value such as `tv |A i7` can open no namespace. The hashes are
VW's own (`--hash strings`), so that an export with the same names trains to the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, cast

import msgspec
import numpy as np
import numpy.typing as npt
from vowpal_wabbit_next import CBLabel, Example, Workspace
from vowpal_wabbit_next.example import FeatureGroupRef

from bandit import _native

VwWorkspace = Workspace[Literal[False]]
UInt32Array = npt.NDArray[np.uint32]
Float32Array = npt.NDArray[np.float32]

# VW's index of the feature that it adds to every example (`constant` in its sources).
CONSTANT_INDEX = 11650396
# The multiplier of VW's hash of a feature pair (FNV-1 prime).
INTERACTION_PRIME = np.uint32(16777619)

# VW tells namespaces apart by their first letter in `-q`, so each has its own.
NAMESPACE_LETTERS = {"context": "C", "user": "U", "position": "P", "item": "I", "dynamic": "D"}
SHARED_NAMESPACES = ("context", "user", "position")
ACTION_NAMESPACES = ("item", "dynamic")
_NAMESPACE_CODES = {name: ord(letter) for name, letter in NAMESPACE_LETTERS.items()}

# VW seeds the hash of a feature with that of its namespace, whose name has no namespace: seed 0.
_NAMESPACE_HASHES = {name: _native.feature_index(0, letter) for name, letter in NAMESPACE_LETTERS.items()}


def feature_index(namespace: str, name: str) -> int:
    """Return VW's 32-bit index of a named feature, before the table mask is applied.

    >>> feature_index("context", "device=tv")
    3007328952
    """
    return _native.feature_index(_NAMESPACE_HASHES[namespace], name)


class Encoded(msgspec.Struct, frozen=True):
    """The features of one namespace of one example.

    Attributes:
        names: n feature names, for logs and explanations.
        indices: uint32 [n], VW's indices before the table mask.
        values: float32 [n], never 0 (VW drops such features).
    """

    names: tuple[str, ...]
    indices: UInt32Array
    values: Float32Array


def encode(namespace: str, features: dict[str, float]) -> Encoded:
    """Hash named features of one namespace; features with value 0 are left out, as VW would.

    Raises:
        ValueError: a value is not finite in float32.
    """
    return Encoded(*_native.encode_features(_NAMESPACE_HASHES[namespace], features))


def vw_arguments(interactions: tuple[tuple[str, str], ...], *, learning_rate: float, bits: int) -> list[str]:
    """Return the command line of the regressor: MTR on costs, no learning-rate decay, named interactions only."""
    return ["--cb_adf", "--cb_type", "mtr", *table_arguments(interactions, learning_rate=learning_rate, bits=bits)]


def table_arguments(interactions: tuple[tuple[str, str], ...], *, learning_rate: float, bits: int) -> list[str]:
    """Return the part of the command line that every model shares."""
    arguments = ["--power_t", "0", "-l", repr(learning_rate), "-b", str(bits)]
    for first, second in interactions:
        arguments += ["-q", NAMESPACE_LETTERS[first] + NAMESPACE_LETTERS[second]]
    return [*arguments, "--quiet"]


# Options under which VW keeps one weight for each feature. Others (dr, bag, cover, rnd) keep several, and reading them
# through `Workspace.weights()` leaves the table: garbage at best, a crash of the process otherwise.
_ONE_TABLE_OPTIONS = frozenset(
    "--cb_adf --cb_explore_adf --cb_type --epsilon --first --softmax --lambda --squarecb --gamma_scale "
    "--gamma_exponent --regcb --regcbopt --mellowness --power_t --learning_rate -l --bit_precision -b --quadratic -q "
    "--random_seed --l1 --l2 --quiet".split()
)
_ONE_TABLE_CB_TYPES = frozenset({"ips", "dm", "mtr", "sm"})


def has_one_table(arguments: Sequence[str]) -> bool:
    """Return whether a model of these arguments keeps its weights as one table that `weights()` can read.

    Decided from the arguments alone, since asking the model is what crashes; an unknown option counts as no.

    >>> has_one_table(["--cb_adf", "--cb_type", "mtr"]), has_one_table(["--cb_explore_adf", "--bag", "5"])
    (True, False)
    """
    pairs = [(option, value) for argument in arguments for option, _, value in (argument.partition("="),)]
    for position, (option, value) in enumerate(pairs):
        is_option = option.startswith("-") and not option[1:2].isdigit()
        if is_option and option not in _ONE_TABLE_OPTIONS:
            return False
        if option == "--cb_type":
            following = pairs[position + 1][0] if position + 1 < len(pairs) else ""
            if (value or following) not in _ONE_TABLE_CB_TYPES:
                return False
    return True


def weight_table(workspace: VwWorkspace, arguments: Sequence[str]) -> Float32Array:
    """Return float32 [2^bits, 4], a view of a model's weights: the weight, adaptive state, and one column of scratch.

    Raises:
        ValueError: the model of these arguments does not keep one table.
    """
    if not has_one_table(arguments):
        raise ValueError(f"the weights of {' '.join(arguments)!r} cannot be read as one table")
    weights = workspace.weights()
    # The model's own header may say otherwise. The shape is safe to read, the numbers are not.
    if weights.shape[1] != 1:
        raise ValueError(f"the model must have one sub-model, got shape {weights.shape}")
    table: Float32Array = weights[:, 0, :]
    return table


class _Refilled:
    """A VW example that is filled again and again; nobody else changes its features."""

    def __init__(self, namespaces: Sequence[str], label: CBLabel) -> None:
        self.example = Example()
        self.example.set_label(label)
        self._namespaces = namespaces
        # What each group holds, in the order of the groups, and VW's own group.
        self._held: dict[str, Encoded] = {}
        self._groups: dict[str, FeatureGroupRef] = {}

    def fill(self, encoded: Mapping[str, Encoded]) -> None:
        """Overwrite the features; what is there already is not written again."""
        wanted, held = {}, self._held
        for name in self._namespaces:
            features = encoded.get(name)
            # VW's empty groups count as namespaces, so an example has only those that hold something.
            if features is not None and len(features.indices):
                wanted[name] = features
        if wanted.keys() != held.keys():
            # VW adds up groups in the order they came: begin again, so that no sum depends on earlier examples.
            self._begin_again(wanted)
            held = {}
        for name, features in wanted.items():
            if held.get(name) is not features:
                group = self._groups[name]
                group.truncate_to(0)
                group.push_many_features(features.indices, features.values)  # type: ignore[arg-type] # its stub's dtypes are private
        self._held = wanted

    def _begin_again(self, names: Iterable[str]) -> None:
        for name in self._held:
            del self.example[_NAMESPACE_CODES[name]]
        # Below `Example.__getitem__`, whose checks cost more than what they check.
        native = self.example._example
        self._groups = {name: native.__getitem__(_NAMESPACE_CODES[name]) for name in names}


class ExamplePool:
    """Reused VW examples: one shared and as many actions as were ever asked for at once.

    A fresh `Example` costs more than filling one, and holds about 32 KB; the pool is as large as the largest request.
    """

    def __init__(self) -> None:
        self._shared = _Refilled(SHARED_NAMESPACES, CBLabel(shared=True))
        self._actions: list[_Refilled] = []

    def fill_shared(self, shared: Mapping[str, Encoded]) -> Example:
        """Overwrite and return the shared example; namespaces that are not given are emptied."""
        self._shared.fill(shared)
        return self._shared.example

    def fill_action(self, position: int, action: Mapping[str, Encoded], *, label: CBLabel) -> Example:
        """Overwrite and return the action example at `position`, growing the pool when it is the next one."""
        if position == len(self._actions):
            self._actions.append(_Refilled(ACTION_NAMESPACES, label))
        refilled = self._actions[position]
        # Below `Example.set_label`, which asks what kind of label it is; they are all of one.
        refilled.example._example._set_label(label)
        refilled.fill(action)
        return refilled.example

    def action(self, position: int) -> Example:
        """Return the action example at `position` as it was last filled."""
        return self._actions[position].example

    def fill(
        self,
        shared: Mapping[str, Encoded],
        actions: Sequence[Mapping[str, Encoded]],
        *,
        chosen: int | None = None,
        label: CBLabel | None = None,
    ) -> list[Example]:
        """Return the shared example followed by all actions, of which `chosen` has the label."""
        unlabelled = CBLabel()
        examples = [self.fill_shared(shared)]
        for position, action in enumerate(actions):
            its_label = label if position == chosen and label is not None else unlabelled
            examples.append(self.fill_action(position, action, label=its_label))
        return examples


def predict_costs(workspace: VwWorkspace, examples: Sequence[Example]) -> list[tuple[int, float]]:
    """Return (action, cost) pairs, ordered by cost, of one shared example followed by its actions.

    Calls below `Workspace.predict_one`, whose label check of every example doubles the time.
    """
    native = [example._example for example in examples]
    return cast("list[tuple[int, float]]", workspace._workspace.predict_multi_ex_one(native))


def predict_then_learn_cost(workspace: VwWorkspace, examples: Sequence[Example]) -> float:
    """Learn one shared example with its one labelled action and return the cost predicted before."""
    native = [example._example for example in examples]
    pairs = cast("list[tuple[int, float]]", workspace._workspace.predict_then_learn_multi_ex_one(native))
    return pairs[0][1]


def learn_example(workspace: VwWorkspace, examples: Sequence[Example]) -> None:
    """Learn one shared example with its actions, one of them labelled."""
    workspace._workspace.learn_multi_ex_one([example._example for example in examples])
