"""The journal of the learning benchmark: whole decisions under ids of their own, with the rewards asked for."""

from __future__ import annotations

import msgspec
import pytest

from service.messages import Decision, Event, journal_decoder
from simulators.benchmarks.learning_journal import N_SLOTS, N_USERS, Slates
from tests.make_golden import DECISION

AT_MS = 1_795_382_944_962


@pytest.fixture(scope="module")
def template() -> Decision:
    slot = msgspec.structs.replace(
        DECISION.slots[0], features={"item": {f"genre={n}": 1.0 for n in range(8)}, "dynamic": {"seen=0": 1.0}}
    )
    features = {"context": {"device=tv": 1.0}, "user": {"age=4": 1.0}, "position": {"slot=0": 1.0}}
    return msgspec.structs.replace(DECISION, slots=[slot] * N_SLOTS, features=features)


@pytest.fixture(scope="module")
def slates(template: Decision) -> Slates:
    return Slates([template], rewards_per_slate=3, seed=1)


def test_a_decision_is_the_template_of_another_user_id_and_time(template: Decision, slates: Slates) -> None:
    payload, _ = slates.decide(7, AT_MS)
    decision = journal_decoder.decode(payload)
    assert isinstance(decision, Decision)
    assert (decision.event_id, decision.user_id, decision.decided_at_unix_ms) == ("bench-00000000000007", "ml-7", AT_MS)
    assert decision.slots == template.slots
    assert decision.features["context"] == template.features["context"]
    assert len(decision.features["user"]) == len(template.features["user"]) + 5


def test_no_two_users_have_one_taste(slates: Slates) -> None:
    tastes = set()
    for number in range(200):
        decision = journal_decoder.decode(slates.decide(number, AT_MS)[0])
        assert isinstance(decision, Decision)
        tastes.add(tuple(sorted(decision.features["user"].items())))
    assert len(tastes) == 200


def test_a_users_next_decision_has_an_id_of_its_own_and_rewards_for_different_slots(slates: Slates) -> None:
    for number in (5, 5 + N_USERS):
        payload, clicks = slates.decide(number, AT_MS)
        events = [event for event in map(journal_decoder.decode, clicks) if isinstance(event, Event)]
        assert {event.event_id for event in events} == {f"bench-{number:014}"}
        assert b"bench-00000000000000" not in payload
        assert len({event.slot for event in events}) == len(clicks) == 3
        assert len({event.client_id for event in events}) == 3
