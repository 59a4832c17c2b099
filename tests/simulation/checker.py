"""What must hold of any history, written from the design and not from the code: it imports nothing of the service.

The journal is read again by a joiner of its own, which says what each entry must have become. Everything else (the
archive, the checkpoint, the published weights, the answers) is compared with that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from tests.simulation.history import History

Position = tuple[int, int, int]
Entry = dict[str, Any]


@dataclass(frozen=True)
class Surface:
    """How a surface is declared.

    Attributes:
        worth: base, per unit, low, high by event type.
    """

    worth: Mapping[str, tuple[float, float, float, float]]
    learns_at_close: bool
    negative_ms: int
    window_ms: int
    default: float = 0.0


@dataclass(frozen=True)
class Rules:
    """What the checker is told of the configuration.

    Attributes:
        claim_ms: How long an event id answers with its first response, at the least.
        train: Learns (decision, slot, reward) in order; returns weights [n, 3].
    """

    surfaces: Mapping[str, Surface]
    claim_ms: int
    train: Callable[[list[tuple[Entry, int, float]]], np.ndarray]


@dataclass
class _Open:
    position: Position
    entry: Entry
    surface: Surface
    is_closed: bool = False
    learned: set[int] = field(default_factory=set)
    rewards: dict[int, list[float]] = field(default_factory=dict)
    seen: set[tuple[int, str, str]] = field(default_factory=set)


@dataclass
class Expected:
    """What the journal says that must have happened.

    Attributes:
        outcomes: By the entry that made them certain, in order: position and the columns of the archive.
        learned: The same that are to be learned: decision, slot, reward.
        reasons: Decisions, events and slots by what became of them.
    """

    outcomes: list[tuple[Position, Entry]] = field(default_factory=list)
    learned: list[tuple[Entry, int, float]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)


class _Reading:
    def __init__(self, surfaces: Mapping[str, Surface]) -> None:
        self._surfaces = surfaces
        self._patience_ms = max(surface.window_ms for surface in surfaces.values())
        self._open: list[_Open] = []
        self._waiting: list[tuple[Position, Entry]] = []
        self.expected = Expected()

    def read(self, position: Position, entry: Entry) -> None:
        self._pass_time(position)
        if entry["type"] == "decision":
            self._decide(position, entry)
        elif entry["type"] == "event":
            self._happen(position, entry)

    def _pass_time(self, now: Position) -> None:
        due: list[tuple[int, Position, str, Any]] = []
        for decision in self._open:
            ms, surface = decision.position[0], decision.surface
            if not decision.is_closed:
                due.append((ms + surface.negative_ms, decision.position, "close", decision))
            due.append((ms + max(surface.window_ms, surface.negative_ms + 1), decision.position, "forget", decision))
        due += [(at[0] + self._patience_ms, at, "give up", (at, event)) for at, event in self._waiting]
        for due_ms, _, what, of in sorted((d for d in due if d[0] <= now[0]), key=lambda d: d[:3]):
            if what == "close":
                self._close(of, now, due_ms)
            elif what == "forget":
                self._open.remove(of)
            else:
                self._waiting.remove(of)
                self.expected.reasons["event_unknown_decision"] += 1

    def _close(self, decision: _Open, now: Position, due_ms: int) -> None:
        decision.is_closed = True
        for slot in range(len(decision.entry["slots"])):
            if slot not in decision.learned:
                rewards = decision.rewards.get(slot)
                kind = "reward" if rewards else "default"
                reward = math.fsum(rewards) if rewards else decision.surface.default
                self.expected.reasons[f"slot_{kind}"] += 1
                decision.learned.add(slot)
                self._outcome(decision, now, slot, reward, kind, due_ms)

    def _decide(self, position: Position, entry: Entry) -> None:
        if any(decision.entry["event_id"] == entry["event_id"] for decision in self._open):
            self.expected.reasons["decision_duplicate"] += 1
            return
        decision = _Open(position, entry, self._surfaces[entry["surface"]])
        self._open.append(decision)
        self.expected.reasons["decision"] += 1
        for waiting in [w for w in self._waiting if w[1]["event_id"] == entry["event_id"]]:
            self._waiting.remove(waiting)
            self._join(decision, waiting[1], position)

    def _happen(self, position: Position, event: Entry) -> None:
        if event["event_id"] is not None:
            decisions = [d for d in self._open if d.entry["event_id"] == event["event_id"]]
            if not decisions:
                self._waiting.append((position, event))
                return
        else:
            # The last of this user's slates with the item before it happened.
            decisions = [
                d
                for d in self._open
                if d.entry["user_key"] == event["user_key"] != ""
                and event["item_id"] in [slot["item_id"] for slot in d.entry["slots"]]
                and d.entry["decided_at_unix_ms"] <= event["accepted_at_unix_ms"]
            ]
            decisions.sort(key=lambda d: (d.entry["decided_at_unix_ms"], d.position))
            if not decisions:
                self.expected.reasons["event_unattributed"] += 1
                return
        self._join(decisions[-1], event, position)

    def _join(self, decision: _Open, event: Entry, now: Position) -> None:
        reasons = self.expected.reasons
        worth = decision.surface.worth.get(event["event_type"])
        items = [slot["item_id"] for slot in decision.entry["slots"]]
        slot = event["slot"]
        if slot is None and event["item_id"] in items:
            slot = items.index(event["item_id"])
        if worth is None:
            reasons["event_not_a_reward"] += 1
        elif slot is None or slot >= len(items) or event["item_id"] not in (None, items[slot]):
            reasons["event_not_in_slate"] += 1
        elif (key := (slot, event["event_type"], event["client_id"])) in decision.seen:
            reasons["event_duplicate"] += 1
        else:
            decision.seen.add(key)
            base, per_unit, low, high = worth
            reward = min(max(base + per_unit * event["value"], low), high)
            if slot in decision.learned:
                reasons["reward_late"] += 1
                self._outcome(decision, now, slot, reward, "late", now[0])
                return
            reasons["reward_joined"] += 1
            decision.rewards.setdefault(slot, []).append(reward)
            if not decision.surface.learns_at_close:
                reasons["slot_reward"] += 1
                decision.learned.add(slot)
                self._outcome(decision, now, slot, reward, "reward", now[0])

    def _outcome(self, decision: _Open, now: Position, slot: int, reward: float, kind: str, at_ms: int) -> None:
        entry = decision.entry
        row = {
            "event_id": entry["event_id"],
            "slot": slot,
            "item_id": entry["slots"][slot]["item_id"],
            "reward": reward,
            "kind": kind,
            "at_unix_ms": at_ms,
            "delay_ms": at_ms - decision.position[0],
            "propensity": entry["slots"][slot]["propensity"],
        }
        self.expected.outcomes.append((now, row))
        if kind != "late":
            self.expected.learned.append((entry, slot, reward))


def expect(journal: Mapping[Position, Entry], last: Mapping[int, str], rules: Rules) -> Expected:
    """Return what the journal up to a position of each partition must have become."""
    ends = {partition: _order(entry_id) for partition, entry_id in last.items()}
    reading = _Reading(rules.surfaces)
    for position, entry in sorted(journal.items()):
        if (position[0], position[2]) <= ends.get(position[1], (0, 0)):
            reading.read(position, entry)
    return reading.expected


def violations(history: History, rules: Rules) -> list[str]:
    """Return what does not hold, in words; nothing for a history as it should be."""
    journal = dict(_journal(history))
    checkpoint = history.checkpoint
    if not checkpoint:
        return [*history.unexpected, "there is no checkpoint in the end"]
    learned_to = {int(p): entry_id for p, entry_id in checkpoint["positions"].items()}
    expected = expect(journal, learned_to, rules)
    found = [f"a process ended by itself: {error}" for error in history.unexpected]
    for check in (_decisions, _events):
        found += check(history, journal, rules)
    found += _read_to_the_end(journal, learned_to, "learned")
    found += _learned(history, expected, rules)
    found += _published(history)
    found += _archived(history, journal, rules)
    found += _fences(history)
    found += _trims(history)
    return found


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, sequence = entry_id.partition("-")
    return int(ms), int(sequence)


def _journal(history: History) -> Iterator[tuple[Position, Entry]]:
    for stream, entries in history.streams.items():
        if stream.endswith(":journal"):
            partition = int(stream.split("{")[1].split("}")[0])
            for entry_id, payload in entries:
                ms, sequence = _order(entry_id)
                yield (ms, partition, sequence), msgspec.msgpack.decode(payload)


def _decisions(history: History, journal: Mapping[Position, Entry], rules: Rules) -> Iterator[str]:
    stored: dict[str, list[tuple[Position, list[str], int]]] = {}
    for position, entry in sorted(journal.items()):
        if entry["type"] == "decision":
            items = [slot["item_id"] for slot in entry["slots"]]
            stored.setdefault(entry["event_id"], []).append((position, items, entry["decided_at_unix_ms"]))
    for event_id, copies in stored.items():
        for (first, *slate), (second, *other) in pairwise(copies):
            # Two slates under one id of the caller's: what the second would have been told is over by then.
            is_reused = event_id in history.chosen and slate != other and second[0] - first[0] > rules.claim_ms
            if not is_reused:
                yield f"decision {event_id} is in the journal twice, at {first} and {second}"
    for at_s, event_id, items, degraded in history.answers:
        if "log" in degraded:
            continue
        copies = stored.get(event_id, [])
        if not copies and not any(lost_s >= at_s for lost_s in history.power_lost_s):
            yield f"decision {event_id}, answered at {at_s:.3f} s, is not in the journal"
        if copies and "claim" not in degraded and items not in [held for _, held, _ in copies[:1]]:
            yield f"decision {event_id} was answered with {items}, stored is {copies[0][1]}"


def _events(history: History, journal: Mapping[Position, Entry], rules: Rules) -> Iterator[str]:
    # The simulation's callers give every event a value of its own.
    copies: dict[float, list[Entry]] = {}
    for entry in journal.values():
        if entry["type"] == "event":
            copies.setdefault(entry["value"], []).append(entry)
    for body in history.acknowledged:
        stored = copies.get(body["value"], [])
        fields = ("event_id", "item_id", "slot")
        if not stored:
            yield f"event {body['value']:g} was acknowledged and is not in the journal"
        for entry in stored:
            if [entry[name] for name in fields] != [body[name] for name in fields] or entry["event_type"] != body[
                "type"
            ]:
                yield f"event {body['value']:g} is in the journal as {entry}"
    for value, stored in copies.items():
        if len({entry["client_id"] for entry in stored}) > 1:
            yield f"event {value:g} is in the journal under {len(stored)} client ids: it may count twice"


def _read_to_the_end(journal: Mapping[Position, Entry], last: Mapping[int, str], what: str) -> Iterator[str]:
    for position, entry in sorted(journal.items()):
        if entry["type"] != "heartbeat" and (position[0], position[2]) > _order(last.get(position[1], "0-0")):
            yield f"{entry['type']} at {position} was not {what} in the end"
            return


def _learned(history: History, expected: Expected, rules: Rules) -> Iterator[str]:
    checkpoint = history.checkpoint
    if checkpoint["n_learned"] != len(expected.learned):
        yield f"{checkpoint['n_learned']} outcomes were learned, the journal says {len(expected.learned)}"
    reasons = {name: n for name, n in checkpoint["counters"].items() if n}
    if reasons != dict(expected.reasons):
        differ = {
            name: (reasons.get(name, 0), expected.reasons[name])
            for name in sorted({*reasons, *expected.reasons})
            if reasons.get(name, 0) != expected.reasons[name]
        }
        yield f"counted by reason (counted, expected): {differ}"
    if not np.array_equal(history.weights, rules.train(expected.learned)):
        yield "the model's weights are not those of an undisturbed run"


def _published(history: History) -> Iterator[str]:
    """A worker that loads the last snapshot and applies the deltas after it has the learner's weights."""
    snapshot: Entry = {}
    newest = 0
    for name, payload in history.published:
        if name == "save_checkpoint":
            continue
        message = msgspec.msgpack.decode(payload)
        if name == "publish_snapshot":
            snapshot = message
        elif message["version"] <= newest:
            yield f"version {message['version']} was published after version {newest}"
        newest = max(newest, message["version"])
    streams = [entries for name, entries in history.streams.items() if name.startswith("hone:weights:")]
    deltas = [(at, msgspec.msgpack.decode(payload)) for entries in streams for at, payload in entries]
    weights = np.zeros(len(history.weights), dtype=np.float32)
    after = [d for at, d in deltas if _order(at) > _order(snapshot["stream_id"])]
    version = snapshot["version"]
    for message in (snapshot, *after):
        if message is not snapshot and message["base_version"] > version:
            yield f"version {message['version']} goes on from {message['base_version']}, before it is {version}"
        weights[np.frombuffer(message["indices"], "<u4")] = np.frombuffer(message["values"], "<f4")
        version = max(version, message["version"])
    if not np.array_equal(weights, history.weights[:, 0]):
        yield "what was published is not what was learned"


def _archived(history: History, journal: Mapping[Position, Entry], rules: Rules) -> Iterator[str]:
    names = {"decision": "decisions", "event": "events"}
    for tag, kind in names.items():
        wanted = Counter(position for position, entry in journal.items() if entry["type"] == tag)
        rows = Counter(_position(partition, row) for partition, row in history.archived.get(kind, []))
        for position in sorted((wanted - rows) + (rows - wanted)):
            yield f"{tag} at {position} is archived {rows[position]} times, in the journal {wanted[position]} times"
    expected = expect(journal, history.archive_positions, rules)
    yield from _read_to_the_end(journal, history.archive_positions, "archived")
    rows = sorted(
        ((_position(partition, row), row["ordinal"], row) for partition, row in history.archived.get("outcomes", [])),
        key=lambda row: row[:2],
    )
    columns = list(expected.outcomes[0][1]) if expected.outcomes else []
    archived = [(position, {name: row[name] for name in columns}) for position, _, row in rows]
    if archived != expected.outcomes:
        extra = [row for row in archived if row not in expected.outcomes]
        missing = [row for row in expected.outcomes if row not in archived]
        yield f"archived outcomes are not what was joined: {extra=} {missing=}"[:600]


def _position(partition: int, row: Entry) -> Position:
    ms, sequence = _order(row["journal_id"])
    return ms, partition, sequence


def _fences(history: History) -> Iterator[str]:
    newest: dict[str, int] = {}
    for what, name, of, epoch in history.fenced:
        if what == "epoch":
            if epoch <= newest.get(of, 0):
                yield f"epoch {epoch} of {of} was given out twice"
            newest[of] = epoch
        elif epoch != newest.get(of):
            yield f"{name} of {of} under epoch {epoch} after epoch {newest.get(of)} was taken"


def _trims(history: History) -> Iterator[str]:
    """Nothing goes that the learner of the stored checkpoint would read again."""
    for partition, before, checkpoints in history.trims:
        for model, stored in checkpoints.items():
            checkpoint = msgspec.msgpack.decode(stored)
            key = str(partition)
            needed = checkpoint["oldest_open"].get(key) or checkpoint["positions"].get(key, "0-0")
            if _order(before) > _order(needed):
                yield f"partition {partition} was trimmed before {before}, the learner of {model} needs {needed}"
