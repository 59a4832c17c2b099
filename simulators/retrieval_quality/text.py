"""Print both protocols as tables, each beside its own published figures; and how soon new items are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from simulators.retrieval_quality import published
from simulators.retrieval_quality.evaluate import FullReport, Metrics, SampledReport
from simulators.retrieval_quality.new_items import WAYS, NewItemsReport
from simulators.retrieval_quality.splits import N_NEGATIVES

PublishedFigures = Mapping[str, Mapping[str, float]]


def print_sampled(console: Console, report: SampledReport) -> None:
    """Print protocol (a)."""
    table = _table(
        f"(a) latest rating held out, among 99 sampled negatives: {report.n_users} users, {report.n_items:,} films,"
        f" {report.n_train:,} ratings to learn from, {report.n_seeds} draws of negatives",
        report.sources,
        {"hit_rate": "HR@10", "ndcg": "NDCG@10"},
        published.SAMPLED,
        caption=f"published: {published.SAMPLED_SOURCE}",
    )
    console.print(table)
    for source, tuned in report.tuned.items():
        console.print(f"{source}: {tuned.chosen}, best of {tuned.n_tried} on validation ({tuned.validation:.4f})")
    for check in report.checks:
        bound = f"at least {check.least:.4f}" if check.most is None else f"{check.least:.4f} to {check.most:.4f}"
        verdict = "holds " if check.holds else "MISSED"
        console.print(f"{verdict} {check.what}: {check.value.mean:.4f} +- {check.value.se:.4f} ({bound})")


def print_full(console: Console, report: FullReport) -> None:
    """Print protocol (b), what the surfaces' quotas bring, and the recall of the index."""
    metrics = {
        "ndcg": "NDCG@10",
        "precision": "P@10",
        "recall": "R@10",
        "hit_rate": "HR@10",
        "coverage": "coverage",
        "novelty": "novelty, bits",
    }
    title = (
        f"(b) a quarter of each user's ratings held out, ranked among everything: {report.n_users} users,"
        f" {report.n_items:,} films, {report.n_ratings:,} ratings, {report.n_seeds} splits"
    )
    caption = f"published: {published.FULL_SOURCE}"
    console.print(_table(title, report.sources, metrics, published.FULL, caption=caption))
    for source, tuned in report.tuned.items():
        console.print(f"{source}: {tuned.chosen}, best of {tuned.n_tried} on validation ({tuned.validation:.4f})")
    table = Table(
        "surface", "candidates", "blend", "each source with all places to itself", title="recall of candidates"
    )
    for name, surface in report.surfaces.items():
        if surface.blend:
            alone = ", ".join(f"{source} {figures['recall'].mean:.4f}" for source, figures in surface.alone.items())
            quotas = ", ".join(f"{source} {quota}" for source, quota in surface.quotas.items())
            missing = f"; without {', '.join(surface.left_out)}" if surface.left_out else ""
            blend = f"{surface.blend['recall'].mean:.4f} ({quotas}{missing})"
            table.add_row(name, str(surface.n_candidates), blend, alone)
    console.print(table)
    recalls = ", ".join(f"k={k} {recall.mean:.4f}" for k, recall in report.index_recall.items())
    console.print(f"recall of the approximate index against the exact one: {recalls}")


def print_new_items(console: Console, report: NewItemsReport) -> None:
    """Print how soon new items are found, and what the checks are made by."""
    table = Table(
        "likes",
        *(way.replace("_", " ") for way in WAYS),
        title=f"HR@10 of {report.n_new} new films among {N_NEGATIVES} sampled negatives (recall@10 of all films):"
        f" {report.n_users} users, {report.n_items:,} films, {report.n_draws} draws",
        title_justify="left",
    )
    for n, ways in report.figures.items():
        cells = [f"{m['hit_rate'].mean:.4f} +- {m['hit_rate'].se:.4f} ({m['recall'].mean:.4f})" for m in ways.values()]
        table.add_row(str(n), *cells)
    console.print(table)
    for n, gains in report.gains.items():
        over = ", ".join(f"{gain.mean:+.4f} +- {gain.se:.4f} over {way}" for way, gain in gains.items())
        console.print(f"{n} likes: folded in {over}")
    console.print("holds " if report.holds else "MISSED", "never worse than content, better than of others")


def _table(
    title: str,
    sources: Mapping[str, Metrics],
    metrics: Mapping[str, str],
    known: PublishedFigures,
    *,
    caption: str,
) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("source")
    for heading in metrics.values():
        table.add_column(heading, justify="right")
    beside = [metric for metric in metrics if any(metric in figures for figures in known.values())]
    for metric in beside:
        table.add_column(f"published {metrics[metric]}", justify="right")
    for source in by_metric(sources, next(iter(metrics))):
        cells = [f"{sources[source][metric].mean:.4f} +- {sources[source][metric].se:.4f}" for metric in metrics]
        table.add_row(source, *cells, *_published_cells(known, source, beside))
    for source in known:
        if source not in sources:
            table.add_row(source, *("" for _ in metrics), *_published_cells(known, source, beside), style="dim")
    return table


def by_metric(sources: Mapping[str, Metrics], metric: str) -> list[str]:
    """Order sources by a metric, the best first."""
    return sorted(sources, key=lambda source: -sources[source][metric].mean)


def _published_cells(known: PublishedFigures, source: str, metrics: Sequence[str]) -> list[str]:
    figures = known.get(source, {})
    return [f"{figures[metric]:.4f}" if metric in figures else "" for metric in metrics]
