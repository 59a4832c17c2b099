"""`hone retrieval evaluate` on MovieLens 100k, as cached by `make data`; grids of one point and few seeds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.cli.settings import Settings
from service.config import load_config
from simulators import retrieval_commands
from simulators.datasets import fetch, movielens
from simulators.retrieval_quality import published
from simulators.retrieval_quality.evaluate import SampledReport, evaluate_full, evaluate_sampled
from simulators.retrieval_quality.tuning import Grids

ONE_POINT = Grids(
    factors=(64,), regularization=(20.0,), alpha=(2.0,), als_weighting=("binary",),
    n_neighbours=(100,), shrink=(10.0,), item_weighting=("bm25",),
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> movielens.MovieLens:
    files = fetch.fetch(fetch.movielens(), fetch.cache_folder(os.environ), offline=True).files
    return movielens.parse({name: path.read_bytes() for name, path in files.items()})


@pytest.fixture(scope="module")
def sampled(data: movielens.MovieLens) -> SampledReport:
    return evaluate_sampled(data, n_seeds=5, grids=ONE_POINT, say=lambda _: None)


def test_the_split_is_that_of_the_published_table(sampled: SampledReport) -> None:
    # 390 / 941 is the published .4145 of popularity, 578 / 941 the published .6142 of ALS: there were 941 users.
    assert (sampled.n_users, sampled.n_items, sampled.n_train) == (941, 1349, 99_249 - 941)
    for source in ("random", "popular"):
        found = sampled.sources[source]
        # The published figure is one draw of negatives, ours the mean of five: 4 standard deviations of a draw.
        for metric, value in published.SAMPLED[source].items():
            tolerance = 4 * found[metric].se * 5**0.5 * (1 + 1 / 5) ** 0.5
            assert found[metric].mean == pytest.approx(value, abs=tolerance)
