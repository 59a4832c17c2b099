"""Candidates to scored actions: from here on retrieval's candidate is the bandit's action."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from bandit.columns import NO_CODE, Columns
from bandit.dynamic import CategoryColumn, Column, encode_dynamic
from bandit.features import UnfitValue
from bandit.policy import ActionFeatures
from bandit.slate import ActionSet
from bandit.vw_format import Encoded, encode
from retrieval.items import Item
from service.errors import InvalidRequest
from service.feature_records import item_record
from service.item_statistics import STATISTICS_COLUMNS
from service.item_vectors import Int32Array
from service.items_view import ItemsView
from service.retriever import Candidates
from service.rule_columns import RequestColumns
from service.served_model import ServedModel
from service.wire import InlineAction

NamedFeatures = Mapping[str, dict[str, float]]

_MS_PER_DAY = 86_400_000.0


class Ranked(msgspec.Struct, frozen=True):
    """Scored actions in UTF-8 id order.

    Attributes:
        actions: What the slate is drawn from.
        described: Items the caller described itself, by id.
        sources: uint8 [n] positions in `source_names`.
        source_names: Names of the sources.
        features: What was scored, by namespace; a VW explorer chooses by it.
    """

    actions: ActionSet
    described: Mapping[str, InlineAction]
    sources: np.ndarray[Any, np.dtype[np.uint8]]
    source_names: Sequence[str]
    features: Mapping[str, ActionFeatures] = msgspec.field(default_factory=dict)


class ColumnRequest(msgspec.Struct, frozen=True):
    """Which columns rules and dynamic features read, and what they need of the request.

    Attributes:
        names: The columns.
        request: Campaigns and showings.
        now_ms: Time of the decision.
    """

    names: Collection[str]
    request: RequestColumns
    now_ms: int


def rank(
    view: ItemsView, model: ServedModel, named: NamedFeatures, candidates: Candidates, wanted: ColumnRequest
) -> Ranked:
    """Score catalogue candidates in one evaluation, without a loop over them."""
    order = np.argsort(view.catalogue.rank_of(candidates.rows))
    rows = candidates.rows[order]
    sources, affinity = candidates.sources[order], candidates.affinity[order]
    # The affinity is a dynamic feature, so it is always there and always logged.
    columns: Columns = {"affinity": affinity, **view.columns.take(rows, wanted.names)}
    columns |= wanted.request.build(rows, wanted.names)
    built_in: dict[str, Callable[[Int32Array], np.ndarray[Any, Any]]] = {
        "creator": view.catalogue.creator.__getitem__,
        "available_at_unix_ms": view.catalogue.available_at_unix_ms.__getitem__,
        "discovery": view.retriever.under_explored,
        "popularity": view.retriever.popularity,
        "age_days": lambda rows: _age_days(view.catalogue.available_at_unix_ms[rows], wanted.now_ms),
    }
    columns |= {name: build(rows) for name, build in built_in.items() if name in wanted.names}
    columns |= _statistics(view, rows, wanted)
    ids = [view.catalogue.item_ids[row] or "" for row in rows.tolist()]
    features = _features(view, view.features.take(rows), sources, candidates.source_names, columns)
    scores = _score(model, named, features)
    return Ranked(
        actions=ActionSet(ids=ids, scores=scores, columns=columns),
        described={},
        sources=sources,
        source_names=candidates.source_names,
        features=features,
    )


def rank_described(
    view: ItemsView,
    model: ServedModel,
    named: NamedFeatures,
    candidates: Candidates,
    described: Mapping[int, InlineAction],
    wanted: ColumnRequest,
) -> Ranked:
    """Score actions that the caller described, by their place in its list, with catalogue candidates it named.

    Raises:
        InvalidRequest: an attribute is not of the kind its feature declares.
    """
    own = {action.id: _encode_described(view, place, action) for place, action in described.items()}
    known = [item for row in candidates.rows.tolist() if (item := view.catalogue.items[row]) is not None]
    everyone: list[Item | InlineAction] = sorted([*known, *described.values()], key=lambda action: action.id)
    encoded = [own.get(action.id) or view.schema.encode("item", item_record(action)) for action in everyone]
    affinity_of = dict(zip((item.id for item in known), candidates.affinity.tolist(), strict=True))
    creators: dict[str, int] = {}
    codes = [NO_CODE if a.creator is None else creators.setdefault(a.creator, len(creators)) for a in everyone]
    available = [a.available_at_unix_ms or 0 if isinstance(a, Item) else 0 for a in everyone]
    n = len(everyone)
    sources = np.zeros(n, dtype=np.uint8)
    affinity = np.array([affinity_of.get(action.id, np.nan) for action in everyone], dtype=np.float32)
    # A described action has no row: nobody pinned, sponsored, boosted or explored it.
    row_of = {item.id: row for row, item in zip(candidates.rows.tolist(), known, strict=True)}
    rows = np.array([row_of.get(action.id, -1) for action in everyone], dtype=np.int32)
    built_in: Columns = {
        "creator": np.array(codes, dtype=np.int32),
        "available_at_unix_ms": np.array(available, dtype=np.int64),
        "age_days": _age_days(np.array(available, dtype=np.int64), wanted.now_ms),
        "discovery": np.zeros(n, dtype=np.bool_),
        "popularity": np.zeros(n, dtype=np.float32),
    }
    columns: Columns = {"affinity": affinity, **view.columns.encode(everyone, wanted.names)}
    columns |= wanted.request.build(rows, wanted.names)
    columns |= {name: column for name, column in built_in.items() if name in wanted.names}
    columns |= _statistics(view, rows, wanted)
    features = _features(view, ActionFeatures.stack(encoded), sources, candidates.source_names, columns)
    scores = _score(model, named, features)
    return Ranked(
        actions=ActionSet(ids=[action.id for action in everyone], scores=scores, columns=columns),
        described={action.id: action for action in described.values()},
        sources=sources,
        source_names=candidates.source_names,
        features=features,
    )


def _encode_described(view: ItemsView, place: int, action: InlineAction) -> Encoded:
    try:
        return view.schema.encode("item", item_record(action))
    except UnfitValue as error:
        raise InvalidRequest(str(error), path=f"$.candidates[{place}].attributes.{error.source}") from error


def _features(
    view: ItemsView,
    item: ActionFeatures,
    sources: np.ndarray[Any, np.dtype[np.uint8]],
    source_names: Sequence[str],
    columns: Columns,
) -> Mapping[str, ActionFeatures]:
    dynamic: dict[str, Column] = {
        **{name: columns[name] for name in view.schema.sources("dynamic") if name in columns},
        "source": CategoryColumn(codes=sources, names=source_names),
    }
    return {"item": item, "dynamic": encode_dynamic(view.schema, dynamic, len(sources))}


def _score(
    model: ServedModel, named: NamedFeatures, features: Mapping[str, ActionFeatures]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    if not len(features["item"].indices):
        return np.zeros(0, dtype=np.float32)
    shared = {namespace: encode(namespace, features_of) for namespace, features_of in named.items()}
    return model.score(shared, features)


def _age_days(available_at_ms: npt.NDArray[np.int64], now_ms: int) -> npt.NDArray[np.float32]:
    """Return float32 [n], 0 for what becomes available later, NaN where it is unknown."""
    age_days = np.maximum(now_ms - available_at_ms, 0) / _MS_PER_DAY
    return np.where(available_at_ms != 0, age_days, np.nan).astype(np.float32)


def _statistics(view: ItemsView, rows: Int32Array, wanted: ColumnRequest) -> Columns:
    if STATISTICS_COLUMNS.isdisjoint(wanted.names):
        return {}
    columns = view.statistics.columns(rows, wanted.now_ms)
    return {name: column for name, column in columns.items() if name in wanted.names}
