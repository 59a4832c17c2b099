"""`hone tune`: which exploration a surface should have, and the live rate within a budget."""

from __future__ import annotations

import getpass
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import orjson
import typer
from rich.console import Console
from rich.table import Table

from service.bootstrap import wall_clock_ms
from service.cli.configuration import on_config_writer
from service.cli.offline import AsJson, progress_bar
from service.cli.settings import settings_of
from service.config import Config, SurfaceConfig
from service.config_writer import ConfigWriter
from service.retrain_figures import reward_range
from simulators.tune.apply import apply_choice, command_for
from simulators.tune.candidates import Candidate, Grid, Kind, discovery_share_of, expand
from simulators.tune.curves import Plan, quieten, worker_pool
from simulators.tune.judge import Limits
from simulators.tune.live import RateChange, RateEvidence, Terms
from simulators.tune.log_values import archived, archived_skips
from simulators.tune.sample import Sample, make_sample
from simulators.tune.study import Study, study
from simulators.tune.watch import Look, LookJournal, StopSignal, journal_path, look, seen, watch
from simulators.worlds.named import QUICK_SETTINGS, TRAINED_SETTINGS, WORLDS

tune = typer.Typer(invoke_without_command=True, help="Choose how a surface explores, from its log and from simulation.")

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_EXIT = {"better": 0, "worse": 1, "cannot tell": 1}


@tune.callback(
    epilog="Examples: hone tune --report tune.html; hone tune --log var/archive --surface home --apply; "
    "hone tune --live --surface home --budget 0.01 --bounds 0.02,0.2"
)
def tune_command(
    context: typer.Context,
    surface: Annotated[str, typer.Option(help="A declared surface.")] = "home",
    log: Annotated[
        Path | None, typer.Option(help="Archive of the service, such as var/archive. [default: the simulated sample]")
    ] = None,
    kinds: Annotated[str, typer.Option(help="Of epsilon, softmax, squarecb.")] = "epsilon,softmax,squarecb",
    rates: Annotated[str, typer.Option(help="Exploration rates of epsilon.")] = "0,0.02,0.05,0.1,0.2,0.3",
    temperatures: Annotated[str, typer.Option(help="Of epsilon and softmax; `auto` for the spread of scores.")] = "",
    gammas: Annotated[str, typer.Option(help="Of squarecb.")] = "100",
    shortlists: Annotated[str, typer.Option(help="Sizes of the shortlist. [default: as it is]")] = "",
    discovery: Annotated[str, typer.Option(help="Shares of slots for discovery. [default: as it is]")] = "",
    vw: Annotated[
        list[str] | None, typer.Option(help='An explorer of VW, "--cb_explore_adf --bag 5"; repeat it.')
    ] = None,
    world: Annotated[str, typer.Option(help="Simulated: churning, clustered, synthetic or movielens.")] = "churning",
    search: Annotated[str, typer.Option(help="`grid`, or `halving` for many candidates.")] = "grid",
    seeds: Annotated[int, typer.Option(min=2, help="Simulated runs of each candidate.")] = 10,
    decisions: Annotated[int, typer.Option(min=100, help="Decisions of a simulated run.")] = 1_500,
    sample_decisions: Annotated[int, typer.Option(min=200, help="Decisions of the simulated log.")] = 3_000,
    most_logged: Annotated[int, typer.Option(min=100, help="Decisions of --log to read, the latest.")] = 20_000,
    budget: Annotated[float, typer.Option(help="Share of today's reward that may be given up.")] = 0.05,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Of what is said.")] = 0.95,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    report: Annotated[Path | None, typer.Option(help="HTML file to write.")] = Path("tune.html"),
    apply: Annotated[bool, typer.Option("--apply", help="Set what is recommended, if it is better.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Set the rate from the live log alone, once.")] = False,
    every: Annotated[str, typer.Option(help="With --live: keep looking, such as every 15m, until stopped.")] = "",
    bounds: Annotated[str, typer.Option(help="Of --live: lowest and highest rate.")] = "0.02,0.2",
    as_json: AsJson = False,
) -> None:
    """Say whether another exploration is better than what a surface has, and what to set.

    The log says what a candidate costs today, simulated worlds what it brings in the long run. Without --log a log is
    simulated first and kept in the data folder. The exit code is 0 for "better" or a change made, 1 for "worse" and
    "cannot tell", 2 for options that cannot be used.

    With --live the rate is set, within --bounds, to the highest that is shown to give up at most --budget; with
    --every, again and again, until SIGINT or SIGTERM.
    """
    config = settings_of(context).load()
    declared = config.surfaces.get(surface)
    if declared is None:
        _usage(f"--surface must be one of {sorted(config.surfaces)}, got {surface!r}")
    if live:
        every_s = _seconds("--every", every) if every else None
        tune_live(config, surface, _terms(budget, bounds, confidence), as_json=as_json, every_s=every_s)
        return
    if every:
        _usage("--every goes with --live")
    if report is not None and not report.absolute().parent.is_dir():
        _usage(f"--report: folder {report.absolute().parent} does not exist")
    if world not in WORLDS:
        _usage(f"--world must be one of {sorted(WORLDS)}, got {world!r}")
    if search not in ("grid", "halving"):
        _usage(f"--search must be grid or halving, got {search!r}")
    grid = replace(_grid(kinds, rates, temperatures, gammas, shortlists, discovery), explorers=vw or [])
    quieten()
    found = _study(
        config,
        surface,
        declared,
        log=log,
        grid=grid,
        plan=Plan(WORLDS[world](), decisions, range(1, seeds + 1), "halving" if search == "halving" else "grid"),
        limits=Limits(budget=budget, confidence=confidence),
        n_sample=sample_decisions,
        most_logged=most_logged,
        jobs=jobs,
    )
    if report is not None:
        # Every `hone` command imports this module; plotly would cost each of them a second.
        from simulators.tune.report import write_report

        write_report(report, found, command=command_for(surface, declared, found.verdict.recommended))
        typer.echo(f"saved {report}", err=True)
    if as_json:
        typer.echo(orjson.dumps(found.figures(), option=orjson.OPT_INDENT_2).decode())
    else:
        _print(found)
    if apply and found.verdict.word == "better":
        _apply(config, surface, found)
    raise typer.Exit(_EXIT[found.verdict.word])


def _study(
    config: Config,
    surface: str,
    declared: SurfaceConfig,
    *,
    log: Path | None,
    grid: Grid,
    plan: Plan,
    limits: Limits,
    n_sample: int,
    most_logged: int,
    jobs: int,
) -> Study:
    taken = None
    incumbent = Candidate(declared.exploration, discovery_share_of(declared.rules))
    if log is not None:
        decisions = list(deque(archived(config, log, surface=surface, model=declared.model), maxlen=most_logged))
        if not decisions:
            raise ValueError(f"{log} has no decision of surface {surface!r} all of whose outcomes are known")
        taken = (str(log), decisions, archived_skips(log, decisions))
        last = decisions[-1].decision
        incumbent = Candidate(last.exploration, discovery_share_of(last.rules))
    candidates = expand(grid, incumbent)
    # All alike, so that they differ by what they do alone.
    settings = TRAINED_SETTINGS if any(one.discovery_share for one in candidates) else QUICK_SETTINGS
    plan = replace(plan, settings=settings)
    with worker_pool(jobs) as pool, _steps() as say:
        wanted = Sample(plan.world, incumbent, n_logged=n_sample, settings=settings)
        sample = make_sample(wanted, config.data_path / "tune", progress=say("Simulating a log"))
        return study(
            candidates,
            surface=surface,
            sample=sample,
            plan=plan,
            limits=limits,
            pool=pool,
            say=say,
            log=taken,
            rewards_in=reward_range([declared]),
        )


def tune_live(config: Config, surface: str, terms: Terms, *, as_json: bool, every_s: float | None = None) -> None:
    """Set the rate when the log says so: look once, or every so many seconds until stopped."""

    def take(at_ms: int) -> tuple[RateEvidence, RateChange, Look]:
        author = getpass.getuser()
        call = partial(look, config=config, surface=surface, terms=terms, author=author)
        found, change, confidence = on_config_writer(config, call)
        return found, change, seen(found, change, surface=surface, terms=terms, confidence=confidence, at_ms=at_ms)

    def tell(taken: Look) -> None:
        typer.echo(msgspec.json.encode(taken).decode() if as_json else _told(taken))

    config.data_path.mkdir(parents=True, exist_ok=True)
    with LookJournal(journal_path(config, surface), under=config.data_path) as journal:
        if every_s is not None:
            with StopSignal() as stop:
                watch(
                    lambda at_ms: take(at_ms)[2],
                    journal,
                    surface=surface,
                    terms=terms,
                    every_s=every_s,
                    clock=wall_clock_ms,
                    wait=stop.wait,
                    tell=tell,
                )
            return
        found, change, taken = take(wall_clock_ms())
        journal.append(taken)
    if as_json:
        figures = {"change": asdict(change), "evidence": asdict(found)}
        typer.echo(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode())
    else:
        typer.echo(_told(taken))
    raise typer.Exit(1 if change.word == "cannot tell" else 0)


def _told(taken: Look) -> str:
    if taken.set_rate is not None:
        return f"{taken.surface}: rate {taken.rate:g} -> {taken.set_rate:g}: {taken.reason}"
    stays = "" if taken.rate is None else f"rate {taken.rate:g} stays: "
    return f"{taken.surface}: {taken.word}: {stays}{taken.reason}"


def _apply(config: Config, surface: str, found: Study) -> None:
    verdict = found.verdict

    async def put(writer: ConfigWriter) -> list[str]:
        reason = f"hone tune: {verdict.sentence}"
        entries = await apply_choice(writer, surface, verdict.recommended, author=getpass.getuser(), reason=reason)
        return [f"{entry.key}: {entry.old} -> {entry.new}" for entry in entries]

    for line in on_config_writer(config, put):
        typer.echo(line, err=True)


@contextmanager
def _steps() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Give a function that begins a step and returns what moves its bar."""
    with ExitStack() as bar:

        def say(title: str) -> Callable[[int, int], None]:
            bar.close()
            return bar.enter_context(progress_bar(title))

        yield say


def _print(found: Study) -> None:
    console = Console()
    verdict = found.verdict
    console.print(verdict.sentence, style="bold", highlight=False)
    console.print(f"Recommended for {found.surface}: {verdict.recommended.name}. {verdict.reason}", highlight=False)
    table = Table("candidate", "ESS/n", "slate value", "today", "long run", "bounds", "new hits", "coverage", "skips")
    by_candidate = {one.candidate: one for one in found.evidence}
    for one in found.candidates:
        evidence, value = by_candidate[one], found.log.values[one]
        gain, price = evidence.long_run, evidence.price
        table.add_row(
            f"{one.name} *" if one == verdict.recommended else one.name,
            f"{value.support.ess / value.support.n:.2f}",
            "refused" if value.value.value is None else f"{value.value.value:.4f}",
            "refused" if evidence.refusal or price is None else f"{price.value:+.1%}",
            "" if gain is None else f"{gain.value:+.1%}",
            "" if gain is None else f"{gain.low:+.1%} to {gain.high:+.1%}",
            f"{evidence.discovery:.1%}",
            f"{evidence.coverage:.1%}",
            f"{evidence.skip_rate:.1%}",
        )
    console.print(table)


def _grid(kinds: str, rates: str, temperatures: str, gammas: str, shortlists: str, discovery: str) -> Grid:
    named: dict[str, Kind] = {"epsilon": "epsilon", "softmax": "softmax", "squarecb": "squarecb"}
    wanted = _parts(kinds)
    if not wanted or not set(wanted) <= set(named):
        _usage(f"--kinds must be of {sorted(named)}, got {kinds!r}")
    return Grid(
        kinds=[named[kind] for kind in wanted],
        rates=_numbers("--rates", rates),
        temperatures=[None if part == "auto" else _number("--temperatures", part) for part in _parts(temperatures)],
        gammas=_numbers("--gammas", gammas),
        shortlists=[int(_number("--shortlists", part)) for part in _parts(shortlists)],
        discovery_shares=_numbers("--discovery", discovery),
    )


def _terms(budget: float, bounds: str, confidence: float) -> Terms:
    ends = _numbers("--bounds", bounds)
    if len(ends) != 2:
        _usage(f"--bounds must be two rates such as 0.02,0.2, got {bounds!r}")
    try:
        return Terms(budget=budget, low=ends[0], high=ends[1], confidence=confidence)
    except ValueError as error:
        _usage(str(error))


def _numbers(option: str, text: str) -> list[float]:
    return [_number(option, part) for part in _parts(text)]


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        _usage(f"{option} must be numbers separated by commas, got {text!r}")


def _seconds(option: str, text: str) -> float:
    found = _DURATION.fullmatch(text)
    if found is None or (seconds := float(found[1]) * _UNITS_S[found[2]]) < 1.0:
        _usage(f"{option} must be a time from 1s on such as 90s, 15m or 2h, got {text!r}")
    return seconds


def _parts(text: str) -> Sequence[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _usage(message: str) -> NoReturn:
    typer.echo(f"hone: {message}", err=True)
    raise typer.Exit(2)
