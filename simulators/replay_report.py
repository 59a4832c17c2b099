"""The report of a replay as one HTML file that opens without a network; its first line is what was found."""

from __future__ import annotations

from html import escape
from pathlib import Path

from plotly.graph_objects import Figure, Scatter
from plotly.subplots import make_subplots

from simulators.evaluate_log import bound_text
from simulators.panel import PanelLine
from simulators.replay import ReplayResult

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
    "table{border-collapse:collapse;width:100%;margin:1rem 0}td,th{padding:.4rem .7rem;border-bottom:1px solid #d8dee4;"
    "text-align:left}.verdict{font-size:1.2rem}"
)


def write_report(path: Path, result: ReplayResult) -> None:
    """Write the page.

    Raises:
        OSError: it cannot be written.
    """
    found = result.evaluation
    parts = [
        '<!doctype html><html lang=en><meta charset=utf-8><link rel=icon href="data:,">',
        f"<title>Replay</title><style>{_STYLE}</style>",
        f"<p class=verdict><b>{escape(verdict(result))}</b>",
        "<h2>What was replayed</h2>",
        _table([(name, str(value)) for name, value in result.settings.items()]),
        "<h2>The log, and how far it supports the policy</h2>",
        "".join(f"<div>{escape(line)}</div>" for line in found.report.lines()),
        "<h2>Value of the replayed policy</h2>",
        _panel(found.lines),
        "".join(f"<div>{escape(bound_text(what, bound))}</div>" for what, bound in found.bounds.items()),
        "<h2>As it went</h2>",
        _curves(result).to_html(include_plotlyjs=True, full_html=False),
    ]
    path.write_text("\n".join(parts), encoding="utf-8")


def verdict(result: ReplayResult) -> str:
    """Say in one line whether the replayed policy is better than the log's, worse, or whether that cannot be told."""
    found = result.evaluation
    if found.refusal is not None:
        return f"Cannot tell: {found.refusal}."
    usable = [line for line in found.lines if line.value is not None and line.interval is not None]
    if not usable:
        return "Cannot tell: there are too few users for an interval."
    # The panel begins with the estimator that assumes least.
    line = usable[0]
    assert line.value is not None
    assert line.interval is not None
    low, high, logged = line.interval.lower, line.interval.upper, found.logged_value
    said = f"{line.name} {line.value:.6g} [{low:.6g}, {high:.6g}], the log earned {logged:.6g}"
    if low > logged:
        return f"Better than the log: {said}."
    if high < logged:
        return f"Worse than the log: {said}."
    return f"Cannot tell from the log's policy: {said}."


def _panel(lines: tuple[PanelLine, ...]) -> str:
    rows = []
    for line in lines:
        support = line.support
        interval = "" if line.interval is None else f"{line.interval.lower:.6g} to {line.interval.upper:.6g}"
        value = escape(f"refused: {line.refusal}") if line.value is None else f"{line.value:.6g}"
        rows.append(
            f"<tr><td>{escape(line.name)}<td>{value}<td>{interval}<td>{support.ess:,.0f}<td>{support.max_weight:,.2f}"
            f"<td>{support.mean_weight:.4f}<td>{support.clipped_share:.2%}"
        )
    head = "<tr><th>estimator<th>value<th>95% by bootstrap<th>ESS<th>largest weight<th>mean weight<th>clipped"
    return f"<table>{head}{''.join(rows)}</table>"


def _table(rows: list[tuple[str, str]]) -> str:
    return f"<table>{''.join(f'<tr><th>{escape(name)}<td>{escape(value)}' for name, value in rows)}</table>"


def _curves(result: ReplayResult) -> Figure:
    curve = result.curve
    has_loss = result.loss is not None
    titles = ["Mean reward so far", "Squared error of predicted rewards, before learning"]
    plots = make_subplots(rows=2 if has_loss else 1, cols=1, subplot_titles=titles[: 2 if has_loss else 1])
    n = [point.n for point in curve]
    plots.add_trace(Scatter(x=n, y=[point.logged_value for point in curve], name="log"), row=1, col=1)
    if result.evaluation.refusal is None:
        values = [point.value for point in curve]
        plots.add_trace(Scatter(x=n, y=values, name="replayed, one slot at a time"), row=1, col=1)
    if has_loss:
        plots.add_trace(Scatter(x=n, y=[point.loss for point in curve], name="so far"), row=2, col=1)
        window = [point.window_loss for point in curve]
        plots.add_trace(Scatter(x=n, y=window, name="latest", mode="markers", marker={"size": 3}), row=2, col=1)
    plots.update_xaxes(title_text="decisions")
    plots.update_layout(height=380 * (2 if has_loss else 1))
    return plots
