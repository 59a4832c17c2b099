"""`hone retrieval evaluate` on MovieLens 100k, as cached by `make data`; grids of one point and few seeds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
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


def test_als_and_item_item_reach_the_published_hit_rates(sampled: SampledReport) -> None:
    assert [check.what for check in sampled.checks if not check.holds] == []


def test_full_ranking_prefers_what_learns_to_popularity_and_popularity_to_chance(data: movielens.MovieLens) -> None:
    surfaces = load_config(None, {}).surfaces
    found = evaluate_full(data, surfaces, n_seeds=2, grids=ONE_POINT, say=lambda _: None)
    ndcg = {source: metrics["ndcg"].mean for source, metrics in found.sources.items()}
    for learned in ("als", "als_fold_in", "item_item", "blend"):
        assert ndcg[learned] > published.FULL["SAR"]["ndcg"] > ndcg["popular"] > ndcg["content"] > ndcg["random"]
    assert found.surfaces["home"].left_out == []
    assert found.surfaces["home"].blend["recall"].mean > found.surfaces["home"].alone["popular"]["recall"].mean
    assert found.index_recall[10].mean > 0.99


def test_the_command_prints_json_and_writes_a_page_that_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval_commands, "Grids", lambda: ONE_POINT)
    page = tmp_path / "quality.html"
    arguments = ["retrieval", "evaluate", "--offline", "--seeds", "2", "--json", "--report", str(page)]
    result = CliRunner().invoke(app, arguments)
    figures = json.loads(result.stdout)
    assert result.exit_code == (0 if all(check["holds"] for check in figures["sampled_negatives"]["checks"]) else 1)
    assert figures["sampled_negatives"]["sources"]["als"]["hit_rate"]["mean"] > 0.5
    assert figures["full_ranking"]["published"]["SAR"]["ndcg"] == 0.382
    assert "MovieLens 100k: GroupLens Research" in result.stderr
    html = page.read_text()
    assert "als_fold_in" in html
    assert 'src="http' not in html


def test_a_report_in_a_folder_that_is_missing_is_refused_before_any_work(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["retrieval", "evaluate", "--report", str(tmp_path / "no" / "quality.html")])
    assert result.exit_code == 2
    assert "does not exist" in result.stderr
