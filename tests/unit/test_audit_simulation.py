"""The audit's own simulation: clean as it is drawn, and every change of the log is caught."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from bandit.exploration import Epsilon
from service.audit import audit_decision
from service.audit_simulation import simulate_decisions
from service.audit_statistics import AuditStatistics
from service.inspect_log import AuditFindings
from service.messages import Decision

N = 400
SEED = 7


@pytest.fixture(scope="module")
def decisions() -> list[Decision]:
    return list(simulate_decisions(N, seed=SEED))


def test_a_simulation_of_mixed_rules_is_clean(decisions: list[Decision]) -> None:
    findings = AuditFindings()
    findings.audit(decisions)
    assert (findings.checked, findings.mismatches, findings.statistics.alarms) == (N, 0, [])
    assert findings.is_clean


def test_a_simulation_is_the_same_again_and_in_parts(decisions: list[Decision]) -> None:
    parts = [*simulate_decisions(N // 2, seed=SEED), *simulate_decisions(N - N // 2, seed=SEED, first=N // 2)]
    assert parts == decisions


def test_the_simulation_meets_every_rule_and_policy(decisions: list[Decision]) -> None:
    assert {type(rule).__name__ for d in decisions for rule in d.rules} >= {
        "MaxPer",
        "Diversity",
        "Pinned",
        "Discovery",
    }
    reasons = {slot.reason for decision in decisions for slot in decision.slots}
    assert reasons == {"greedy", "explore", "discovery", "sponsored", "pinned"}
    assert any(slot.gave_way for decision in decisions for slot in decision.slots)


def test_one_flipped_propensity_is_caught(decisions: list[Decision]) -> None:
    for decision in decisions[:100]:
        slot = decision.slots[0]
        flipped = msgspec.structs.replace(slot, propensity=float(np.nextafter(slot.propensity, 0.0)))
        changed = msgspec.structs.replace(decision, slots=[flipped, *decision.slots[1:]])
        assert [(one.slot, one.what) for one in audit_decision(changed)] == [(0, "propensity")]


def test_one_changed_rule_is_caught_even_where_it_changes_no_number(decisions: list[Decision]) -> None:
    changed = [msgspec.structs.replace(d, rules=d.rules[1:]) for d in decisions if d.rules]
    assert all(audit_decision(decision) for decision in changed)


def test_one_dropped_candidate_is_caught(decisions: list[Decision]) -> None:
    for decision in decisions:
        old = decision.candidates
        if len(old.ids) < 2:
            continue
        columns = {
            name: (dtype, np.frombuffer(packed, dtype=dtype)[:-1].tobytes())
            for name, (dtype, packed) in old.columns.items()
        }
        fewer = msgspec.structs.replace(
            old, ids=old.ids[:-1], scores=old.scores[:-4], sources=old.sources[:-1], columns=columns
        )
        assert audit_decision(msgspec.structs.replace(decision, candidates=fewer))


def test_a_few_decisions_raise_no_alarm_by_chance() -> None:
    for seed in range(200):
        statistics = AuditStatistics(seed=seed)
        for decision in simulate_decisions(1, seed=seed):
            statistics.add(decision)
        assert statistics.alarms == []


def test_draws_that_do_not_follow_their_propensities_raise_an_alarm() -> None:
    """Every number of these logs is consistent; only the draws are not: a sampler that always takes the greedy item."""
    statistics = AuditStatistics(seed=1)
    for decision in simulate_decisions(1_500, seed=3):
        if isinstance(decision.exploration, Epsilon):
            slots = [
                msgspec.structs.replace(
                    slot, action=slot.greedy_action, propensity=1.0 - decision.exploration.rate, cumulative_before=0.0
                )
                for slot in decision.slots
            ]
            statistics.add(msgspec.structs.replace(decision, slots=slots))
    assert statistics.alarms
