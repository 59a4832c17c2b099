"""The catalogue and its index change while clients ask without pause: nothing fails, nothing hidden is served."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
import pytest

from retrieval.bundle import set_current
from tests.integration.api import Api
from tests.integration.clients import Clients, Slate
from tests.stack import Stack, eventually, short_folder, start_stack

N_ITEMS = 3_000
N_UNLISTED = 1_000
UNLISTED_AT_ONCE = 20
BOUND_S = 1.0


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with short_folder() as folder:
        # A busy machine must not make a request go without the user's state: these tests say no request is degraded.
        running = start_stack(folder, env={"HONE_STORE__TIMEOUT_S": "5"}, n_items=N_ITEMS)
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture(scope="module")
def known_items(stack: Stack) -> list[dict[str, Any]]:
    lines = (stack.data_dir / "demo" / "items.ndjson").read_bytes().splitlines()
    return [orjson.loads(line) for line in lines]


def _worker_of(api: Api) -> str:
    return api.call("GET", "/healthz").headers["x-hone-worker"]


def _served_after(
    slates: list[Slate], hidden_at_s: Mapping[str, float], *, own: str, own_s: float, other_s: float
) -> list[tuple[str, str, float]]:
    """Return items in slates that were asked for so long after they were hidden: item, worker, seconds after."""
    found = []
    for slate in slates:
        bound_s = own_s if slate.worker == own else other_s
        for item_id in set(slate.item_ids) & hidden_at_s.keys():
            after_s = slate.started_s - hidden_at_s[item_id]
            if after_s >= bound_s:
                found.append((item_id, slate.worker, after_s))
    return found


def test_an_unlisted_item_is_served_by_nobody_a_second_after_and_not_at_all_by_who_acknowledged(
    stack: Stack, workers: list[Api], known_items: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [item["id"] for item in known_items]
    # Seeds stay listed, so that half of the slates are of items that are like them.
    clients = Clients(stack.url, seeds=ids[-300:], n=20)
    acknowledging, other = workers
    own = _worker_of(acknowledging)
    hidden_at_s: dict[str, float] = {}
    last_worker_s = []
    with clients.calling():
        clients.wait(200)
        served = Counter(item_id for slate in clients.slates for item_id in slate.item_ids)
        hideable = set(ids[:-300])
        often = [item_id for item_id, _ in served.most_common() if item_id in hideable]
        chosen = [*often, *(item_id for item_id in ids[:-300] if item_id not in served)][:N_UNLISTED]
        assert len(often) > 200
        item_of = {item["id"]: item for item in known_items}
        for place in range(0, len(chosen), UNLISTED_AT_ONCE):
            batch = chosen[place : place + UNLISTED_AT_ONCE]
            answer = acknowledging.call("PUT", "/v1/items", [{**item_of[i], "listed": False} for i in batch])
            assert answer.status == 202, answer.raw
            acknowledged_s = time.monotonic()
            hidden_at_s |= dict.fromkeys(batch, acknowledged_s)
            while other.call("GET", f"/v1/items/{batch[-1]}").body.get("listed", True):
                assert time.monotonic() - acknowledged_s < BOUND_S
            last_worker_s.append(time.monotonic() - acknowledged_s)
        clients.wait(100)
        time.sleep(BOUND_S)
        clients.wait(100)
    assert clients.errors == []
    assert len({slate.worker for slate in clients.slates}) == stack.n_workers
    assert _served_after(clients.slates, hidden_at_s, own=own, own_s=0.0, other_s=BOUND_S) == []
    late = _served_after(clients.slates, hidden_at_s, own=own, own_s=0.0, other_s=0.0)
    last_ms = np.array(last_worker_s) * 1e3
    with capsys.disabled():
        sys.stdout.write(
            f"\nunlisted {len(chosen)} under {len(clients.slates)} slates: the last worker knew after"
            f" {np.median(last_ms):.1f} ms, at most {last_ms.max():.1f}; {len(late)} slates asked of it up to"
            f" {max((s for *_, s in late), default=0.0) * 1e3:.1f} ms after held one\n"
        )
    # The judge must see what was served before it was hidden.
    assert len(_served_after(clients.slates, hidden_at_s, own=own, own_s=-1e9, other_s=-1e9)) > 200


def _versions(stack: Stack) -> set[str]:
    """Return the indexes that workers serve, each asked by a connection of its own."""
    found: dict[str, str] = {}
    while len(found) < stack.n_workers:
        api = Api(stack.url)
        answer = api.call("GET", "/readyz")
        found[answer.headers["x-hone-worker"]] = answer.body["index"]
        api.close()
    return set(found.values())


def _build(stack: Stack, kind: str) -> str:
    environment = {**stack.environment, "HONE_INDEX__KIND": kind}
    done = subprocess.run(
        [sys.executable, "-m", "service", "index", "build", "--json"],
        env=environment,
        check=True,
        capture_output=True,
    )
    version: str = orjson.loads(done.stdout)["version"]
    return version


def test_a_new_index_is_built_and_served_while_no_request_fails(
    stack: Stack, known_items: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    clients = Clients(stack.url, seeds=[item["id"] for item in known_items[-300:]])
    root = stack.data_dir / "index"
    (first,) = _versions(stack)
    newcomers = [f"put before the swap {n}" for n in range(3)]
    writer = Api(stack.url)
    assert writer.call("PUT", "/v1/items", [{"id": item_id} for item_id in newcomers]).status == 202
    writer.close()
    with clients.calling():
        clients.wait(100)
        marks_s = [time.monotonic()]
        clients.wait(300)
        marks_s.append(time.monotonic())
        second = _build(stack, "quantised")
        assert second != first
        marks_s.append(time.monotonic() - (time.time() - (root / "current").stat().st_mtime))
        eventually(lambda: _versions(stack) == {second}, what="the new index is served by all")
        # And back again: the workers have to find what was put since in either.
        set_current(root, first)
        eventually(lambda: _versions(stack) == {first}, what="the old index is served by all")
        marks_s.append(time.monotonic())
        clients.wait(100)
    assert clients.errors == []
    assert {slate.status for slate in clients.slates} == {200}
    assert len({slate.worker for slate in clients.slates}) == stack.n_workers
    with capsys.disabled():
        sys.stdout.write("\nswapped under load, p50 / p99 ms:")
        for name, (start_s, end_s) in zip(("before", "at the build", "at the swaps"), pairwise(marks_s), strict=True):
            p50, p99 = (clients.latency_ms(q, since_s=start_s, until_s=end_s) for q in (50, 99))
            sys.stdout.write(f" {name} {p50:.1f} / {p99:.1f}")
        sys.stdout.write("\n")
    for _ in range(6):
        reader = Api(stack.url)
        # By content, of which they have none: what is found of them are their vectors and their rows.
        found = reader.recommend(surface="home", candidates=newcomers, n=len(newcomers))
        assert {item["item_id"] for item in found["items"]} == set(newcomers)
        reader.close()


def _bulk_lines(n_lines: int, *, name: str) -> list[bytes]:
    """Return lines of items, one in a hundred each wrong in a way of its own."""
    wrong = [
        b"{",
        b'{"title": "without an id"}',
        b'{"id": "' + b"i" * 1_024 + b'"}',
        b'{"id": "of a wrong kind", "attributes": {"genres": 5}}',
        b'{"id": "of no kind", "attributes": {"genres": {"a": 1}}}',
        b'{"id": "not a number", "attributes": {"year": NaN}}',
        b'{"id": "nowhere", "regions": ["Atlantis"]}',
        b"\xff\xfe",
    ]
    lines = []
    for number in range(n_lines):
        if number % 100 == 7:
            lines.append(wrong[number // 100 % len(wrong)])
        else:
            item = {
                "id": f"{name} \u00fc\u4e2d\U0001f3ac {number // 2}",
                "attributes": {"genres": ["Drama"], "year": 1990 + number % 30},
            }
            lines.append(orjson.dumps(item))
    return lines


def _resident_bytes(worker: str) -> int:
    return int(Path(f"/proc/{worker.partition(':')[2]}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("n_lines", [4_000, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_of_many_items_in_one_body_the_bad_lines_are_named_while_others_are_answered(
    stack: Stack, known_items: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], n_lines: int
) -> None:
    clients = Clients(stack.url, seeds=[item["id"] for item in known_items[-300:]])
    lines = _bulk_lines(n_lines, name=str(n_lines))
    paths = ["$", "$.id", "$.id", "$.attributes", "$.attributes[...]", "$.attributes.year", "$.regions[0]", "$"]
    bad = list(range(7, n_lines, 100))
    writer = Api(stack.url)
    worker = _worker_of(writer)
    with clients.calling(2):
        clients.wait(100)
        start_s, before_bytes = time.monotonic(), _resident_bytes(worker)
        # Two items in succession share an id: the later one of a pair stays.
        answer = writer.call("PUT", "/v1/items", b"\n".join(lines), content_type="application/x-ndjson")
        end_s, after_bytes = time.monotonic(), _resident_bytes(worker)
    assert answer.status == 202, answer.raw[:300]
    assert answer.body["accepted"] == n_lines - len(bad)
    assert answer.body["n_rejected"] == len(bad)
    named = [(rejection["index"], rejection["path"]) for rejection in answer.body["rejected"]]
    assert named == [(index, paths[index // 100 % len(paths)]) for index in bad][:1_000]
    assert all(rejection["detail"] for rejection in answer.body["rejected"])
    assert clients.errors == []
    meanwhile = [s for s in clients.slates if s.started_s < end_s and s.ended_s > start_s and s.worker == worker]
    longest_s = max((s.ended_s - s.started_s for s in meanwhile), default=0.0)
    assert meanwhile
    # The request itself takes a multiple: nobody waits for it.
    assert longest_s < max(0.5 * (end_s - start_s), 2.0)
    last = f"{n_lines} \u00fc\u4e2d\U0001f3ac {(n_lines - 1) // 2}"
    # Bulk is acknowledged when it is durable; the worker then follows as fast as requests let it.
    eventually(
        lambda: last in [item["id"] for item in writer.call("GET", f"/v1/items?ids={quote(last)}").body],
        timeout_s=30.0 + 0.002 * n_lines,
        what=last,
    )
    known_s = time.monotonic()
    # What stays of a body are its items, twice an index of vectors and a record each; not the body, nor its lines.
    assert after_bytes - before_bytes < 60_000_000 + 6_000 * n_lines // 2
    with capsys.disabled():
        sys.stdout.write(
            f"\n{n_lines} lines in {end_s - start_s:.1f} s, known {known_s - end_s:.1f} s later;"
            f" {len(meanwhile)} slates of the same worker meanwhile, p50"
            f" {clients.latency_ms(50, since_s=start_s, until_s=end_s):.1f} ms, the longest {longest_s * 1e3:.0f} ms;"
            f" the worker grew by {(after_bytes - before_bytes) / 1e6:.1f} MB\n"
        )
    writer.close()
