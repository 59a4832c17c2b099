"""Debiased and naive retraining on the same popularity-biased logs: which ranks better, judged by the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np

from bandit.exploration import Greedy
from service.retrain_training import RetrainConfiguration, Weighting, spec_of, table_of, train, training_rows
from simulators.logged_world import MODEL, LoggedWorld, biased_world

_N_SEEDS = 10
_N_DECISIONS = 1_500
_CONFIGURATION = RetrainConfiguration(learning_rate=0.001, interactions=[("context", "item")], clip=50.0, passes=3)


def bench_retraining(show: Callable[[str], None]) -> dict[str, Any]:
    """Retrain on ten logs, by every weighting, where models see genres and where they see every item."""
    figures: dict[str, Any] = {"n_decisions": _N_DECISIONS, "n_seeds": _N_SEEDS}
    for sees_items in (False, True):
        values = []
        for seed in range(_N_SEEDS):
            show(f"seed {seed + 1} of {_N_SEEDS}")
            world = biased_world(seed=seed, sees_items=sees_items)
            values.append(compare_weightings(world, n_decisions=_N_DECISIONS, seed=100 + seed))
        figures["model_sees_items" if sees_items else "model_sees_genres"] = {
            "mean_value": {name: round(float(np.mean([v[name] for v in values])), 4) for name in values[0]},
            "ips_better_than_none_in_seeds": sum(v["ips"] > v["none"] for v in values),
            "ips_minus_none": _mean_and_error([v["ips"] - v["none"] for v in values]),
            "by_seed": [{name: round(value, 4) for name, value in v.items()} for v in values],
        }
    return figures


def _mean_and_error(values: Sequence[float]) -> dict[str, float]:
    """Return the mean and its standard error."""
    return {
        "mean": round(float(np.mean(values)), 4),
        "standard_error": round(float(np.std(values, ddof=1) / np.sqrt(len(values))), 4),
    }


def compare_weightings(
    world: LoggedWorld, *, n_decisions: int, seed: int, weightings: Sequence[Weighting] = get_args(Weighting)
) -> dict[str, float]:
    """Return the true value of what each retrained model ranks first; of the log's policy and of the best."""
    log = world.log(n_decisions, seed=seed)
    values = {"popular": world.value(world.scores, Greedy()), "best": world.value(world.rewards, Greedy())}
    for weighting in weightings:
        rows = list(training_rows(log, schema=world.schema, weighting=weighting))
        spec = spec_of(world.config, MODEL, _CONFIGURATION)
        learner, _ = train(rows.copy, spec=spec, configuration=_CONFIGURATION)
        values[weighting] = world.value(world.scores_of(table_of(learner)), Greedy())
    return values
