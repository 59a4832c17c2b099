"""Run both protocols on MovieLens 100k: tune, measure over seeds, compare with the published figures. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.exact import ExactIndex
from retrieval.index import HnswIndex
from retrieval.items import Item
from retrieval.recall import recall_at_k
from service.config import SurfaceConfig
from simulators.datasets.movielens import MovieLens
from simulators.retrieval_quality import published
from simulators.retrieval_quality.measure import (
    METRICS,
    Draw,
    Figure,
    FullDraw,
    K,
    SampledDraw,
    blended,
    figure,
    measure,
)
from simulators.retrieval_quality.methods import Als, Method, Scores
from simulators.retrieval_quality.splits import (
    IntArray,
    Ratings,
    filtered,
    hold_out_share,
    leave_latest_out,
    leave_random_out,
    sample_candidates,
    unfiltered,
)
from simulators.retrieval_quality.tuning import BLENDED, Choice, Grids, Tuned, choose

N_VALIDATION_DRAWS = 3
INDEX_KS = (10, 100, 1000)
HIT_RATE_TOLERANCE = 0.02

Say = Callable[[str], None]
Metrics = dict[str, Figure]


@dataclass(frozen=True, slots=True)
class Check:
    """One promise.

    Attributes:
        what: In words.
        value: What was measured, with its standard error over seeds.
        least: Lower bound.
        most: Upper bound; None when there is none.
        holds: Whether the mean is inside.
    """

    what: str
    value: Figure
    least: float
    most: float | None
    holds: bool


@dataclass(frozen=True, slots=True)
class SampledReport:
    """Protocol (a).

    Attributes:
        n_users: Users, each with one held-out rating.
        n_items: Items.
        n_train: Ratings learned from.
        n_seeds: Draws of negatives.
        tuned: By source.
        sources: Hit rate and NDCG at 10 by source; of sampled candidates nothing else means anything.
        checks: Beside the published figures.
    """

    n_users: int
    n_items: int
    n_train: int
    n_seeds: int
    tuned: dict[str, Tuned]
    sources: dict[str, Metrics]
    checks: list[Check]


@dataclass(frozen=True, slots=True)
class SurfaceReport:
    """What the quotas of one surface bring: recall of the test ratings among its candidates.

    Attributes:
        n_candidates: Length of the blend.
        quotas: By source; sources that this harness has no ranking for are left out.
        left_out: These.
        blend: Metrics of the blend.
        alone: Metrics of each source with all places to itself.
    """

    n_candidates: int
    quotas: dict[str, int]
    left_out: list[str]
    blend: Metrics
    alone: dict[str, Metrics]


@dataclass(frozen=True, slots=True)
class FullReport:
    """Protocol (b).

    Attributes:
        n_users: Users.
        n_items: Items.
        n_ratings: Ratings in all.
        n_seeds: Splits.
        tuned: By source, on the first split's training ratings.
        sources: Metrics at k = 10 by source.
        surfaces: By surface.
        index_recall: Of the approximate index against the exact one, by k.
    """

    n_users: int
    n_items: int
    n_ratings: int
    n_seeds: int
    tuned: dict[str, Tuned]
    sources: dict[str, Metrics]
    surfaces: dict[str, SurfaceReport]
    index_recall: dict[int, Figure]


def evaluate_sampled(data: MovieLens, *, n_seeds: int, grids: Grids, say: Say) -> SampledReport:
    """Hold out the latest rating of each user and find it among 99 sampled negatives."""
    known, film_ids = filtered(data.ratings)
    split = leave_latest_out(known)
    items = catalogue_items(data, film_ids)
    validation = leave_random_out(split.train, np.random.default_rng(0))
    draws = [
        SampledDraw(validation, sample_candidates(validation, known, np.random.default_rng([1, seed])))
        for seed in range(N_VALIDATION_DRAWS)
    ]
    choice = choose(draws, items, grids, lambda text: say(f"sampled negatives: {text}"))
    say("sampled negatives: testing")
    scores = _fit_all(choice.methods, split.train)
    per_seed = []
    for seed in range(n_seeds):
        draw = SampledDraw(split, sample_candidates(split, known, np.random.default_rng([2, seed])))
        ranked = {source: draw.rank(of_source, K) for source, of_source in scores.items()}
        per_seed.append(_measure_at_k(draw, ranked, choice.quotas))
    return SampledReport(
        n_users=known.n_users,
        n_items=known.n_items,
        n_train=len(split.train.user),
        n_seeds=n_seeds,
        tuned=choice.tuned,
        sources=_figures(per_seed, ("hit_rate", "ndcg")),
        checks=_checks(per_seed),
    )


def evaluate_full(
    data: MovieLens, surfaces: Mapping[str, SurfaceConfig], *, n_seeds: int, grids: Grids, say: Say
) -> FullReport:
    """Hold out a random quarter of each user's ratings and rank everything."""
    known, film_ids = unfiltered(data.ratings)
    items = catalogue_items(data, film_ids)
    longest = min(max([K, *(surface.n_candidates for surface in surfaces.values())]), known.n_items)
    choice: Choice | None = None
    per_seed: list[dict[str, dict[str, float]]] = []
    of_surfaces: list[dict[str, dict[str, dict[str, float]]]] = []
    recalls: list[dict[int, float]] = []
    for seed in range(n_seeds):
        split = hold_out_share(known, np.random.default_rng([3, seed]))
        if choice is None:
            validation = hold_out_share(split.train, np.random.default_rng(4))
            draws = [FullDraw(validation, np.random.default_rng(5).permutation(known.n_items))]
            choice = choose(draws, items, grids, lambda text: say(f"full ranking: {text}"))
        say(f"full ranking: split {seed + 1} of {n_seeds}")
        scores = _fit_all(choice.methods, split.train)
        draw = FullDraw(split, np.random.default_rng([6, seed]).permutation(known.n_items))
        ranked = {source: draw.rank(of_source, longest) for source, of_source in scores.items()}
        per_seed.append(_measure_at_k(draw, ranked, choice.quotas))
        of_surfaces.append({name: _measure_surface(draw, ranked, surface) for name, surface in surfaces.items()})
        recalls.append(_index_recall(choice.methods, split.train))
    assert choice is not None
    return FullReport(
        n_users=known.n_users,
        n_items=known.n_items,
        n_ratings=len(known.user),
        n_seeds=n_seeds,
        tuned=choice.tuned,
        sources=_figures(per_seed),
        surfaces={
            name: _surface_report(surface, [of_seed[name] for of_seed in of_surfaces], per_seed[0])
            for name, surface in surfaces.items()
        },
        index_recall={k: figure([of_seed[k] for of_seed in recalls]) for k in recalls[0]},
    )


def catalogue_items(data: MovieLens, film_ids: IntArray) -> list[Item]:
    """Return the films as items, in the order of the columns."""
    film_of = {film.id: film for film in data.films}
    films = [film_of[film_id] for film_id in film_ids.tolist()]
    return [
        Item(
            id=str(film.id),
            title=film.title,
            attributes={"genres": list(film.genres), **({} if film.year is None else {"year": float(film.year)})},
        )
        for film in films
    ]


def _fit_all(methods: Sequence[Method], train: Ratings) -> dict[str, Scores]:
    return {source: scores for method in methods for source, scores in method.fit(train).items()}


def _measure_at_k(draw: Draw, ranked: Mapping[str, IntArray], quotas: Mapping[str, int]) -> dict[str, dict[str, float]]:
    lists = {source: items[:, :K] for source, items in ranked.items()}
    lists["blend"] = blended(lists, quotas, limit=K)
    return {source: measure(draw.judge(items), draw.split.train) for source, items in lists.items()}


def _measure_surface(
    draw: FullDraw, ranked: Mapping[str, IntArray], surface: SurfaceConfig
) -> dict[str, dict[str, float]]:
    """Measure the blend and each of its sources at the surface's number of candidates."""
    quotas: dict[str, int] = {source.name: source.quota for source in surface.sources if source.name in ranked}
    lists = {name: ranked[name][:, : surface.n_candidates] for name in quotas}
    if lists:
        lists["blend"] = blended(lists, quotas, limit=min(surface.n_candidates, draw.split.train.n_items))
    return {name: measure(draw.judge(items), draw.split.train) for name, items in lists.items()}


def _surface_report(
    surface: SurfaceConfig, per_seed: Sequence[dict[str, dict[str, float]]], known: Mapping[str, object]
) -> SurfaceReport:
    alone = _figures(per_seed)
    blend = alone.pop("blend", {})
    return SurfaceReport(
        n_candidates=surface.n_candidates,
        quotas={source.name: source.quota for source in surface.sources if source.name in known},
        left_out=[source.name for source in surface.sources if source.name not in known],
        blend=blend,
        alone=alone,
    )


def _index_recall(methods: Sequence[Method], train: Ratings) -> dict[int, float]:
    """Compare the index that serves ALS with the exact one, for every trained user."""
    embeddings = next(method for method in methods if isinstance(method, Als)).embeddings(train)
    exact = ExactIndex(embeddings.dimension)
    exact.add(np.arange(len(embeddings.item_ids), dtype=np.int64), embeddings.item_vectors)
    index = HnswIndex.build(embeddings.item_vectors)
    return {k: recall_at_k(index, exact, embeddings.user_vectors, k) for k in INDEX_KS if k <= len(embeddings.item_ids)}


def _figures(per_seed: Sequence[dict[str, dict[str, float]]], metrics: Sequence[str] = METRICS) -> dict[str, Metrics]:
    return {
        source: {metric: figure([of_seed[source][metric] for of_seed in per_seed]) for metric in metrics}
        for source in per_seed[0]
    }


def _checks(per_seed: Sequence[dict[str, dict[str, float]]]) -> list[Check]:
    """Check ALS and item-item against the published hit rates, and the blend against its best source."""
    rates = {name: [seed[name]["hit_rate"] for seed in per_seed] for name in (*BLENDED, "blend")}
    checks = []
    for source in BLENDED:
        target = published.SAMPLED[source]["hit_rate"]
        least, most = target - HIT_RATE_TOLERANCE, target + HIT_RATE_TOLERANCE
        value = figure(rates[source])
        what = f"HR@10 of {source}, published {target:.4f} +- {HIT_RATE_TOLERANCE}"
        checks.append(Check(what, value, least, most, least <= value.mean <= most))
    best = max(BLENDED, key=lambda source: float(np.mean(rates[source])))
    # Seed by seed: both rank the same candidates.
    gain = figure([mine - theirs for mine, theirs in zip(rates["blend"], rates[best], strict=True)])
    checks.append(Check(f"HR@10 of the blend over its best source ({best})", gain, 0.0, None, gain.mean >= 0.0))
    return checks
