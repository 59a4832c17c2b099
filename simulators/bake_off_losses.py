"""Progressive losses of one stream of a bake-off: through Hone's production parts, and through VW's command line."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from vowpal_wabbit_next import run_cli_driver

from bandit.exploration import Policy
from bandit.explorer import Explorer, ExplorerSpec, parse_explorer_arguments
from bandit.learner import Learner
from bandit.policy import ActionFeatures, ModelSpec, WeightTable, row_features
from bandit.slate import ActionSet, ExplorerPmf, SlateWalk
from bandit.slot import draw_slot
from bandit.vw_format import Encoded, encode
from simulators.datasets.classification import Classification

_BITS = 16
_INTERACTIONS = (("context", "item"),)
_VERSION = "bake-off"
_LOSS_LINE = re.compile(r"^average loss = ([0-9.]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Rows of a set in a seeded order.

    Attributes:
        features: float64 [n, d].
        labels: int64 [n].
        n_classes: Classes of the set.
        seed: Of the order, and of every draw made along it.
    """

    features: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    n_classes: int
    seed: int

    @classmethod
    def of(cls, found: Classification, *, seed: int, n_rows: int) -> Stream:
        """Return the first `n_rows` of a shuffled set; all of them when it has fewer."""
        order = np.random.default_rng([seed, 1]).permutation(len(found.labels))[:n_rows]
        return cls(found.features[order], found.labels[order], found.n_classes, seed)


def hone_loss(
    stream: Stream,
    *,
    exploration: Policy,
    learning_rate: float,
    baseline: bool = True,
    wrong: float = 0.0,
    power_t: float = 0.0,
    explorer_arguments: str = "",
) -> float:
    """Return the share of rows whose class was not chosen by Hone's scorer, draw and learner, learning as it goes.

    Args:
        stream: rows.
        exploration: policy.
        learning_rate: of the model, and of the explorer if there is one.
        baseline: whether they have terms that are the same for every class.
        wrong: reward of a wrong class; the right one earns 1 more.
        power_t: as of a `ModelSpec`, for both.
        explorer_arguments: VW's, of the explorer that a `VwExplorer` policy asks.
    """
    spec = ModelSpec(_BITS, learning_rate, _INTERACTIONS, _VERSION, baseline, power_t)
    learner, table = Learner(spec), WeightTable(spec)
    explorer = None
    if explorer_arguments:
        arguments = parse_explorer_arguments(explorer_arguments)
        shape = ExplorerSpec(arguments, _BITS, learning_rate, _INTERACTIONS, _VERSION, baseline, power_t)
        explorer = Explorer(shape)
    # Zero-padded, so that UTF-8 order is the order of the classes.
    ids = [f"c{number:03d}" for number in range(stream.n_classes)]
    stacked = {"item": ActionFeatures.stack([encode("item", {f"class={name}": 1.0}) for name in ids])}
    actions = [{"item": row_features(stacked["item"], number)} for number in range(stream.n_classes)]
    columns = [f"f{number}" for number in range(stream.features.shape[1])]
    uniforms = np.random.default_rng([stream.seed, 2]).random(len(stream.labels))
    n_wrong = 0
    for values, label, uniform in zip(stream.features.tolist(), stream.labels.tolist(), uniforms.tolist(), strict=True):
        shared = {"context": encode("context", dict(zip(columns, values, strict=True)))}
        walk = SlateWalk(
            actions=ActionSet(ids=ids, scores=table.score(shared, stacked), columns={}),
            exploration=exploration,  # type: ignore[arg-type] # every policy here is one that surfaces may declare
            rules=[],
            now_ms=0,
            n_slots=1,
            discovery_positions=(),
            explorer=None if explorer is None else _asked(explorer, shared, stacked),
        )
        here = walk.pmf()
        assert here is not None
        drawn = draw_slot(here, 0, uniform)
        n_wrong += drawn.action != label
        reward = wrong + float(drawn.action == label)
        learner.learn(shared, actions[drawn.action], reward=reward, propensity=drawn.propensity)
        change = learner.change()
        learner.forget_change()
        table.apply(change.indices, change.values, version=table.version + 1)
        if explorer is not None:
            top = here.view.top.tolist()
            explorer.learn(
                shared,
                [actions[action] for action in top],
                chosen=top.index(drawn.action),
                reward=reward,
                propensity=drawn.propensity,
            )
    return n_wrong / len(stream.labels)


def _asked(explorer: Explorer, shared: Mapping[str, Encoded], stacked: Mapping[str, ActionFeatures]) -> ExplorerPmf:
    request = explorer.ask(shared, stacked)
    return lambda slot, shortlist: request.pmf(shortlist)


def driver_loss(stream: Stream, *, arguments: str) -> float:
    """Return the progressive loss that VW's command-line driver prints for a stream.

    Raises:
        ValueError: VW printed none.
    """
    with tempfile.TemporaryDirectory(prefix="hone-bake-off-") as folder:
        path = Path(folder) / "stream.vw"
        path.write_text("".join(_lines(stream)), encoding="ascii")
        command = [*arguments.split(), "-d", path.name, "--random_seed", str(stream.seed + 1), "-b", str(_BITS)]
        printed, _ = run_cli_driver(command, onethread=True, cwd=Path(folder))
    match = _LOSS_LINE.search(printed)
    if match is None:
        raise ValueError(f"vw {arguments} must print an average loss, got {printed[-300:]!r}")
    return float(match[1])


def _lines(stream: Stream) -> list[str]:
    """Return VW's lines of class (from 1) and features; float32 numbers, as Hone's model sees them."""
    rows = stream.features.astype(np.float32).tolist()
    return [
        f"{label + 1} |c {' '.join(f'f{number}:{value:.9g}' for number, value in enumerate(row) if value)}\n"
        for label, row in zip(stream.labels.tolist(), rows, strict=True)
    ]
