"""Draw both protocols into one self-contained HTML page, readable without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from plotly.graph_objects import Bar, Figure, Scatter
from plotly.subplots import make_subplots

from simulators.retrieval_quality import published
from simulators.retrieval_quality.evaluate import FullReport, Metrics, SampledReport
from simulators.retrieval_quality.text import by_metric


def write_report(path: Path, sampled: SampledReport, full: FullReport) -> None:
    """Write the page: bars are ours, diamonds are published.

    Raises:
        OSError: the file cannot be written.
    """
    plots = make_subplots(
        rows=2,
        cols=2,
        subplot_titles=(
            "(a) HR@10 among 99 sampled negatives",
            "(a) NDCG@10 among 99 sampled negatives",
            "(b) NDCG@10 among everything",
            "(b) coverage and novelty at 10",
        ),
        vertical_spacing=0.15,
    )
    _bars(plots, sampled.sources, published.SAMPLED, "hit_rate", row=1, column=1)
    _bars(plots, sampled.sources, published.SAMPLED, "ndcg", row=1, column=2)
    _bars(plots, full.sources, published.FULL, "ndcg", row=2, column=1)
    names = list(full.sources)
    plots.add_trace(
        Scatter(
            x=[full.sources[name]["coverage"].mean for name in names],
            y=[full.sources[name]["novelty"].mean for name in names],
            text=names,
            mode="markers+text",
            textposition="top center",
        ),
        row=2,
        col=2,
    )
    plots.update_xaxes(title_text="coverage", row=2, col=2)
    plots.update_yaxes(title_text="novelty, bits", row=2, col=2)
    plots.update_layout(title="Candidate sources on MovieLens 100k", showlegend=False, height=900)
    path.write_text(plots.to_html(include_plotlyjs=True, full_html=True), encoding="utf-8")


def _bars(
    plots: Figure,
    sources: Mapping[str, Metrics],
    known: Mapping[str, Mapping[str, float]],
    metric: str,
    *,
    row: int,
    column: int,
) -> None:
    names = by_metric(sources, metric)
    figures = [sources[name][metric] for name in names]
    means, errors = [found.mean for found in figures], [found.se for found in figures]
    plots.add_trace(Bar(x=names, y=means, error_y={"array": errors}), row=row, col=column)
    values = [figures[metric] for figures in known.values()]
    marker = {"symbol": "diamond", "size": 9, "color": "black"}
    plots.add_trace(Scatter(x=list(known), y=values, mode="markers", marker=marker), row=row, col=column)
