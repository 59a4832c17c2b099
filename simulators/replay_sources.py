"""What `hone replay` replays: from options to a policy with its models, and to the pass over the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bandit.exploration import Epsilon, Exploration, VwExplorer
from bandit.explorer import Explorer, ExplorerSpec, parse_explorer_arguments
from bandit.learner import Learner
from bandit.policy import WeightTable
from bandit.rules import Rule
from bandit.support import Float64Array
from service.adapters.embedded_store import running_store
from service.adapters.redis_store import RedisModelStore, connect
from service.config import Config
from service.errors import NotFound
from service.export import Selection
from service.item_history import ItemHistory
from service.model_registry import ArtefactError, ModelRegistry, load_learner
from service.retrain import fetch_item_history
from service.retrain_scoring import CandidateFeatures
from simulators.counterfactual import TargetPolicy
from simulators.evaluate_sources import Unanswerable
from simulators.logged.archive_log import ArchiveLog
from simulators.logged.import_report import ImportReport, LogRefused
from simulators.replay import ReplayResult, replay
from simulators.replay_archive import PUBLISH_EVERY, ArchiveReplay, ReplayedPolicy
from simulators.replay_dsjson import DsjsonReplay

_TIMEOUT_S = 30.0
# Under which the explorer of VW's arguments stands in the exploration.
_REPLAYED = "replayed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """What a command was told.

    Attributes:
        path: Of the file, or of the archive's folder.
        exploration: JSON of a policy as in `hone.toml`; empty keeps the logged one (archive), or takes the default.
        rules: JSON list of rules as in `hone.toml`; empty keeps the logged ones.
        vw: VW's arguments: of an explorer (archive), of any model of single actions (DSJSON).
        learn: Whether outcomes are learned.
        surface: Of an archive's decisions; empty for all.
        model: The archive's model; needed to score anew.
        saved: An artefact's id (archive), or a file with a VW model (DSJSON); empty for none.
        publish_every: Outcomes learned between two publications.
        any_order: Whether time may fall.
        position_weights: float64 [any], for the first slots.
    """

    path: Path
    exploration: str = ""
    rules: str = ""
    vw: str = ""
    learn: bool = False
    surface: str = ""
    model: str = ""
    saved: str = ""
    publish_every: int = PUBLISH_EVERY
    any_order: bool = False
    position_weights: Float64Array

    def settings(self) -> dict[str, Any]:
        """Return what the report says of it."""
        return {
            "log": str(self.path),
            "exploration": self.exploration or "as logged",
            "rules": self.rules or "as logged",
            "VW arguments": self.vw or "none",
            "learns": self.learn,
            "saved model": self.saved or "none",
        }


def replay_dsjson(request: ReplayRequest, *, advance: Callable[[int], None]) -> ReplayResult:
    """Replay a DSJSON file.

    Raises:
        Unanswerable: options do not go together.
        LogRefused: the file, the arguments or the model cannot be used.
    """
    if request.rules:
        raise Unanswerable("a DSJSON log has no rules")
    arguments = (request.vw or "--cb_adf --cb_type mtr").split()
    try:
        model = Path(request.saved).read_bytes() if request.saved else None
    except OSError as error:
        raise LogRefused(str(error)) from error
    run = DsjsonReplay(
        request.path,
        arguments=[*arguments, "--quiet"],
        model=model,
        exploration=_exploration(request) or Epsilon(),
        learns=request.learn,
        any_order=request.any_order,
        advance=advance,
    )
    report = ImportReport()
    weights = request.position_weights if len(request.position_weights) else np.ones(1)
    return replay(run.batches(report), report, position_weights=weights[:1], settings=request.settings())


def replay_archive(request: ReplayRequest, config: Config, *, advance: Callable[[int], None]) -> ReplayResult:
    """Replay an archive; the store is read for items and artefacts when something is scored anew.

    Raises:
        Unanswerable: options do not go together.
        LogRefused: the archive cannot be read, or the artefact cannot be used.
    """
    if request.learn or request.saved or request.vw:
        with running_store(config) as url:
            policy = build_policy(
                request, config, items=fetch_item_history(url), learner=_saved_learner(request, config, url)
            )
    else:
        policy = build_policy(request, config, items=None, learner=None)
    return run_archive(request, config, policy, advance=advance)


def run_archive(
    request: ReplayRequest, config: Config, policy: ReplayedPolicy, *, advance: Callable[[int], None]
) -> ReplayResult:
    """Replay an archive under a policy.

    Raises:
        LogRefused: the archive cannot be read.
    """
    selection = Selection(surface=request.surface, model=request.model)
    log = ArchiveLog(config=config, folder=request.path, selection=selection, target=policy.target)
    n_slots = log.count_slots()
    weights = np.ones(n_slots)
    given = request.position_weights[:n_slots]
    weights[: len(given)] = given
    report = ImportReport()
    run = ArchiveReplay(log, policy, report, advance=advance)
    return replay(
        run.batches(n_slots=n_slots, position_weights=weights),
        report,
        position_weights=weights,
        settings=request.settings(),
        unsupported=lambda: run.log.unsupported,
    )


def build_policy(
    request: ReplayRequest, config: Config, *, items: ItemHistory | None, learner: Learner | None
) -> ReplayedPolicy:
    """Return the policy that a request describes.

    Args:
        request: what was asked.
        config: has the features, and the model's shape.
        items: every version of every item, None when nothing is scored anew.
        learner: what a saved model goes on from, None for an empty one.

    Raises:
        Unanswerable: options do not go together.
    """
    exploration = _exploration(request)
    explorer = None
    if request.vw:
        if request.exploration:
            raise Unanswerable("VW's arguments explore by themselves: leave the exploration out")
        exploration = VwExplorer(model=_REPLAYED)
        explorer = _explorer(request, config)
    target = TargetPolicy(exploration=exploration, rules=_rules(request))
    if items is None:
        return ReplayedPolicy(target=target)
    if request.model not in config.models or config.models[request.model].arguments:
        ranking = ", ".join(config.ranking_models)
        raise Unanswerable(f"scoring anew needs the model that the log is of, one of {ranking}, got {request.model!r}")
    if learner is None and request.learn:
        learner = Learner(config.model_spec(request.model))
    return ReplayedPolicy(
        target=target,
        features=CandidateFeatures(config.features, items),
        learner=learner,
        table=None if learner is None else WeightTable(config.model_spec(request.model)),
        explorer=explorer,
        learns=request.learn,
        publish_every=request.publish_every,
    )


def _explorer(request: ReplayRequest, config: Config) -> Explorer:
    model = config.models.get(request.model)
    if model is None:
        raise Unanswerable(f"an explorer needs the bits of a model, one of {', '.join(config.models)}")
    try:
        return Explorer(
            ExplorerSpec(
                arguments=parse_explorer_arguments(request.vw),
                bits=model.bits,
                learning_rate=model.learning_rate,
                interactions=tuple(config.features.interactions),
                schema_version=config.features.version,
                baseline=config.features.baseline,
                power_t=model.power_t,
            )
        )
    except ValueError as error:
        raise Unanswerable(str(error)) from error


def _saved_learner(request: ReplayRequest, config: Config, url: str) -> Learner | None:
    if not request.saved:
        return None

    async def fetch() -> Learner:
        client = connect(url, timeout_s=_TIMEOUT_S)
        try:
            opened = await ModelRegistry(config, RedisModelStore(client)).open(request.model, request.saved)
        finally:
            await client.aclose()
        return load_learner(opened, config.model_spec(request.model))

    try:
        return asyncio.run(fetch())
    except (NotFound, ArtefactError, KeyError) as error:
        raise LogRefused(str(error)) from error


def _exploration(request: ReplayRequest) -> Exploration | None:
    try:
        return None if not request.exploration else msgspec.json.decode(request.exploration, type=Exploration)
    except (msgspec.DecodeError, ValueError) as error:
        raise Unanswerable(f"exploration must be JSON as in the configuration: {error}") from error


def _rules(request: ReplayRequest) -> list[Rule] | None:
    try:
        return None if not request.rules else msgspec.json.decode(request.rules, type=list[Rule])
    except (msgspec.DecodeError, ValueError) as error:
        raise Unanswerable(f"rules must be JSON as in the configuration: {error}") from error
