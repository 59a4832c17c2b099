"""`hone evaluate`: what a log says of another policy, and whether it says anything."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import orjson
import typer

from simulators.datasets import fetch as fetching
from simulators.evaluate import Evaluation, as_figures, evaluate_open_bandit
from simulators.logged.open_bandit import OPEN_BANDIT

evaluate = typer.Typer(invoke_without_command=True, help="Estimate a policy's value from another policy's log.")


class DatasetName(StrEnum):
    """Data sets that can be evaluated."""

    OPEN_BANDIT = "open-bandit"


class CampaignName(StrEnum):
    """Campaigns of the Open Bandit data."""

    ALL = "all"
    MEN = "men"
    WOMEN = "women"


@evaluate.callback(epilog="Example: hone evaluate --dataset open-bandit --campaign men")
def evaluate_command(
    dataset: Annotated[DatasetName, typer.Option(help="Whose logs.")] = DatasetName.OPEN_BANDIT,
    campaign: Annotated[CampaignName, typer.Option(help="Which campaign.")] = CampaignName.ALL,
    reverse: Annotated[
        bool, typer.Option("--reverse", help="Uniform from the Thompson sampling log, in place of the other way.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Use the cache folder only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Estimate one policy's click rate from the other's log, beside its click rate in its own.

    Support and weights come first. When the log cannot carry the estimate, no value is printed: the reason is, and the
    exit code is 1.
    """
    typer.echo(OPEN_BANDIT.notice, err=True)
    try:
        files = fetching.fetch(OPEN_BANDIT, fetching.cache_folder(os.environ), offline=offline)
    except fetching.FetchError as error:
        typer.echo(f"hone: {error}", err=True)
        raise typer.Exit(1) from error
    found = evaluate_open_bandit(files, campaign=campaign.value, reverse=reverse)
    if as_json:
        figures = {"dataset": dataset.value, "campaign": campaign.value, **as_figures(found)}
        typer.echo(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode())
    else:
        typer.echo(_text(found, campaign=campaign.value))
    if found.refusal is not None:
        typer.echo(f"hone: refused: {found.refusal}", err=True)
        raise typer.Exit(1)


def _text(found: Evaluation, *, campaign: str) -> str:
    support, truth = found.support, found.truth_interval
    lines = [
        f"{found.target_policy} from the log of {found.logging_policy}, campaign {campaign}",
        f"rows {support.n:,}  ESS {support.ess:,.1f}  largest weight {support.max_weight:,.1f}  "
        f"mean weight {support.mean_weight:.4f} +- {support.mean_weight_se:.4f}",
    ]
    lines += [f"click rate of {name} in its own log {value:.4f}" for name, value in found.on_policy.items()]
    if found.refusal is None:
        lines.append(f"  the target's own log, 95% by {truth.method}: {truth.lower:.4f} to {truth.upper:.4f}")
        lines.append(f"{'estimator':<18}{'value':>10}{'relative EE':>14}{'95% by bootstrap':>22}{'clipped':>10}")
        lines += [
            f"{line.name:<18}{line.value:>10.6f}{line.relative_ee:>14.6f}"
            f"{f'{line.interval.lower:.4f} to {line.interval.upper:.4f}':>22}{line.clipped_share:>10.2%}"
            for line in found.lines
        ]
        for what, interval in found.intervals.items():
            bounds = f"{interval.lower:.4f} to {interval.upper:.4f}"
            lines.append(f"{what}, 95% by {interval.method}: {bounds} {interval.note}".rstrip())
    return "\n".join(lines)
