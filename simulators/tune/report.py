"""The tuning report as one HTML file that needs nothing else: the verdict first, support and weights before values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from plotly.graph_objects import Figure

from bandit.intervals import Interval
from bandit.support import Support
from simulators.tune import plots
from simulators.tune.candidates import Candidate
from simulators.tune.judge import Gain
from simulators.tune.study import LogPart, Study

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:1.5rem auto;padding:0 1rem;color:#1b1f24}"
    "table{border-collapse:collapse;width:100%;margin:1rem 0;font-variant-numeric:tabular-nums}"
    "td,th{padding:.35rem .6rem;border-bottom:1px solid #d8dee4;text-align:right;white-space:nowrap}"
    "td:first-child,th:first-child,td.why{text-align:left}td.why{white-space:normal}"
    ".verdict{font-size:1.25rem;padding:.8rem 1rem;border-radius:6px;border-left:6px solid;margin:0 0 1rem}"
    ".better{background:#dafbe1;border-color:#1a7f37}.worse{background:#ffebe9;border-color:#cf222e}"
    ".cannot-tell{background:#fff8c5;border-color:#9a6700}tr.recommended{background:#dafbe1}"
    "h2{margin-top:2.5rem}p.how{color:#57606a;max-width:60rem}code{background:#f6f8fa;padding:.1rem .3rem}"
    ".wide{overflow-x:auto}"
)
_PLOT = {"displaylogo": False, "responsive": True}


def write_report(path: Path, study: Study, *, command: str) -> None:
    """Write the file.

    Args:
        path: Where.
        study: What to show.
        command: That applies the recommendation, for the reader to copy; empty when there is nothing to apply.

    Raises:
        OSError: it cannot be written.
    """
    path.write_text(report_html(study, command=command), encoding="utf-8")


def report_html(study: Study, *, command: str) -> str:
    """Return the file's text."""
    sections = [
        _summary(study, command),
        "<h2>Support and weights</h2>",
        *_support(study),
        "<h2>Value on the log</h2>",
        *_values(study),
        "<h2>Estimators side by side</h2>",
        *_panel(study),
        "<h2>How much the largest weights matter</h2>",
        *_clips(study),
        "<h2>In the long run, simulated</h2>",
        *_curves(study),
        "<h2>Engagement against discovery and coverage</h2>",
        *_front(study),
        "<h2>Estimates against the truth</h2>",
        *_errors(study),
        "<h2>What was done</h2>",
        *_made(study),
    ]
    # The scripts come with the first plot, and need no network.
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<link rel=icon href='data:,'><title>{escape(study.verdict.sentence)}</title><style>{_STYLE}</style>"
        f"<body>{''.join(sections)}</body></html>"
    )


def _summary(study: Study, command: str) -> str:
    verdict = study.verdict
    kind = verdict.word.replace(" ", "-")
    apply = f"<p>To apply: <code>{escape(command)}</code></p>" if command else ""
    return (
        f"<p class='verdict {kind}'>{escape(verdict.sentence)}</p>"
        f"<p>Recommended for <b>{escape(study.surface)}</b>: <b>{escape(verdict.recommended.name)}</b>. "
        f"{escape(verdict.reason)}</p>{apply}"
    )


def _support(study: Study) -> Iterable[str]:
    log = study.log
    other = f"; {log.n_other:,} of them were logged under another policy" if log.n_other else ""
    yield _how(
        f"{log.n:,} decisions, {log.n_slots:,} drawn slots{other}. A weight says how much more often a candidate would "
        "have shown what the log shows. Of a whole slate it is a product over the slots, of one slot it stands alone. "
        "A mean weight far from 1, or an effective sample of a few, and the log says nothing of the candidate."
    )
    head = ["candidate", "ESS, slate", "ESS / n", "largest", "mean", "ESS, one slot", "largest", "mean", "refused"]
    rows = []
    for one in study.candidates:
        found = log.values[one]
        why = found.refusal or found.one_slot_refusal or ""
        rows.append((one, [one.name, *_weights(found.support, ratio=True), *_weights(found.one_slot_support), why]))
    yield _table(head, rows, study)
    yield _figure(plots.plot_support(study), first=True)


def _weights(support: Support, *, ratio: bool = False) -> list[str]:
    share = [f"{support.ess / support.n:.2f}"] if ratio else []
    return [
        f"{support.ess:,.0f}",
        *share,
        f"{support.max_weight:,.1f}",
        f"{support.mean_weight:.3f} ± {support.mean_weight_se:.3f}",
    ]


def _values(study: Study) -> Iterable[str]:
    log = study.log
    yield _how(
        f"The log earned {log.logged_value:.4f} a slot and was skipped {log.logged_skips:.2%}. Values of whole slates "
        "are self-normalised RIPS with 95% intervals by bootstrap over users. What a candidate changes today is the "
        f"one-slot deviation; its bounds hold at every look and together with {study.limits.confidence:.0%} for all "
        "candidates."
    )
    if log.linearity is not None:
        held = "is" if log.linearity.holds else "IS NOT"
        yield _how(
            f"Check: the value of one slot is a line in the rate, and {held} here ({log.linearity.n} rates, largest "
            f"distance {log.linearity.residual:.1e}): {log.linearity.greedy:.4f} at rate 0, "
            f"{log.linearity.explore:.4f} at rate 1."
        )
    yield _figure(plots.plot_values(study))
    head = ["candidate", "slate", "95%", "one slot", "95%", "skips", "change today", "bounds"]
    rows = []
    by_candidate = {one.candidate: one for one in study.evidence}
    for one in study.candidates:
        found = log.values[one]
        price = by_candidate[one].price
        single = found.one_slot if found.one_slot_refusal is None else (None, None)
        cells = [
            one.name,
            _number(found.value.value),
            _span(found.value.interval),
            _number(single[0]),
            _span(single[1]),
        ]
        cells += ["" if found.skip_rate is None else f"{found.skip_rate[0]:.2%}", *_gain(price)]
        rows.append((one, cells))
    yield _table(head, rows, study)


def _panel(study: Study) -> Iterable[str]:
    yield _how(
        "The estimators assume different things of people. Where they agree, the assumptions do not matter; where they "
        "do not, believe slate_ips (assumes nothing, varies most). one_slot answers another question: one slot changed."
    )
    names = [line.name for line in study.log.values[study.candidates[0]].panel]
    rows = []
    for one in study.candidates:
        found = study.log.values[one]
        values = [_number(found.line(name).value) for name in names]
        rows.append((one, [one.name, *values, _number(found.disagreement)]))
    yield _table(["candidate", *names, "disagreement"], rows, study)
    yield _figure(plots.plot_panel(study))


def _clips(study: Study) -> Iterable[str]:
    yield _how("RIPS with weights cut at 10, 20, 50 and not at all. A value that moves hangs on a few slots.")
    clips = list(study.log.values[study.candidates[0]].by_clip)
    head = ["candidate"]
    for clip in clips:
        head += ["no clip" if math.isinf(clip) else f"clip {clip:g}", "cut"]
    rows = []
    for one in study.candidates:
        cells = [one.name]
        refused = study.log.values[one].refusal is not None
        for value, share in study.log.values[one].by_clip.values():
            cells += ["" if refused else f"{value:.4f}", f"{share:.2%}"]
        rows.append((one, cells))
    yield _table(head, rows, study)
    yield _figure(plots.plot_clips(study))


def _curves(study: Study) -> Iterable[str]:
    yield _how(
        f"{len(study.curves.seeds)} runs of {study.curves.n_decisions:,} decisions each, of the code that serves, from "
        "a model that knows nothing. Every candidate meets the same users, items and luck, seed by seed, so gains are "
        f"differences of pairs; their bounds hold together with {study.limits.confidence:.0%}. What exploring brings "
        "later shows only here: the log cannot know what a better-taught model would have shown. New hits: share of "
        "slots with a hit that appeared since the start; found: of those hits, how many had three clicks, and after "
        "how many minutes; hit rate: clicks on slots that exploration or discovery filled."
    )
    head = ["candidate", "reward", "gain", "bounds", "regret", "skips", "coverage", "new hits", "found", "minutes"]
    head += ["hit rate"]
    rows = []
    by_candidate = {one.candidate: one for one in study.evidence}
    for one in study.curves.runs:
        found = by_candidate[one]
        mean = {name: _mean(study, one, name) for name in _MEANS}
        days = mean["days_to_find"]
        cells = [one.name, _number(mean["value"]), *_gain(found.long_run), f"{mean['regret']:,.0f}"]
        cells += [_percent(found.skip_rate), _percent(found.coverage), _percent(found.discovery)]
        cells += [_percent(mean["found_share"]), "" if math.isnan(days) else f"{1440 * days:.1f}"]
        cells += [_percent(mean["discovery_hit_rate"])]
        rows.append((one, cells))
    yield _table(head, rows, study)
    yield _figure(plots.plot_curves(study))


_MEANS = ("value", "regret", "found_share", "days_to_find", "discovery_hit_rate")


def _front(study: Study) -> Iterable[str]:
    front = ", ".join(one.name for one in study.verdict.front)
    yield _how(
        f"Star: recommended. Diamond: set now. Filled: nothing beats it in reward, skips, discovery and coverage at "
        f"once ({front})."
    )
    yield _figure(plots.plot_front(study))


def _errors(study: Study) -> Iterable[str]:
    yield _how(
        f"On the simulated log ({study.sample.n:,} decisions) the true value of every candidate is known: the same "
        "visits, served by the same frozen model under the candidate (explorers of VW learn on, and have none). "
        "Relative error of each estimator that was not refused; one_slot is off by what slots do to each other."
    )
    names = [line.name for line in study.sample.values[study.candidates[0]].panel]
    rows = []
    for one in study.truth:
        errors = study.relative_errors(one)
        cells = [f"{errors[name]:.2%}" if name in errors else "" for name in names]
        rows.append((one, [one.name, f"{study.truth[one]:.4f}", *cells]))
    yield _table(["candidate", "truth", *names], rows, study)
    yield _figure(plots.plot_errors(study))


def _made(study: Study) -> Iterable[str]:
    plan, limits = study.plan, study.limits
    yield (
        f"<p>Log: {escape(_source(study.log))}. Simulated world: <code>{escape(repr(plan.world))}</code>, seeds "
        f"{escape(', '.join(map(str, plan.seeds)))}, search by {plan.search}. A challenger may give up at most "
        f"{limits.budget:.0%} of today's reward; within {limits.tolerance:.0%} of the best, discovery decides. Rules "
        "of the surface other than discovery act on the log and not in the simulated world.</p>"
    )


def _source(log: LogPart) -> str:
    return f"{log.source}, {log.n:,} decisions"


def _table(head: Sequence[str], rows: Iterable[tuple[Candidate, Sequence[str]]], study: Study) -> str:
    lines = ["<div class=wide><table><tr>", *(f"<th>{escape(cell)}</th>" for cell in head), "</tr>"]
    for one, cells in rows:
        lines.append("<tr class=recommended>" if one == study.verdict.recommended else "<tr>")
        lines += [
            f"<td{' class=why' if title == 'refused' else ''}>{escape(cell)}</td>"
            for title, cell in zip(head, cells, strict=True)
        ]
        lines.append("</tr>")
    return "".join([*lines, "</table></div>"])


def _figure(plot: Figure, *, first: bool = False) -> str:
    html: str = plot.to_html(full_html=False, include_plotlyjs=first, config=_PLOT)
    return html


def _how(text: str) -> str:
    return f"<p class=how>{escape(text)}</p>"


def _mean(study: Study, one: Candidate, name: str) -> float:
    found = study.curves.measure(one, name)
    known = found[found == found]
    return float(known.mean()) if len(known) else math.nan


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1%}"


def _span(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.lower:.4f} to {interval.upper:.4f}"


def _gain(gain: Gain | None) -> list[str]:
    return ["", ""] if gain is None else [f"{gain.value:+.1%}", f"{gain.low:+.1%} to {gain.high:+.1%}"]
