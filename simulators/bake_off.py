"""Bake-off: exploration policies on classification sets turned into bandit problems, whose optimum is known exactly.

A row's features are the context, its classes the actions; choosing the row's class earns 1, any other 0, and only the
chosen action's reward is learned. A policy that knew everything would lose nothing. Hone's policies are the production
ones over the production scorer and learner; VW's explorers run whole through its command-line driver, with `--cbify`,
which makes the same problem of the same rows in the same order.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t
from vowpal_wabbit_next import run_cli_driver

from bandit.exploration import Epsilon, Greedy, Policy, Softmax, SquareCB
from bandit.learner import Learner
from bandit.policy import ActionFeatures, ModelSpec, WeightTable, row_features
from bandit.slate import ActionSet, SlateWalk
from bandit.slot import draw_slot
from bandit.vw_format import encode
from simulators.datasets.classification import Classification

Progress = Callable[[int, int], None]

# The seed of the stream that settings are chosen on; it is none of those that are reported.
TUNING_SEED = 0
_BITS = 16
_CONFIDENCE = 0.95
_LOSS_LINE = re.compile(r"^average loss = ([0-9.]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class HoneSetting:
    """One of Hone's policies with the learning rate of the model under it."""

    exploration: Policy
    learning_rate: float

    def loss(self, stream: Stream) -> float:
        """Return the progressive loss of the production parts over a stream."""
        return hone_loss(stream, exploration=self.exploration, learning_rate=self.learning_rate)

    def __str__(self) -> str:
        """Return what was set."""
        return f"{self.exploration!r} learning_rate={self.learning_rate:g}"


@dataclass(frozen=True, slots=True)
class VwSetting:
    """A command line of VW; `--cbify` and the stream are added."""

    arguments: str

    def loss(self, stream: Stream) -> float:
        """Return the progressive loss that VW prints for a stream."""
        reduction = f"--cbify {stream.n_classes} --cb_explore_adf"
        return driver_loss(stream, arguments=f"{reduction} {self.arguments}")

    def __str__(self) -> str:
        """Return what was set."""
        return self.arguments


@dataclass(frozen=True, slots=True)
class KnowsAll:
    """VW's one-against-all, which is told the class of every row: what the same linear features can do."""

    arguments: str

    def loss(self, stream: Stream) -> float:
        """Return its progressive loss."""
        return driver_loss(stream, arguments=f"--oaa {stream.n_classes} {self.arguments}")

    def __str__(self) -> str:
        """Return what was set."""
        return self.arguments


Setting = HoneSetting | VwSetting | KnowsAll


@dataclass(frozen=True, slots=True)
class Contestant:
    """A way to explore, and the settings that the best is chosen of.

    Attributes:
        name: As shown.
        maker: Whose it is; `reference` is no contestant.
        settings: One or more.
    """

    name: str
    maker: Literal["hone", "vw", "reference"]
    settings: tuple[Setting, ...]


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


@dataclass(frozen=True, slots=True)
class Result:
    """What a contestant lost on a set.

    Attributes:
        setting: What was chosen on the tuning stream.
        losses: Progressive loss by seed.
    """

    setting: str
    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Return the mean over seeds."""
        return float(np.array(self.losses).mean())

    @property
    def margin(self) -> float:
        """Return half of the 95% t-interval of the mean; infinite for one seed."""
        n = len(self.losses)
        if n < 2:
            return float("inf")
        se = float(np.std(self.losses, ddof=1)) / math.sqrt(n)
        quantile = float(student_t.ppf((1.0 + _CONFIDENCE) / 2.0, n - 1))
        return quantile * float(se)


@dataclass(frozen=True, slots=True)
class BakeOff:
    """What came of it.

    Attributes:
        n_rows: Rows of each stream, by set.
        n_classes: By set; choosing blindly loses 1 - 1/n of the rows.
        seeds: Streams reported.
        results: By set, then by contestant.
    """

    n_rows: dict[str, int]
    n_classes: dict[str, int]
    seeds: tuple[int, ...]
    results: dict[str, dict[str, Result]] = field(default_factory=dict)


def contestants() -> tuple[Contestant, ...]:
    """Return who takes part: Hone's policies, VW's explorers, and a learner that is told everything."""
    hone_rates, vw_rates = (0.01, 0.03, 0.1, 0.3), (0.02, 0.1, 0.5, 2.0)

    def hone(name: str, *explorations: Policy) -> Contestant:
        return Contestant(name, "hone", tuple(HoneSetting(e, rate) for e in explorations for rate in hone_rates))

    def vw(name: str, *options: str) -> Contestant:
        settings = tuple(VwSetting(f"{o} --cb_type mtr -l {rate:g}") for o in options for rate in vw_rates)
        return Contestant(name, "vw", settings)

    return (
        hone("greedy", Greedy()),
        hone("epsilon", *(Epsilon(rate=rate) for rate in (0.02, 0.05, 0.1))),
        hone("softmax", *(Softmax(temperature=t) for t in (0.02, 0.05, 0.1))),
        hone("squarecb", *(SquareCB(gamma=gamma) for gamma in (100.0, 400.0, 1600.0))),
        vw("--epsilon", *(f"--epsilon {rate:g}" for rate in (0.02, 0.05, 0.1))),
        vw("--first", *(f"--first {n}" for n in (100, 500, 1500))),
        vw("--bag", *(f"--bag {n}" for n in (2, 5, 10))),
        vw("--cover", *(f"--cover 5 --psi {psi:g} --nounif" for psi in (0.01, 0.1, 1.0))),
        vw("--rnd", *(f"--rnd 3 --epsilon {rate:g}" for rate in (0.0, 0.02, 0.05))),
        vw("--regcb", *(f"--regcb --mellowness {m:g}" for m in (0.0001, 0.001, 0.01))),
        vw("--squarecb", *(f"--squarecb --gamma_scale {scale:g}" for scale in (10.0, 100.0, 1000.0))),
        # As Hone learns, without decay of the rate: what is left is the exploration, and that VW learns on all actions.
        vw("--epsilon -p0", *(f"--power_t 0 --epsilon {rate:g}" for rate in (0.02, 0.05, 0.1))),
        vw("--squarecb -p0", *(f"--power_t 0 --squarecb --gamma_scale {scale:g}" for scale in (10.0, 100.0, 1000.0))),
        Contestant("told everything", "reference", tuple(KnowsAll(f"-l {rate:g}") for rate in vw_rates)),
    )


def run_bake_off(
    sets: Sequence[Classification],
    *,
    entrants: Sequence[Contestant],
    seeds: Sequence[int],
    n_rows: int,
    jobs: int,
    progress: Progress | None = None,
) -> BakeOff:
    """Choose each contestant's setting on one stream of a set, then let it run on others.

    Args:
        sets: What to run on.
        entrants: Who takes part.
        seeds: Streams to report, at least one and none of them `TUNING_SEED`.
        n_rows: Rows of a stream at most.
        jobs: Contestants that run at the same time, in processes of their own.
        progress: Told how many of how many are done.

    Raises:
        ValueError: no seed, or the tuning seed among them.
    """
    if not seeds or TUNING_SEED in seeds:
        raise ValueError(f"seeds must be at least one and not {TUNING_SEED}, which settings are chosen on; got {seeds}")
    found: dict[tuple[str, str], Result] = {}
    # VW has threads of its own: a forked child could inherit a lock that nobody holds.
    with ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn")) as pool:
        waiting = {
            pool.submit(compete, one, entrant, seeds=tuple(seeds), n_rows=n_rows): (one.name, entrant.name)
            for one in sets
            for entrant in entrants
        }
        for n_done, future in enumerate(as_completed(waiting), start=1):
            found[waiting[future]] = future.result()
            if progress is not None:
                progress(n_done, len(waiting))
    return BakeOff(
        n_rows={one.name: min(n_rows, len(one.labels)) for one in sets},
        n_classes={one.name: one.n_classes for one in sets},
        seeds=tuple(seeds),
        results={one.name: {e.name: found[one.name, e.name] for e in entrants} for one in sets},
    )


def compete(found: Classification, entrant: Contestant, *, seeds: Sequence[int], n_rows: int) -> Result:
    """Run one contestant on one set."""
    tuning = Stream.of(found, seed=TUNING_SEED, n_rows=n_rows)
    best = min(entrant.settings, key=lambda setting: setting.loss(tuning))
    losses = tuple(best.loss(Stream.of(found, seed=seed, n_rows=n_rows)) for seed in seeds)
    return Result(str(best), losses)


def hone_loss(stream: Stream, *, exploration: Policy, learning_rate: float) -> float:
    """Return the share of rows whose class was not chosen by Hone's scorer, draw and learner, learning as it goes."""
    spec = ModelSpec(
        bits=_BITS, learning_rate=learning_rate, interactions=(("context", "item"),), schema_version="bake-off"
    )
    learner, table = Learner(spec), WeightTable(spec)
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
        )
        here = walk.pmf()
        assert here is not None
        drawn = draw_slot(here, 0, uniform)
        reward = float(drawn.action == label)
        n_wrong += drawn.action != label
        learner.learn(shared, actions[drawn.action], reward=reward, propensity=drawn.propensity)
        change = learner.change()
        learner.forget_change()
        table.apply(change.indices, change.values, version=table.version + 1)
    return n_wrong / len(stream.labels)


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
