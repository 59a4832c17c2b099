"""The report of a retrain as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from service.model_registry import Manifest, Score, utc_text
from service.retrain import RetrainPlan, Trained

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
    "table{border-collapse:collapse;width:100%;margin:1rem 0}td,th{padding:.4rem .7rem;border-bottom:1px solid #d8dee4;"
    "text-align:left}svg{display:block}.warm{background:#fff3cd;padding:.8rem 1rem;border-radius:6px}"
)
_WARM = (
    "<p class=warm><b>Warm start.</b> Its rows are interactions without propensities, with drawn negatives: it ranks "
    "better than nothing, and no figure here is the value of a policy.</p>"
)
_WIDTH, _HEIGHT = 360.0, 16.0


def write_report(path: Path, *, manifest: Manifest, trained: Sequence[Trained], plan: RetrainPlan | None) -> None:
    """Write what was compared and what was chosen."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>Retrain of {escape(manifest.model)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(manifest.model)}: {escape(manifest.artefact)}</h1>",
        _WARM if manifest.warm else "",
        _facts(manifest, plan),
        *(_figures(name, title, trained) for name, title in _TITLES.items() if trained),
        _scores(manifest),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8")


_TITLES = {
    "dr": "One-slot value of the production policy on each model's scores (doubly robust, bootstrap by user)",
    "advantage": "Advantage over the logging policy (confidence sequence)",
}


def _facts(manifest: Manifest, plan: RetrainPlan | None) -> str:
    rows = {
        "made": manifest.created_at,
        "rows": f"{manifest.n_rows:,}",
        "decided from, to": f"{utc_text(manifest.from_ms)}, {utc_text(manifest.to_ms)}",
        "weights of the rows": manifest.weighting,
        "goes on from": manifest.parent or "nothing",
        "arguments": " ".join(manifest.arguments),
        "feature schema": manifest.schema_version,
    }
    if plan is not None and plan.holdout is not None:
        rows["scored on decisions until"] = utc_text(plan.holdout.to_ms)
    cells = "".join(f"<tr><th>{escape(name)}<td>{escape(value)}" for name, value in rows.items())
    return f"<table>{cells}</table>"


def _figures(name: str, title: str, trained: Sequence[Trained]) -> str:
    scores = [one.figures.get(name) for one in trained]
    ends = [end for s in scores if s for end in (s.value, s.low, s.high) if end is not None]
    if not ends:
        return ""
    low, high = min(ends), max(ends)
    lines = []
    for one, score in zip(trained, scores, strict=True):
        c = one.configuration
        what = f"rate {c.learning_rate:g}, clip {c.clip:g}, passes {c.passes}"
        refused = escape(score.refusal) if score else ""
        lines.append(f"<tr><td>{what}<td>{_bar(score, low, high)}<td>{_text(score)}<td>{refused}")
    return f"<h2>{escape(title)}</h2><table>{''.join(lines)}</table>"


def _scores(manifest: Manifest) -> str:
    cells = "".join(
        f"<tr><th>{escape(name)}<td>{_text(score)}<td>{escape(score.refusal)}"
        for name, score in sorted(manifest.scores.items())
    )
    return f"<h2>Figures of the chosen model</h2><table>{cells}</table>"


def _bar(score: Score | None, low: float, high: float) -> str:
    """Return an interval as a line with its estimate as a dot, zero marked where it is in range."""
    if score is None or score.value is None:
        return ""

    def x(value: float) -> float:
        return 6 + (value - low) / ((high - low) or 1.0) * (_WIDTH - 12)

    zero = f"<line x1={x(0):.1f} x2={x(0):.1f} y1=0 y2={_HEIGHT} stroke='#b0b8c0'/>" if low <= 0 <= high else ""
    line = ""
    if score.low is not None and score.high is not None:
        line = f"<line x1={x(score.low):.1f} x2={x(score.high):.1f} y1=8 y2=8 stroke='#0969da' stroke-width=3 />"
    dot = f"<circle cx={x(score.value):.1f} cy=8 r=4 fill='#0969da'/>"
    return f"<svg width={_WIDTH} height={_HEIGHT} role=img aria-label='{_text(score)}'>{zero}{line}{dot}</svg>"


def _text(score: Score | None) -> str:
    if score is None or score.value is None:
        return "none"
    interval = f" [{score.low:.4f}, {score.high:.4f}]" if score.low is not None and score.high is not None else ""
    return f"{score.value:.4f}{interval}"
