"""Stored messages of version 1 stay readable and are written as they always were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from service.messages import Decision, Event, Heartbeat, Stored, encode, item_change_decoder, journal_decoder
from tests import make_golden
from tests.make_golden import VALUES, readable, stored_path

every_message = pytest.mark.parametrize("name", VALUES)


def _types(base: type[Stored]) -> Iterator[type[Stored]]:
    for kind in base.__subclasses__():
        if kind.__module__ == "service.messages":
            yield kind
            yield from _types(kind)


def test_every_stored_type_has_a_golden_file() -> None:
    assert {type(value) for value in VALUES.values()} == set(_types(Stored))
    files = {path.name for path in make_golden.FOLDER.iterdir() if path.is_file()}
    assert files == {stored_path(name).with_suffix(suffix).name for name in VALUES for suffix in (".msgpack", ".json")}


@every_message
def test_the_golden_bytes_decode_to_the_value(name: str) -> None:
    assert msgspec.msgpack.decode(stored_path(name).read_bytes(), type=type(VALUES[name])) == VALUES[name]


def _holds(new: Any, old: Any) -> bool:
    """Whether everything that was written before is still written the same; later fields may stand beside it."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and _holds(new[key], old[key]) for key in old)
    if isinstance(old, list):
        return isinstance(new, list) and len(new) == len(old) and all(map(_holds, new, old))
    return type(new) is type(old) and bool(new == old)


@every_message
def test_the_value_is_written_as_it_always_was(name: str) -> None:
    assert _holds(msgspec.msgpack.decode(encode(VALUES[name])), _tree(name))


@every_message
def test_the_readable_twin_says_the_same(name: str) -> None:
    twin = msgspec.json.decode(stored_path(name).with_suffix(".json").read_bytes())
    assert _holds(msgspec.json.decode(readable(VALUES[name])), twin)


@every_message
def test_a_field_that_a_later_version_adds_is_passed_over(name: str) -> None:
    tree = _tree(name)
    tree["added_later"] = {"anything": [1, 2, 3]}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(tree), type=type(VALUES[name])) == VALUES[name]


@pytest.mark.parametrize(
    "path", [("versions",), ("candidates",), ("slots", 0)], ids=["versions", "candidates", "slots"]
)
def test_a_field_added_inside_a_decision_is_passed_over(path: tuple[Any, ...]) -> None:
    tree = _tree("decision")
    inner: Any = tree
    for key in path:
        inner = inner[key]
    inner["added_later"] = 1
    assert journal_decoder.decode(msgspec.msgpack.encode(tree)) == VALUES["decision"]


@every_message
def test_a_message_without_a_required_field_is_refused(name: str) -> None:
    kind = type(VALUES[name])
    required = [field.name for field in msgspec.structs.fields(kind) if field.required]
    assert required or name == "user_profile"
    for field in required:
        tree = _tree(name)
        del tree[field]
        with pytest.raises(msgspec.ValidationError, match=field):
            msgspec.msgpack.decode(msgspec.msgpack.encode(tree), type=kind)


@every_message
def test_every_message_carries_its_version(name: str) -> None:
    assert _tree(name)["v"] == 1


def test_the_journal_tells_its_entries_apart() -> None:
    for name in ("decision", "event", "heartbeat", "config_change"):
        assert journal_decoder.decode(stored_path(name).read_bytes()) == VALUES[name]
    for name in ("item_upsert", "item_delete"):
        assert item_change_decoder.decode(stored_path(name).read_bytes()) == VALUES[name]
    with pytest.raises(msgspec.ValidationError):
        journal_decoder.decode(stored_path("item_delete").read_bytes())


def test_missing_files_are_written_and_none_is_overwritten(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_golden, "FOLDER", tmp_path / "golden")
    make_golden.main()
    written = {path.name: path.read_bytes() for path in (tmp_path / "golden").iterdir() if path.is_file()}
    assert len(written) == 2 * len(VALUES)
    (tmp_path / "golden" / "event.v1.msgpack").write_bytes(b"old")
    (tmp_path / "golden" / "event.v1.json").unlink()
    make_golden.main()
    assert (tmp_path / "golden" / "event.v1.msgpack").read_bytes() == b"old"
    assert (tmp_path / "golden" / "event.v1.json").read_bytes() == written["event.v1.json"]


def test_torn_bytes_are_refused() -> None:
    for kind in (Decision, Event, Heartbeat):
        name = next(name for name, value in VALUES.items() if type(value) is kind)
        whole = stored_path(name).read_bytes()
        for size in range(0, len(whole), 7):
            with pytest.raises(msgspec.DecodeError):
                journal_decoder.decode(whole[:size])


def _tree(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = msgspec.msgpack.decode(stored_path(name).read_bytes())
    return tree
