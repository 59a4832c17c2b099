"""Bake-off: exploration policies on classification sets turned into bandit problems, whose optimum is known exactly.

A row's features are the context, its classes the actions; choosing the row's class earns 1, any other 0, and only the
chosen action's reward is learned. A policy that knew everything would lose nothing. Hone's policies are the production
ones over the production scorer and learner; VW's explorers run whole through its command-line driver, with `--cbify`,
which makes the same problem of the same rows in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Literal

import numpy as np
from scipy.stats import t as student_t

from bandit.exploration import Epsilon, Greedy, Policy, Softmax, SquareCB, VwExplorer
from simulators.bake_off_losses import Stream, driver_loss, hone_loss
from simulators.datasets.classification import Classification

Progress = Callable[[int, int], None]

# The seed of the stream that settings are chosen on; it is none of those that are reported.
TUNING_SEED = 0
_CONFIDENCE = 0.95
# Of VW, which learns on every action at once: an update counts once for so many actions.
_RATES = (0.02, 0.1, 0.5, 2.0, 8.0)
# Of Hone, by whether a feature's rate falls with what it has learned; of VW's explorers inside Hone.
_CONSTANT_RATES, _ADAPTIVE_RATES, _EXPLORER_RATES = (0.03, 0.1, 0.3, 1.0), (0.1, 0.3, 1.0, 3.0), (0.5, 2.0)


@dataclass(frozen=True, slots=True)
class HoneSetting:
    """One of Hone's policies with the model under it.

    Attributes:
        exploration: The policy.
        learning_rate: Of the model.
        baseline: Whether the model has terms that are the same for every class.
        wrong: Reward of a wrong class; the right one earns 1 more.
        power_t: Of the model: how far a feature's rate falls with what it has learned.
        explorer_arguments: Of the VW explorer that the policy asks, if it does.
    """

    exploration: Policy
    learning_rate: float
    baseline: bool = True
    wrong: float = 0.0
    power_t: float = 0.0
    explorer_arguments: str = ""

    def loss(self, stream: Stream) -> float:
        """Return the progressive loss of the production parts over a stream."""
        return hone_loss(
            stream,
            exploration=self.exploration,
            learning_rate=self.learning_rate,
            baseline=self.baseline,
            wrong=self.wrong,
            power_t=self.power_t,
            explorer_arguments=self.explorer_arguments,
        )

    def __str__(self) -> str:
        """Return what was set."""
        explorer = f" {self.explorer_arguments}" if self.explorer_arguments else ""
        model = f"power_t={self.power_t:g} baseline={self.baseline} wrong={self.wrong:g}"
        return f"{self.exploration!r}{explorer} learning_rate={self.learning_rate:g} {model}"


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
    return (*_hone(), *_vw(), Contestant("told everything", "reference", tuple(KnowsAll(f"-l {r:g}") for r in _RATES)))


def _hone() -> list[Contestant]:
    """Return Hone's policies on models that go, step by step, from what is the default to what VW does by itself.

    The last step lets a class that was never chosen count as right, where before it counted as wrong. VW's explorers
    inside Hone have all of the steps behind them.
    """
    policies: dict[str, tuple[Policy, ...]] = {
        "greedy": (Greedy(),),
        "epsilon": tuple(Epsilon(rate=rate) for rate in (0.02, 0.05, 0.1)),
        "softmax": tuple(Softmax(temperature=temperature) for temperature in (0.02, 0.05, 0.1)),
        "squarecb": tuple(SquareCB(gamma=gamma) for gamma in (100.0, 400.0, 1600.0)),
    }
    # Baseline, power_t, reward of a wrong class.
    models = {
        "": (True, 0.0, 0.0),
        ", adaptive": (True, 0.5, 0.0),
        ", no baseline": (False, 0.0, 0.0),
        ", no baseline, adaptive": (False, 0.5, 0.0),
        ", no baseline, adaptive, 0/-1": (False, 0.5, -1.0),
    }
    found = []
    for model, (baseline, power_t, wrong) in models.items():
        for name, explorations in policies.items():
            settings = (
                HoneSetting(exploration, rate, baseline, wrong, power_t)
                for exploration in explorations
                for rate in (_ADAPTIVE_RATES if power_t else _CONSTANT_RATES)
            )
            found.append(Contestant(name + model, "hone", tuple(settings)))
    explorers = {
        "vw first": [f"--first {n}" for n in (100, 500, 1500)],
        # Costs of 0 and 1, which is what VW expects.
        "vw regcb": [f"--regcb --mellowness {m:g} --cb_min_cost 0 --cb_max_cost 1" for m in (0.0001, 0.001, 0.01)],
        "vw squarecb": [f"--squarecb --gamma_scale {scale:g}" for scale in (10.0, 100.0, 1000.0)],
    }
    asked = VwExplorer(model="explorer", shortlist=50, uniform_share=0.0)
    for name, options in explorers.items():
        arguments = (f"--cb_explore_adf {option} --cb_type mtr" for option in options)
        settings = (HoneSetting(asked, rate, False, -1.0, 0.5, a) for a in arguments for rate in _EXPLORER_RATES)
        found.append(Contestant(name + list(models)[-1], "hone", tuple(settings)))
    return found


def _vw() -> list[Contestant]:
    families = {
        "--epsilon": [f"--epsilon {rate:g}" for rate in (0.02, 0.05, 0.1)],
        "--first": [f"--first {n}" for n in (100, 500, 1500)],
        "--bag": [f"--bag {n}" for n in (2, 5, 10)],
        "--cover": [f"--cover 5 --psi {psi:g} --nounif" for psi in (0.01, 0.1, 1.0)],
        "--rnd": [f"--rnd 3 --epsilon {rate:g}" for rate in (0.0, 0.02, 0.05)],
        "--regcb": [f"--regcb --mellowness {m:g}" for m in (0.0001, 0.001, 0.01)],
        "--squarecb": [f"--squarecb --gamma_scale {scale:g}" for scale in (10.0, 100.0, 1000.0)],
    }
    # As Hone learns, without decay of the rate.
    for name in ("--epsilon", "--squarecb"):
        families[f"{name} -p0"] = [f"--power_t 0 {option}" for option in families[name]]
    return [
        Contestant(name, "vw", tuple(VwSetting(f"{o} --cb_type mtr -l {rate:g}") for o in options for rate in _RATES))
        for name, options in families.items()
    ]


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
