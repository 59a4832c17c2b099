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
from bandit.explorer import Explorer
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
from service.offline import OfflineError, read_items
from service.retrain import fetch_item_history
from service.retrain_scoring import CandidateFeatures
from simulators.counterfactual import TargetPolicy
from simulators.evaluate_sources import Unanswerable
from simulators.logged.archive_log import ArchiveLog
from simulators.logged.dsjson_lines import count_slots
from simulators.logged.dsjson_model import LineModel
from simulators.logged.import_report import ImportReport, LogRefused
from simulators.logged.time_window import ALL_TIME, TimeWindow
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
        items: File of an archive's items; None takes those of the store.
        saved: An artefact's id (archive), or a file with a VW model (DSJSON); empty for none.
        publish_every: Outcomes learned between two publications.
        any_order: Whether time may fall.
        window: Which part of the log, by time.
        position_weights: float64 [any], for the first slots.
    """

    path: Path
    exploration: str = ""
    rules: str = ""
    vw: str = ""
    learn: bool = False
    surface: str = ""
    model: str = ""
    items: Path | None = None
    saved: str = ""
    publish_every: int = PUBLISH_EVERY
    any_order: bool = False
    window: TimeWindow = ALL_TIME
    position_weights: Float64Array

    def settings(self) -> dict[str, Any]:
        """Return what the report says of it."""
        return {
            "log": str(self.path),
            "exploration": self.exploration or "as logged",
            "rules": self.rules or "as logged",
            "VW arguments": self.vw or "none",
            "learns": self.learn,
            "items": "of the store" if self.items is None else str(self.items),
            "saved model": self.saved or "none",
            "from": "" if self.window.start is None else self.window.start.isoformat(),
            "to": "" if self.window.end is None else self.window.end.isoformat(),
        }


def replay_dsjson(request: ReplayRequest, *, advance: Callable[[int], None]) -> ReplayResult:
    """Replay a DSJSON file.

    Raises:
        Unanswerable: options do not go together.
        LogRefused: the file, the arguments or the model cannot be used.
    """
    if request.rules:
        raise Unanswerable("a DSJSON log has no rules")
    if request.items is not None:
        raise Unanswerable("a DSJSON log describes its actions itself: leave the items out")
    arguments = (request.vw or "--cb_adf --cb_type mtr").split()
    try:
        model = Path(request.saved).read_bytes() if request.saved else None
    except OSError as error:
        raise LogRefused(str(error)) from error
    run = DsjsonReplay(
        request.path,
        model=LineModel(arguments, model=model),
        exploration=_exploration(request) or Epsilon(),
        learns=request.learn,
        knows=request.learn or model is not None,
        any_order=request.any_order,
        window=request.window,
        advance=advance,
    )
    report = ImportReport()
    n_slots = count_slots(request.path)
    weights = _padded(request.position_weights, n_slots)
    return replay(
        run.batches(report, n_slots=n_slots, position_weights=weights),
        report,
        position_weights=weights,
        settings=request.settings(),
    )


def replay_archive(request: ReplayRequest, config: Config, *, advance: Callable[[int], None]) -> ReplayResult:
    """Replay an archive; the store is read for items and artefacts when something is scored anew.

    Raises:
        Unanswerable: options do not go together.
        LogRefused: the archive cannot be read, or the artefact cannot be used.
    """
    if not (request.learn or request.saved or request.vw):
        policy = build_policy(request, config, items=None, learner=None)
    elif request.items is not None and not request.saved:
        policy = build_policy(request, config, items=_items_of(request.items), learner=None)
    else:
        with running_store(config) as url:
            items = fetch_item_history(url) if request.items is None else _items_of(request.items)
            policy = build_policy(request, config, items=items, learner=_saved_learner(request, config, url))
    return run_archive(request, config, policy, advance=advance)


def run_archive(
    request: ReplayRequest, config: Config, policy: ReplayedPolicy, *, advance: Callable[[int], None]
) -> ReplayResult:
    """Replay an archive under a policy.

    Raises:
        LogRefused: the archive cannot be read.
    """
    window = request.window
    selection = Selection(surface=request.surface, model=request.model, from_ms=window.from_ms, to_ms=window.to_ms)
    log = ArchiveLog(config=config, folder=request.path, selection=selection, target=policy.target)
    n_slots = log.count_slots()
    weights = _padded(request.position_weights, n_slots)
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


def _items_of(path: Path) -> ItemHistory:
    try:
        return ItemHistory.unchanging(read_items(path))
    except OfflineError as error:
        raise LogRefused(str(error)) from error


def _explorer(request: ReplayRequest, config: Config) -> Explorer:
    if request.model not in config.models:
        raise Unanswerable(f"an explorer needs the bits of a model, one of {', '.join(config.models)}")
    try:
        return Explorer(config.explorer_spec(request.model, arguments=request.vw))
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


def _padded(given: Float64Array, n_slots: int) -> Float64Array:
    """Return float64 [n_slots]: 1 for slots of which nothing is said."""
    weights = np.ones(n_slots)
    weights[: len(given)] = given[:n_slots]
    return weights


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
