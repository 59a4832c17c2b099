"""The offline feature store: point-in-time-correct reads of the archive's Parquet, with DuckDB.

Nothing here shares code with the way the online values are kept up to date, only their definitions: statistics are sums
over all facts up to a journal position, not a running count; interactions and impressions are looked up by what was
logged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bandit.item_counts import MAX_HALF_LIVES, NEGLIGIBLE
from bandit.joining import Position
from service.adapters.archive_files import EMPTY, files_of, reading
from service.config import Config
from service.messages import Event, Impression, ItemStats

# An entry's place in the merged journal: (ms, partition, sequence) as one number.
_ORD = "({ms}::HUGEINT * 1000000000000000 + {partition}::HUGEINT * 1000000000000 + {sequence}::HUGEINT)"
_ROW_ORD = _ORD.format(
    ms="split_part(journal_id, '-', 1)",
    partition=r"regexp_extract(filename, 'p(\d+)-[^/]*$', 1)",
    sequence="split_part(journal_id, '-', 2)",
)
_ASKED_AT = f"""
CREATE OR REPLACE TEMP VIEW asked_at AS
SELECT row, item_id, {_ORD.format(ms="ms", partition='"partition"', sequence="sequence")} AS ord FROM asked
"""  # noqa: S608 - constants
# Forward decay keeps exponents inside float64 when times differ by fewer half-lives than this.
_CHUNK_HALF_LIVES = 400.0

# One row for every slot that was shown, and for every distinct event about one that came in time.
_FACTS = """
CREATE OR REPLACE TEMP TABLE facts AS
WITH shown AS (
    SELECT d.*, s.window_ms FROM decisions d JOIN surfaces s USING (surface)
), joined AS (
    SELECT e.ord AS event_ord, e.event_type, e.client_id, e.value,
        d.ord AS decision_ord, d.event_id, d.surface, d.at_ms, d.item_ids,
        CASE
            WHEN e.slot IS NOT NULL THEN
                CASE WHEN e.slot BETWEEN 0 AND len(d.item_ids) - 1
                    AND (e.item_id IS NULL OR d.item_ids[e.slot + 1] = e.item_id) THEN e.slot END
            WHEN e.item_id IS NOT NULL THEN nullif(list_position(d.item_ids, e.item_id), 0) - 1
            WHEN len(d.item_ids) = 1 THEN 0
        END AS slot_index
    FROM events e JOIN shown d USING (event_id)
    WHERE abs(e.ms - d.ms) < d.window_ms
), worth AS (
    SELECT j.*, greatest(event_ord, decision_ord) AS ord,
        CASE WHEN event_type = 'reward' THEN value
            ELSE least(greatest(w.base + w.per_unit * value, w.low), w.high) END AS reward
    FROM joined j LEFT JOIN worths w USING (surface, event_type)
    WHERE slot_index IS NOT NULL AND (event_type = 'reward' OR w.base IS NOT NULL)
), gains AS (
    SELECT * FROM worth
    QUALIFY row_number() OVER (PARTITION BY event_id, slot_index, event_type, client_id ORDER BY event_ord) = 1
), clicked AS (
    SELECT *, row_number() OVER (
        PARTITION BY event_id, slot_index, reward > 0 ORDER BY ord, event_ord) = 1 AND reward > 0 AS is_click
    FROM gains
)
SELECT unnest(item_ids) AS item_id, ord, at_ms, 1.0 AS impressions, 0.0 AS clicks, 0.0 AS rewards FROM shown
UNION ALL
SELECT item_ids[slot_index + 1], ord, at_ms, 0.0, is_click::DOUBLE, reward FROM clicked
"""

# Sums up to each fact, weighed forward from a landmark, so that one number serves every later position and time.
_SUMS = """
CREATE OR REPLACE TEMP TABLE sums AS
WITH weighed AS (
    SELECT item_id, ord,
        sum(impressions * pow(2, greatest((at_ms - $landmark) / $half_life, -1000))) AS impressions,
        sum(clicks * pow(2, greatest((at_ms - $landmark) / $half_life, -1000))) AS clicks,
        sum(rewards * pow(2, greatest((at_ms - $landmark) / $half_life, -1000))) AS rewards
    FROM facts WHERE (at_ms - $landmark) / $half_life < 1000 GROUP BY item_id, ord
)
SELECT item_id, ord, sum(impressions) OVER w AS impressions, sum(clicks) OVER w AS clicks,
    sum(rewards) OVER w AS rewards
FROM weighed WINDOW w AS (PARTITION BY item_id ORDER BY ord)
"""
_STATISTICS = """
SELECT asked.row, sums.impressions, sums.clicks, sums.rewards
FROM asked_at asked ASOF JOIN sums ON asked.item_id = sums.item_id AND asked.ord >= sums.ord
"""
_INTERACTIONS = """
SELECT asked.row, e.event_type, e.event_id, coalesce(e.item_id, d.item_ids[e.slot + 1]) AS item_id, e.value,
    e.client_id, e.accepted_at_unix_ms
FROM asked JOIN events e ON e.client_id = asked.client_id AND e.accepted_at_unix_ms = asked.at_ms
LEFT JOIN decisions d ON d.event_id = e.event_id
ORDER BY asked.row, e.ord
"""
_SHOWN = (
    "SELECT asked.row, d.event_id, d.item_ids, d.at_ms FROM asked JOIN decisions d USING (event_id) ORDER BY asked.row"
)

_EVENTS_OF = """
SELECT e.event_type, e.event_id, coalesce(e.item_id, d.item_ids[e.slot + 1]) AS item_id, e.value, e.client_id,
    e.accepted_at_unix_ms
FROM events e LEFT JOIN decisions d USING (event_id)
WHERE $user_key IN (e.user_key, d.user_key)
QUALIFY row_number() OVER (PARTITION BY e.event_type, e.client_id, item_id ORDER BY e.ord) = 1
ORDER BY e.accepted_at_unix_ms DESC, e.ord DESC LIMIT $limit
"""
_SHOWN_TO = """
SELECT item_id, event_id, at_ms
FROM (SELECT unnest(item_ids) AS item_id, event_id, at_ms FROM decisions WHERE user_key = $user_key)
ORDER BY at_ms DESC, item_id DESC, event_id DESC LIMIT $limit
"""

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Decayed counts of asked items, float64 [n] each."""

    impressions: Float64Array
    clicks: Float64Array
    rewards: Float64Array


class OfflineStore:
    """Reads one archive.

    Args:
        config: what surfaces count as reward, and how fast counts decay.
        folder: of the archive.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._half_life_ms = config.features.half_life_s * 1000
        self._database = duckdb.connect()
        # Reading is deterministic, up to the order of sums.
        self._database.execute("SET TimeZone = 'UTC'")
        surfaces = [(name, int(s.reward.window_s * 1000)) for name, s in config.surfaces.items()]
        self._database.execute("CREATE TABLE surfaces (surface VARCHAR, window_ms BIGINT)")
        self._database.execute(
            "CREATE TABLE worths (surface VARCHAR, event_type VARCHAR, base DOUBLE, per_unit DOUBLE, low DOUBLE, "
            "high DOUBLE)"
        )
        if surfaces:
            self._database.executemany("INSERT INTO surfaces VALUES (?, ?)", surfaces)
        worths = [
            (name, event_type, worth.base, worth.per_unit, worth.low, worth.high)
            for name, surface in config.surfaces.items()
            for event_type, worth in surface.reward.events.items()
        ]
        if worths:
            self._database.executemany("INSERT INTO worths VALUES (?, ?, ?, ?, ?, ?)", worths)
        with reading(folder):
            self._load(folder)
        self._landmark_ms: float | None = None

    def close(self) -> None:
        """Free the memory."""
        self._database.close()

    def statistics(
        self, item_ids: Sequence[str], as_of: Sequence[Position | None], now_ms: Sequence[int]
    ) -> Statistics:
        """Return the counts of items, each as of a journal position and decayed to a time."""
        n = len(item_ids)
        found = np.zeros((n, 3))
        times = np.asarray(now_ms, dtype=np.float64)
        places = np.array([position or (-1, 0, 0) for position in as_of], dtype=np.int64).reshape(n, 3)
        span_ms = _CHUNK_HALF_LIVES * self._half_life_ms
        chunks = np.floor(times / span_ms)
        ids = np.asarray(item_ids, dtype=object)
        for chunk in np.unique(chunks):
            landmark_ms = float(chunk * span_ms)
            rows = np.flatnonzero(chunks == chunk)
            self._sum_from(landmark_ms)
            asked = {
                "row": rows,
                "item_id": pa.array(ids[rows], type=pa.string()),
                "ms": places[rows, 0],
                "partition": places[rows, 1],
                "sequence": places[rows, 2],
            }
            self._database.register("asked", pa.table(asked))
            self._database.execute(_ASKED_AT)
            answer = self._database.execute(_STATISTICS).fetchnumpy()
            at = answer["row"]
            half_lives = (times[at] - landmark_ms) / self._half_life_ms
            weight = np.exp2(-np.clip(half_lives, -MAX_HALF_LIVES, MAX_HALF_LIVES))
            for column, name in enumerate(("impressions", "clicks", "rewards")):
                found[at, column] = answer[name] * weight
        found[found[:, 0] < NEGLIGIBLE] = 0.0
        return Statistics(*found.T)

    def interactions(self, client_ids: Sequence[str], at_ms: Sequence[int]) -> list[list[Event]]:
        """Return the archived events of each (client id, accept time), with the item they are about."""
        found: list[list[Event]] = [[] for _ in client_ids]
        asked = {"client_id": pa.array(client_ids, type=pa.string()), "at_ms": pa.array(at_ms, type=pa.int64())}
        for row, *read in self._rows(_INTERACTIONS, asked):
            found[row].append(_event(*read))
        return found

    def impressions(self, event_ids: Sequence[str]) -> Mapping[str, list[Impression]]:
        """Return the impressions of decisions, by event id."""
        asked = {"event_id": pa.array(event_ids, type=pa.string())}
        return {
            event_id: [Impression(item_id=i, event_id=event_id, shown_at_unix_ms=at_ms) for i in item_ids]
            for _, event_id, item_ids, at_ms in self._rows(_SHOWN, asked)
        }

    def events_of(self, user_key: str, *, limit: int) -> list[Event]:
        """Return the newest events of a user, oldest first, with the item they are about."""
        rows = self._database.execute(_EVENTS_OF, {"user_key": user_key, "limit": limit}).fetchall()
        return [_event(*row) for row in reversed(rows)]

    def impressions_of(self, user_key: str, *, limit: int) -> list[Impression]:
        """Return the newest impressions of a user, oldest first."""
        rows = self._database.execute(_SHOWN_TO, {"user_key": user_key, "limit": limit}).fetchall()
        return [Impression(item_id=i, event_id=e, shown_at_unix_ms=at_ms) for i, e, at_ms in reversed(rows)]

    def whole_statistics(self, as_of: Position, *, at_ms: int) -> ItemStats:
        """Return the counts of every item as of a position, to materialise online."""
        item_ids = [
            row[0] for row in self._database.execute("SELECT DISTINCT item_id FROM facts ORDER BY 1").fetchall()
        ]
        counts = self.statistics(item_ids, [as_of] * len(item_ids), [at_ms] * len(item_ids))
        kept = np.flatnonzero(counts.impressions)
        return ItemStats(
            at_unix_ms=at_ms,
            item_ids=[item_ids[index] for index in kept.tolist()],
            n_impressions=counts.impressions[kept].astype("<f8").tobytes(),
            n_rewards=counts.rewards[kept].astype("<f8").tobytes(),
            n_clicks=counts.clicks[kept].astype("<f8").tobytes(),
            counted_at=np.full(len(kept), at_ms, dtype="<i8").tobytes(),
            as_of="-".join(map(str, as_of)),
            is_whole=True,
        )

    def _load(self, folder: Path) -> None:
        decisions = self._source(
            folder, "decisions", "journal_id, event_id, decided_at_unix_ms, surface, user_key, item_ids"
        )
        self._database.execute(
            f"""CREATE TABLE decisions AS
            SELECT {_ROW_ORD} AS ord, split_part(journal_id, '-', 1)::BIGINT AS ms, event_id, surface,
                user_key, item_ids, decided_at_unix_ms AS at_ms
            FROM {decisions} QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY ord) = 1"""  # noqa: S608 - a path, and constants
        )
        names = "journal_id, event_type, event_id, client_id, user_key, item_id, slot, value, accepted_at_unix_ms"
        self._database.execute(
            f"""CREATE TABLE events AS
            SELECT {_ROW_ORD} AS ord, split_part(journal_id, '-', 1)::BIGINT AS ms, * EXCLUDE (journal_id, filename)
            FROM {self._source(folder, "events", names)}"""  # noqa: S608 - a path, and constants
        )
        self._database.execute(_FACTS)

    def _source(self, folder: Path, kind: str, names: str) -> str:
        """Return what to select from: the files of a kind, or nothing of the same shape."""
        paths = [str(file.path).replace("'", "''") for file in files_of(folder, kind)]
        if paths:
            listed = ", ".join(f"'{path}'" for path in paths)
            options = "filename=true, hive_partitioning=false, union_by_name=true"
            return f"(SELECT {names}, filename FROM read_parquet([{listed}], {options}))"  # noqa: S608 - paths, and constants
        self._database.register(f"no_{kind}", EMPTY[kind])
        return f"(SELECT {names}, '' AS filename FROM no_{kind})"  # noqa: S608 - a path, and constants

    def _sum_from(self, landmark_ms: float) -> None:
        if self._landmark_ms != landmark_ms:
            self._database.execute(_SUMS, {"landmark": landmark_ms, "half_life": self._half_life_ms})
            self._landmark_ms = landmark_ms

    def _rows(self, query: str, asked: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        n = len(next(iter(asked.values())))
        self._database.register("asked", pa.table({"row": pa.array(range(n), type=pa.int64()), **asked}))
        return self._database.execute(query).fetchall()


def _event(
    event_type: str, event_id: str | None, item_id: str | None, value: float, client_id: str, accepted_at_ms: int
) -> Event:
    return Event(
        accepted_at_unix_ms=accepted_at_ms,
        client_id=client_id,
        event_type=event_type,
        event_id=event_id,
        user_id=None,
        user_key="",
        item_id=item_id,
        slot=None,
        value=value,
        client_unix_ms=None,
    )
