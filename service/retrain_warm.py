"""Warm start: a model for a first day from historical interactions, which have no propensities.

What nobody was shown is not known, so items that a user did not choose are drawn as negatives. That makes a model that
ranks better than none and says nothing about a policy's value: its manifest and report are marked `warm`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from bandit.learner import Learner
from bandit.policy import ActionFeatures, WeightTable
from bandit.vw_format import Encoded
from retrieval.items import Item
from service.config import Config
from service.errors import InvalidRequest
from service.feature_records import context_record, item_record, state_showings, user_record
from service.item_history import ItemHistory
from service.items_view import ItemFeatureTable
from service.messages import Interaction, UserProfile
from service.model_registry import Manifest, Score, artefact_id, utc_text
from service.ports import UserState
from service.retrain import Progress
from service.retrain_training import table_of

# Negatives for every interaction when training, and that a held-out one is ranked among.
_N_NEGATIVES = 4
_N_RANKED = 100
_TOP = 10
_HELD_OUT = 0.1
# Ranking every held-out interaction would tell no more.
_MAX_RANKED = 3_000
_SEED = 0
NO_PROPENSITIES = "its interactions have no propensities: how well it ranks them, not what a policy earns"


@dataclass(frozen=True, slots=True)
class History:
    """Interactions in the order of their times.

    Attributes:
        user_ids: n users.
        items: int64 [n], rows of the catalogue.
        is_positive: bool [n].
        at_ms: int64 [n].
    """

    user_ids: Sequence[str]
    items: npt.NDArray[np.int64]
    is_positive: npt.NDArray[np.bool_]
    at_ms: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Moment:
    """One interaction as a request would have seen it: everything is of before its time.

    Attributes:
        shared: Context, user and position features.
        item: Row of the item.
        is_positive: Whether the user liked it.
        unseen: int64 [m], rows drawn from what was available and what this user never chose before.
        popularity: float64 [items], positives of each item so far.
    """

    shared: Mapping[str, Encoded]
    item: int
    is_positive: bool
    unseen: npt.NDArray[np.int64]
    popularity: npt.NDArray[np.float64]


class Catalogue:
    """Items of the store by row, with their hashed features."""

    def __init__(self, config: Config, items: Mapping[str, Item]) -> None:
        self.by_id = items
        self.rows = {item_id: row for row, item_id in enumerate(sorted(items))}
        self.ids = sorted(items)
        self.available_ms = np.array([items[i].available_at_unix_ms or 0 for i in self.ids], dtype=np.int64)
        self._table = ItemFeatureTable(config.features)
        for row, item_id in enumerate(self.ids):
            self._table.put(row, config.features.named("item", item_record(items[item_id])))

    def actions(self, rows: npt.NDArray[np.int64]) -> dict[str, ActionFeatures]:
        """Return the features of rows."""
        return {"item": self._table.take(rows.astype(np.int32))}

    def action(self, row: int) -> dict[str, Encoded]:
        """Return the features of one row."""
        used = self._table.values[row] != 0.0
        return {"item": Encoded((), self._table.indices[row][used], self._table.values[row][used])}


def current_items(history: ItemHistory) -> dict[str, Item]:
    """Return the items that are there now, by id."""
    return {item_id: item for item_id in history.ids if (item := history.newest(item_id)) is not None}


def read_history(path: Path, catalogue: Catalogue, *, positive_from: float) -> History:
    """Read interactions of known items from CSV or Parquet.

    Raises:
        InvalidRequest: a column is missing, or no interaction is of a known item.
    """
    columns = ["user_id", "item_id", "value", "at_unix_ms"]
    text = {"user_id": pa.string(), "item_id": pa.string()}
    try:
        if path.suffix == ".csv":
            table = pc.read_csv(path, convert_options=pc.ConvertOptions(include_columns=columns, column_types=text))
        else:
            table = pq.read_table(path, columns=columns)
    except (OSError, KeyError, ValueError) as error:
        raise InvalidRequest(f"{path} must have the columns {columns}: {error}", path="--interactions") from error
    rows = np.array([catalogue.rows.get(item_id, -1) for item_id in table["item_id"].to_pylist()], dtype=np.int64)
    at_ms = table["at_unix_ms"].to_numpy().astype(np.int64)
    order = np.argsort(at_ms, kind="stable")
    order = order[rows[order] >= 0]
    if not len(order):
        raise InvalidRequest(f"{path} has no interaction of an item of the catalogue", path="--interactions")
    users = table["user_id"].to_pylist()
    positive = table["value"].to_numpy() >= positive_from
    return History([users[n] for n in order.tolist()], rows[order], positive[order], at_ms[order])


def moments(config: Config, history: History, catalogue: Catalogue, *, surface: str, n_unseen: int) -> Iterator[Moment]:
    """Yield every interaction as of its time: the user's features are of the interactions before it, as online."""
    rng = np.random.default_rng(_SEED)
    schema, store = config.features, config.store
    recent: dict[str, list[Interaction]] = {}
    seen: dict[str, set[int]] = {}
    popularity = np.zeros(len(catalogue.ids))
    position = schema.encode("position", {"slot": 0})
    for n, user_id in enumerate(history.user_ids):
        item, at_ms = int(history.items[n]), int(history.at_ms[n])
        is_positive = bool(history.is_positive[n])
        before = recent.setdefault(user_id, [])
        if before and at_ms - before[-1].at_unix_ms > store.user_state_ttl_s * 1000:
            before.clear()
        state = UserState(profile=UserProfile(), recent=tuple(before), consumed=frozenset())
        shown = state_showings(state, schema=schema, now_ms=at_ms)
        user = user_record(state, shown, catalogue.by_id.get, schema=schema, now_ms=at_ms)
        context = context_record({}, surface=surface, seed=None, now_ms=at_ms)
        shared = {
            "context": schema.encode("context", context),
            "user": schema.encode("user", user),
            "position": position,
        }
        of_user = seen.setdefault(user_id, set())
        drawn = rng.integers(len(catalogue.ids), size=2 * n_unseen)
        unseen = [
            row for row in drawn.tolist() if row not in of_user and row != item and catalogue.available_ms[row] <= at_ms
        ]
        yield Moment(shared, item, is_positive, np.array(unseen[:n_unseen], dtype=np.int64), popularity)
        of_user.add(item)
        popularity[item] += is_positive
        happened = Interaction(
            item_id=catalogue.ids[item],
            event_type="like" if is_positive else "dislike",
            reward=1.0 if is_positive else -1.0,
            at_unix_ms=at_ms,
            client_id=str(n),
        )
        before.append(happened)
        del before[: -store.recent_limit]


def train_warm(
    config: Config,
    model: str,
    history: History,
    catalogue: Catalogue,
    *,
    surface: str,
    progress: Progress | None = None,
) -> tuple[Learner, int, dict[str, Score]]:
    """Train on all but the latest interactions and rank those: the model, its rows, and how well it ranks.

    Rows have propensity 1: positives are worth 1, what was disliked or drawn 0.
    """
    learner = Learner(config.model_spec(model))
    n, n_rows = len(history.user_ids), 0
    n_trained = int(n * (1.0 - _HELD_OUT))
    held_out: list[Moment] = []
    step = max(1, (n - n_trained) // _MAX_RANKED)
    for number, moment in enumerate(moments(config, history, catalogue, surface=surface, n_unseen=_N_RANKED)):
        if number < n_trained:
            for row, reward in (
                (moment.item, float(moment.is_positive)),
                *((r, 0.0) for r in moment.unseen[:_N_NEGATIVES].tolist()),
            ):
                learner.learn(moment.shared, catalogue.action(row), reward=reward, propensity=1.0)
                n_rows += 1
        elif number % step == 0 and moment.is_positive and len(moment.unseen) == _N_RANKED:
            held_out.append(
                Moment(
                    moment.shared, moment.item, True, moment.unseen, moment.popularity[[moment.item, *moment.unseen]]
                )
            )
        if progress is not None and number % 1_000 == 0:
            progress(number, n)
    return learner, n_rows, ranking_figures(held_out, catalogue, table_of(learner))


def ranking_figures(held_out: Sequence[Moment], catalogue: Catalogue, table: WeightTable) -> dict[str, Score]:
    """Return HR@10 and NDCG@10 of held-out positives among drawn negatives, of the model, popularity and no model.

    Ties count with their mean over all orders, so that a model that has learned nothing gets what chance gets.
    """
    figures = {}
    for name in ("warm", "popular", "untrained"):
        hits, gains = [], []
        for moment in held_out:
            scores: npt.NDArray[Any]
            if name == "warm":
                rows = np.array([moment.item, *moment.unseen])
                scores = table.score(moment.shared, catalogue.actions(rows))
            else:
                scores = moment.popularity if name == "popular" else np.zeros(1 + len(moment.unseen))
            first, n_tied = int((scores[1:] > scores[0]).sum()), int((scores[1:] == scores[0]).sum())
            places = np.arange(first, first + n_tied + 1)
            hits.append(float((places < _TOP).mean()))
            gains.append(float(np.where(places < _TOP, 1.0 / np.log2(places + 2.0), 0.0).mean()))
        for metric, values in (("hr10", hits), ("ndcg10", gains)):
            mean = float(np.mean(values)) if values else 0.0
            error = float(np.std(values) / np.sqrt(len(values))) if values else 0.0
            low, high = mean - 1.96 * error, mean + 1.96 * error
            figures[f"{metric}_{name}"] = Score(value=mean, low=low, high=high, refusal=NO_PROPENSITIES)
    figures["n_ranked"] = Score(value=float(len(held_out)))
    return figures


def warm_manifest(
    config: Config,
    model: str,
    learner: Learner,
    *,
    history: History,
    n_rows: int,
    scores: dict[str, Score],
    now_ms: int,
) -> tuple[Manifest, bytes]:
    """Return the manifest of a warm model and its workspace."""
    workspace = learner.serialize()
    spec = config.model_spec(model)
    manifest = Manifest(
        artefact=artefact_id(workspace, at_ms=now_ms),
        model=model,
        kind="warm",
        parent="",
        arguments=spec.arguments(),
        bits=spec.bits,
        schema_version=spec.schema_version,
        created_at=utc_text(now_ms),
        workspace_sha256=hashlib.sha256(workspace).hexdigest(),
        warm=True,
        weighting="none",
        passes=1,
        from_ms=int(history.at_ms[0]),
        to_ms=int(history.at_ms[-1]) + 1,
        n_rows=n_rows,
        scores=scores,
    )
    return manifest, workspace
