"""`hone evaluate`: what a log says of another policy, and whether it says anything."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import orjson
import typer

from service.cli.settings import settings_of
from simulators.datasets import fetch as fetching
from simulators.evaluate import Evaluation, as_figures, evaluate_open_bandit
from simulators.evaluate_log import LogSource, evaluate_log
from simulators.evaluate_sources import (
    LogFormat,
    LogRequest,
    PolicyName,
    Unanswerable,
    build_source,
    parse_position_weights,
    parse_window,
)
from simulators.logged.import_report import LogRefused
from simulators.logged.open_bandit import OPEN_BANDIT

evaluate = typer.Typer(invoke_without_command=True, help="Estimate a policy's value from another policy's log.")


class DatasetName(StrEnum):
    """Data sets that can be evaluated."""

    OPEN_BANDIT = "open-bandit"


class TimeUnitName(StrEnum):
    """Units of unix time."""

    S = "s"
    MS = "ms"
    US = "us"
    NS = "ns"


class CampaignName(StrEnum):
    """Campaigns of the Open Bandit data."""

    ALL = "all"
    MEN = "men"
    WOMEN = "women"


@evaluate.callback(
    epilog="Example: hone evaluate --dataset open-bandit --campaign men, or "
    "hone evaluate --log clicks.csv --format csv --policy column --map reward=click,propensity=p,target_propensity=q"
)
def evaluate_command(
    context: typer.Context,
    dataset: Annotated[DatasetName, typer.Option(help="Whose logs, without --log.")] = DatasetName.OPEN_BANDIT,
    campaign: Annotated[CampaignName, typer.Option(help="Which campaign of the data set.")] = CampaignName.ALL,
    reverse: Annotated[
        bool, typer.Option("--reverse", help="Uniform from the Thompson sampling log, in place of the other way.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Use the cache folder only.")] = False,
    log: Annotated[Path | None, typer.Option(help="A log to evaluate: a file, or the folder of an archive.")] = None,
    log_format: Annotated[LogFormat, typer.Option("--format", help="Of the log.")] = LogFormat.ARCHIVE,
    policy: Annotated[
        PolicyName,
        typer.Option(
            help="Target policy. archive: uniform, greedy, epsilon, logged, configured (of --surface); dsjson: uniform,"
            " greedy, epsilon (by the logged pmf), column; csv: column, pmf, uniform; open-bandit: pmf, uniform."
        ),
    ] = PolicyName.UNIFORM,
    rate: Annotated[float | None, typer.Option(help="Exploration rate of epsilon.")] = None,
    surface: Annotated[str, typer.Option(help="Of an archive's decisions; all by default.")] = "",
    columns: Annotated[str, typer.Option("--map", help="CSV columns: reward=click,propensity=p,...")] = "",
    n_actions: Annotated[int, typer.Option(help="CSV: how many actions, numbered from 0; 0 for unknown.")] = 0,
    target_pmf: Annotated[
        Path | None, typer.Option(help="CSV: file with action, probability and, if wanted, position.")
    ] = None,
    floor: Annotated[
        float, typer.Option(help="CSV: lowest propensity that the logging policy could have; 0 for unknown.")
    ] = 0.0,
    embedding: Annotated[
        str, typer.Option(help="MIPS by: a logged column (archive), a path in an action such as A.genre (dsjson).")
    ] = "",
    reward_model: Annotated[
        str, typer.Option(help="DSJSON: VW's arguments of a model that learns on the way, for DM, DR and their kin.")
    ] = "",
    position_weights: Annotated[str, typer.Option(help="What a reward is worth by slot: 1,0.7,...; else 1.")] = "",
    start: Annotated[str, typer.Option("--from", help="Only what was logged from this ISO date or time on; UTC.")] = "",
    end: Annotated[str, typer.Option("--to", help="Only what was logged before this ISO date or time; UTC.")] = "",
    time_unit: Annotated[
        TimeUnitName | None, typer.Option(help="CSV: of times that are numbers; --from and --to need it.")
    ] = None,
    any_order: Annotated[bool, typer.Option("--any-order", help="The log may be out of the order of time.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Estimate a policy's value from another policy's log: of a data set, or with --log of your own.

    What was read, support and weights come first. When the log cannot carry the estimate, no value is printed: the
    reason is, and the exit code is 1. A log of any length needs the memory of a batch.
    """
    if log is None:
        _evaluate_dataset(dataset, campaign, reverse=reverse, offline=offline, as_json=as_json)
        return
    try:
        request = LogRequest(
            path=log,
            log_format=log_format,
            policy=policy,
            rate=rate,
            columns=columns,
            n_actions=n_actions,
            target_pmf=target_pmf,
            surface=surface,
            any_order=any_order,
            floor=floor,
            window=parse_window(start, end),
            embedding=embedding,
            reward_model=reward_model,
            time_unit=None if time_unit is None else time_unit.value,
            position_weights=parse_position_weights(position_weights),
        )
        source = build_source(request, settings_of(context).load())
    except Unanswerable as error:
        raise typer.BadParameter(str(error)) from error
    except LogRefused as error:
        _fail(str(error))
    _evaluate_log(request, source, as_json=as_json)


def _evaluate_log(request: LogRequest, source: LogSource, *, as_json: bool) -> None:
    try:
        found = evaluate_log(source, position_weights=request.position_weights)
    except LogRefused as error:
        _fail(str(error))
    if as_json:
        figures = {"log": str(request.path), "format": request.log_format.value, "policy": request.policy.value}
        typer.echo(orjson.dumps(figures | found.figures(), option=orjson.OPT_INDENT_2).decode())
    else:
        typer.echo(f"{request.policy.value} from {request.path}")
        typer.echo(found.text())
    if found.refusal is not None:
        _fail(f"refused: {found.refusal}")


def _fail(reason: str) -> NoReturn:
    typer.echo(f"hone: {reason}", err=True)
    raise typer.Exit(1)


def _evaluate_dataset(
    dataset: DatasetName, campaign: CampaignName, *, reverse: bool, offline: bool, as_json: bool
) -> None:
    """Estimate one policy's click rate from the other's log, beside its click rate in its own."""
    typer.echo(OPEN_BANDIT.notice, err=True)
    try:
        files = fetching.fetch(OPEN_BANDIT, fetching.cache_folder(os.environ), offline=offline)
    except fetching.FetchError as error:
        _fail(str(error))
    found = evaluate_open_bandit(files, campaign=campaign.value, reverse=reverse)
    if as_json:
        figures = {"dataset": dataset.value, "campaign": campaign.value, **as_figures(found)}
        typer.echo(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode())
    else:
        typer.echo(_text(found, campaign=campaign.value))
    if found.refusal is not None:
        _fail(f"refused: {found.refusal}")


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
