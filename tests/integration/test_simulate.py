"""A world's users use a running service over HTTP."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from service.errors import StoreUnavailable
from simulators.http_loop import run_over_http
from simulators.worlds.named import churning_world
from tests.integration.api import Api
from tests.stack import Stack, free_port

N_DECISIONS = 120


def test_a_world_is_simulated_against_a_running_service_and_leaves_no_items(stack: Stack, api: Api) -> None:
    seen: list[int] = []
    run = asyncio.run(
        run_over_http(
            churning_world(),
            url=stack.url,
            surface="home",
            n_decisions=N_DECISIONS,
            seed=1,
            every=40,
            speed=50.0,
            on_progress=seen.append,
        )
    )
    assert run.n_decisions.tolist() == [40, 80, 120]
    assert seen == list(range(1, N_DECISIONS + 1))
    assert (run.optimal >= run.value).all()
    assert (run.reward > 0.0).any()
    assert run.n_events > 0
    # Those of the start, those that appeared, and those that had gone by then.
    for number in (0, 20, 51):
        assert api.call("GET", f"/v1/items/simulated-i{number:06d}").status == 404


def test_a_service_is_told_who_came_and_what_they_clicked(stack: Stack, api: Api) -> None:
    run = asyncio.run(
        run_over_http(
            churning_world(),
            url=stack.url,
            surface="home",
            n_decisions=40,
            seed=2,
            every=40,
            speed=50.0,
            keep_items=True,
        )
    )
    assert api.call("GET", "/v1/items/simulated-i000005").body["attributes"]["genres"]
    came = {visit.user for visit in itertools.islice(churning_world().build(2).visits(), 40)}
    recent = [api.call("GET", f"/v1/users/simulated-2-u{user}").body["recent"] for user in came]
    told = [interaction for of_user in recent for interaction in of_user]
    assert 0 < len(told) <= run.n_events
    assert {interaction["event_type"] for interaction in told} <= {"click", "skip"}
    assert all(interaction["item_id"].startswith("simulated-i") for interaction in told)


def test_a_service_that_is_not_there_is_an_error_of_its_own() -> None:
    with pytest.raises(StoreUnavailable, match="does not answer"):
        asyncio.run(
            run_over_http(
                churning_world(), url=f"http://127.0.0.1:{free_port()}", surface="home", n_decisions=5, seed=1
            )
        )


def test_an_answer_that_refuses_is_passed_on(stack: Stack) -> None:
    with pytest.raises(StoreUnavailable, match=r"was answered 422.*nowhere"):
        asyncio.run(run_over_http(churning_world(), url=stack.url, surface="nowhere", n_decisions=5, seed=1))
