"""The plots of a tuning report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from plotly.colors import qualitative, sample_colorscale
from plotly.graph_objects import Bar, Figure, Scatter
from plotly.subplots import make_subplots

from bandit.exploration import Epsilon
from bandit.intervals import Interval
from simulators.panel import PanelLine
from simulators.tune.candidates import Candidate
from simulators.tune.judge import pareto_front
from simulators.tune.study import Study

CURVES = (
    ("value", "reward of a slot", False),
    ("regret", "regret so far, rewards", False),
    ("new_good_share", "slots with a new hit", True),
    ("coverage", "catalogue shown", True),
    ("discovery_hit_rate", "clicks on explored slots", True),
    ("found_share", "new hits found so far", True),
)
_FONT = "system-ui, sans-serif"
_NOW, _RECOMMENDED = "#8250df", "#cf222e"


def colours(study: Study) -> dict[Candidate, str]:
    """Return a colour for each candidate: rates from light to dark, the others apart."""
    rates = sorted({one.rate for one in study.candidates if one.rate is not None})
    ramp = sample_colorscale("Viridis", np.linspace(0.92, 0.0, max(2, len(rates))).tolist())
    others = iter(qualitative.Set1 * 10)
    return {one: ramp[rates.index(one.rate)] if one.rate is not None else next(others) for one in study.candidates}


def plot_support(study: Study) -> Figure:
    """Draw effective sample size and weights of every candidate."""
    names = [one.name for one in study.candidates]
    found = [study.log.values[one] for one in study.candidates]
    plots = make_subplots(rows=1, cols=2, subplot_titles=("effective sample size / decisions", "largest weight"))
    for of_slate, label, colour in ((True, "whole slate", "#0969da"), (False, "one slot", "#9a6700")):
        supports = [one.support if of_slate else one.one_slot_support for one in found]
        bars = {"name": label, "marker_color": colour, "legendgroup": label}
        plots.add_trace(Bar(x=names, y=[s.ess / s.n for s in supports], **bars), row=1, col=1)
        plots.add_trace(Bar(x=names, y=[s.max_weight for s in supports], showlegend=False, **bars), row=1, col=2)
    plots.update_yaxes(range=[0, 1.05], row=1, col=1)
    plots.update_yaxes(type="log", row=1, col=2)
    return _laid_out(plots, height=380)


def plot_values(study: Study) -> Figure:
    """Draw V(rate) with intervals: whole slate, one slot, and the truth where it is known."""
    own = [one for one in study.candidates if isinstance(one.exploration, Epsilon)]
    rated = sorted(own, key=lambda one: one.rate or 0.0)
    x = [one.rate for one in rated]
    found = [study.log.values[one] for one in rated]
    plot = Figure()
    line = study.log.linearity
    if line is not None and x:
        edge = max(rate for rate in x if rate is not None)
        ends = [line.greedy, line.greedy + edge * (line.explore - line.greedy)]
        plot.add_trace(_line([0.0, edge], ends, name="one slot: a line in the rate", dash="dot"))
    whole = [(one.value.value, one.value.interval) for one in found]
    plot.add_trace(_with_intervals(x, whole, name="whole slate (sn_rips)", colour="#0969da"))
    single = [one.one_slot if one.one_slot_refusal is None else (None, None) for one in found]
    # Beside the other, not on top of it.
    beside = [(rate or 0.0) + 0.004 for rate in x]
    plot.add_trace(_with_intervals(beside, single, name="one slot", colour="#9a6700"))
    if study.log is study.sample:
        truth = [study.truth[one] for one in rated]
        marker = {"symbol": "x", "size": 10, "color": "black"}
        plot.add_trace(Scatter(x=x, y=truth, mode="markers", name="true value of the whole slate", marker=marker))
    plot.update_xaxes(title_text="exploration rate")
    plot.update_yaxes(title_text="reward of a slot")
    return _laid_out(plot, height=430)


def plot_panel(study: Study) -> Figure:
    """Draw what each estimator says of each candidate: where they disagree, one of their assumptions fails."""
    plot = Figure()
    tints = colours(study)
    for one in study.candidates:
        lines = [line for line in study.log.values[one].panel if line.value is not None]
        points = [(line.value, line.interval) for line in lines]
        plot.add_trace(_with_intervals([line.name for line in lines], points, name=one.name, colour=tints[one]))
    plot.update_layout(scattermode="group", scattergap=0.3)
    edges = [y for one in study.candidates for line in study.log.values[one].panel for y in _edges(line)]
    room = 0.05 * (max(edges) - min(edges)) if edges else 0.0
    # Grouped points would start the axis at 0, where nothing is to be seen.
    plot.update_yaxes(title_text="reward of a slot", range=[min(edges) - room, max(edges) + room] if edges else None)
    return _laid_out(plot, height=460)


def plot_clips(study: Study) -> Figure:
    """Draw the whole-slate value by the largest weight kept."""
    plot = Figure()
    tints = colours(study)
    for one in study.candidates:
        if study.log.values[one].refusal is not None:
            continue
        by_clip = study.log.values[one].by_clip
        x = ["none" if math.isinf(clip) else f"{clip:g}" for clip in by_clip]
        y = [value for value, _ in by_clip.values()]
        text = [f"{share:.2%} of slots cut" for _, share in by_clip.values()]
        plot.add_trace(Scatter(x=x, y=y, text=text, mode="lines+markers", name=one.name, line={"color": tints[one]}))
    plot.update_xaxes(title_text="largest weight kept", type="category")
    plot.update_yaxes(title_text="reward of a slot")
    return _laid_out(plot, height=400)


def plot_curves(study: Study) -> Figure:
    """Draw the learning curves, each a mean over seeds with one standard error around it."""
    shown = [entry for entry in CURVES if _has_any(study, entry[0])]
    n_rows = -(-len(shown) // 2)
    plots = make_subplots(rows=n_rows, cols=2, subplot_titles=[title for _, title, _ in shown], vertical_spacing=0.1)
    tints = colours(study)
    steps = study.curves.steps()
    for place, (name, _, is_share) in enumerate(shown):
        at = {"row": place // 2 + 1, "col": place % 2 + 1}
        for one in study.curves.runs:
            mean, se = study.curves.curve(one, name)
            plots.add_trace(_band(steps, mean, np.nan_to_num(se), colour=tints[one], group=one.name), **at)
            style = {"color": tints[one], "width": 3 if one == study.verdict.recommended else 1.8}
            line = Scatter(x=steps, y=mean, name=one.name, mode="lines", line=style, legendgroup=one.name)
            plots.add_trace(line.update(showlegend=place == 0), **at)
        if is_share:
            plots.update_yaxes(tickformat=".0%", rangemode="tozero", **at)
        plots.update_xaxes(title_text="decisions", **at)
    return _laid_out(plots, height=330 * n_rows)


def plot_front(study: Study) -> Figure:
    """Draw engagement against discovery and coverage; the front is joined, the recommended one marked."""
    plots = make_subplots(rows=1, cols=2, subplot_titles=("reward against discovery", "skips against coverage"))
    tints = colours(study)
    by_candidate = {one.candidate: one for one in study.evidence}
    run = [one for one in study.candidates if one in study.curves.runs]
    values = {one: float(study.curves.measure(one, "value").mean()) for one in run}
    has_new = any(not math.isnan(by_candidate[one].discovery) and by_candidate[one].discovery > 0.0 for one in run)

    def right(one: Candidate) -> float:
        return by_candidate[one].discovery if has_new else by_candidate[one].coverage

    front = sorted(pareto_front({one: (values[one], right(one)) for one in run}), key=right)
    joined = {"mode": "lines", "line": {"color": "#b0b8c0", "dash": "dash"}, "hoverinfo": "skip"}
    plots.add_trace(
        Scatter(x=[right(one) for one in front], y=[values[one] for one in front], name="front of these two", **joined),
        row=1,
        col=1,
    )
    for one in run:
        found = by_candidate[one]
        marker = {"size": 11, "color": tints[one], "symbol": "circle" if one in study.verdict.front else "circle-open"}
        if one == study.verdict.recommended:
            marker |= {"size": 19, "symbol": "star", "line": {"color": _RECOMMENDED, "width": 2}}
        elif one == study.candidates[0]:
            marker |= {"size": 15, "symbol": "diamond", "line": {"color": _NOW, "width": 2}}
        points = {"mode": "markers", "marker": marker, "name": one.name, "legendgroup": one.name}
        plots.add_trace(Scatter(x=[right(one)], y=[values[one]], **points), row=1, col=1)
        plots.add_trace(Scatter(x=[found.coverage], y=[found.skip_rate], showlegend=False, **points), row=1, col=2)
    plots.update_xaxes(
        title_text="slots with a new hit" if has_new else "catalogue shown", tickformat=".1%", row=1, col=1
    )
    plots.update_yaxes(title_text="reward of a slot, whole run", row=1, col=1)
    plots.update_xaxes(title_text="catalogue shown", tickformat=".0%", row=1, col=2)
    plots.update_yaxes(title_text="skips of a slot (less is better)", tickformat=".1%", row=1, col=2)
    return _laid_out(plots, height=470)


def plot_errors(study: Study) -> Figure:
    """Draw the relative error of each estimator against the true value."""
    plot = Figure()
    tints = colours(study)
    for one in study.truth:
        errors = study.relative_errors(one)
        plot.add_trace(Bar(x=list(errors), y=list(errors.values()), name=one.name, marker_color=tints[one]))
    plot.update_yaxes(title_text="|estimate - truth| / truth", tickformat=".1%")
    return _laid_out(plot, height=400)


def _has_any(study: Study, name: str) -> bool:
    return any(not np.isnan(study.curves.curve(one, name)[0]).all() for one in study.curves.runs)


def _with_intervals(
    x: Sequence[Any], points: Iterable[tuple[float | None, Interval | None]], *, name: str, colour: str
) -> Scatter:
    """Return points with their intervals; a point that was refused leaves a gap."""
    pairs = list(points)
    y = [value for value, _ in pairs]
    above = [0.0 if i is None or v is None else i.upper - v for v, i in pairs]
    below = [0.0 if i is None or v is None else v - i.lower for v, i in pairs]
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.4, "width": 3}
    return Scatter(x=x, y=y, name=name, mode="markers", error_y=bars, marker={"color": colour, "size": 8})


def _edges(line: PanelLine) -> list[float]:
    """Return what of a line is drawn."""
    if line.value is None:
        return []
    return [line.value] if line.interval is None else [line.value, line.interval.lower, line.interval.upper]


def _line(x: Sequence[float], y: Sequence[float], *, name: str, dash: str) -> Scatter:
    return Scatter(x=x, y=y, name=name, mode="lines", line={"color": "#9a6700", "dash": dash, "width": 1.5})


def _band(x: Sequence[int], mean: Any, se: Any, *, colour: str, group: str) -> Scatter:  # noqa: ANN401 - arrays
    """Return the area of one standard error around a curve, without the checkpoints that say nothing."""
    known = ~np.isnan(mean)
    at = np.array(x)[known]
    area = np.concatenate([(mean + se)[known], (mean - se)[known][::-1]])
    numbers = colour[colour.index("(") + 1 : -1]
    return Scatter(
        x=np.concatenate([at, at[::-1]]),
        y=area,
        fill="toself",
        fillcolor=f"rgba({numbers}, 0.13)",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=group,
    )


def _laid_out(plot: Figure, *, height: int) -> Figure:
    plot.update_layout(
        template="plotly_white",
        height=height,
        font={"family": _FONT, "size": 13},
        margin={"l": 70, "r": 20, "t": 50, "b": 60},
        legend={"itemsizing": "constant"},
    )
    return plot
