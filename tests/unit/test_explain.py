"""An explanation: boosts and removals by rule from the log alone, and terms that sum to the score."""

from __future__ import annotations

import doctest

import msgspec
import numpy as np
import pytest

from bandit.policy import ActionFeatures, ModelSpec, WeightTable
from bandit.rules import MaxPer
from bandit.vw_format import encode
from service import explain_rules
from service.audit_simulation import simulate_decisions
from service.decision_record import walk_of
from service.explain import explain
from service.explain_rules import RuleWalks
from service.kept_weights import NoWeights
from service.messages import Decision
from tests.make_golden import DECISION

NO_WEIGHTS = NoWeights("a simulation has no model")
SIMULATED = list(simulate_decisions(150, seed=7))


def test_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(explain_rules).failed == 0


def test_the_boosts_of_the_rules_sum_to_the_logged_boost() -> None:
    n_split = 0
    for decision in SIMULATED:
        for record, slot in zip(decision.slots, explain(decision, NO_WEIGHTS).slots, strict=True):
            assert sum(part.boost for part in slot.boosts) == pytest.approx(record.boost, abs=1e-12)
            kinds = [decision.rules[part.rule].__struct_config__.tag for part in slot.boosts]
            assert [part.name.split(":")[0] for part in slot.boosts] == kinds
            n_split += sum(part.boost != 0.0 for part in slot.boosts) > 1
    assert n_split > 100


def test_what_the_rules_keep_out_one_by_one_is_what_they_keep_out_together() -> None:
    n_out = n_gave_way = 0
    for decision in SIMULATED:
        walk = walk_of(decision)
        rules = RuleWalks(decision, walk.actions)
        for record in decision.slots:
            here = walk.pmf()
            assert here is not None
            if not here.placed_by:
                kept_out = np.zeros(len(walk.actions.ids), dtype=np.bool_)
                for _, mask in rules.masks(here):
                    kept_out |= mask
                kept_out[walk.history] = True
                assert kept_out.tolist() == (~here.view.allowed).tolist()
                n_out += int(kept_out.sum()) - len(walk.history)
                n_gave_way += bool(here.gave_way)
            walk.place(record.action)
            rules.place(record.action)
    assert n_out > 1_000
    assert n_gave_way > 5


def test_the_removed_are_the_best_that_could_not_be_drawn_and_name_their_rules() -> None:
    n_removed = 0
    for decision in SIMULATED:
        walk = walk_of(decision)
        for slot in explain(decision, NO_WEIGHTS).slots:
            here = walk.pmf()
            assert here is not None
            out = [a for a in np.flatnonzero(~here.view.allowed).tolist() if a not in walk.history]
            if slot.reason in ("pinned", "sponsored"):
                assert (slot.removed, slot.runner_up) == ([], None)
            else:
                best = sorted(out, key=lambda a: (-here.view.scores[a], a))[:5]
                assert [item.item_id for item in slot.removed] == [decision.candidates.ids[a] for a in best]
                for action, item in zip(best, slot.removed, strict=True):
                    assert item.removed_by
                    assert item.boosted_score == here.view.scores[action]
                    assert item.score + item.boost == pytest.approx(item.boosted_score, abs=1e-12)
                    assert {rule.name for rule in item.removed_by}.isdisjoint(here.gave_way)
                n_removed += len(best)
            walk.place(decision.candidates.ids.index(slot.item_id))
    assert n_removed > 500


def test_the_runner_up_is_the_best_other_item_with_its_own_propensity() -> None:
    n_alone = 0
    for decision in SIMULATED:
        walk = walk_of(decision)
        for slot in explain(decision, NO_WEIGHTS).slots:
            here = walk.pmf()
            assert here is not None
            drawn = decision.candidates.ids.index(slot.item_id)
            others = [a for a in np.flatnonzero(here.view.allowed).tolist() if a != drawn]
            if others:
                best = min(others, key=lambda a: (-here.view.scores[a], a))
                assert slot.runner_up is not None
                assert slot.runner_up.item_id == decision.candidates.ids[best]
                assert slot.runner_up.propensity == here.pmf[best]
                assert slot.runner_up.boosted_score == here.view.scores[best]
            else:
                assert slot.runner_up is None
                n_alone += 1
            walk.place(drawn)
    assert n_alone > 10


@pytest.mark.parametrize("n_of_last", [2, 1])
def test_of_two_rules_on_one_column_only_the_one_that_stood_removed_something(n_of_last: int) -> None:
    """Six items of creators 0 and 1; after 0, 0, 1 the first rule forbids 0 and the second forbids 1."""
    creators = np.array([0, 0, 0, 1, 1, 1], dtype="<i4")
    candidates = msgspec.structs.replace(
        DECISION.candidates,
        ids=[f"m{n}" for n in range(6)],
        scores=np.zeros(6, dtype="<f4").tobytes(),
        columns={"creator": ("<i4", creators.tobytes())},
    )
    first, second = MaxPer(column="creator", limit=2, window=9), MaxPer(column="creator", limit=1, window=2)
    strict = MaxPer(column="creator", limit=1, window=9)
    declared = [first, second] if n_of_last == 1 else [strict, second]
    decision = msgspec.structs.replace(
        DECISION, candidates=candidates, rules=declared, discovery_positions=[], n_requested=6
    )
    walk = walk_of(decision)
    rules = RuleWalks(decision, walk.actions)
    for action in (0, 1, 3):
        walk.place(action)
        rules.place(action)
    here = walk.pmf()
    assert here is not None
    assert here.gave_way == ("max_per:creator",) * n_of_last
    kept_out = {name.rule: np.flatnonzero(mask).tolist() for name, mask in rules.masks(here) if mask.any()}
    # The strict rule forbids everything that is left, and gives way as well.
    assert kept_out == ({0: [2]} if n_of_last == 1 else {})


def _scored() -> tuple[Decision, WeightTable]:
    """The golden decision, its slot's score made by a table with random weights."""
    spec = ModelSpec(
        bits=12, learning_rate=0.1, interactions=(("user", "item"), ("context", "dynamic")), schema_version="s"
    )
    table = WeightTable(spec)
    table.weights[:] = np.random.default_rng(3).normal(size=len(table.weights)).astype(np.float32)
    table.version = DECISION.versions.model
    record = DECISION.slots[0]
    shared = {name: encode(name, features) for name, features in DECISION.features.items()}
    action = {n: ActionFeatures.stack([encode(n, features)]) for n, features in record.features.items()}
    scores = np.array([table.score(shared, action)[0], -9.0, -9.0], dtype="<f4")
    columns = {
        "creator": DECISION.candidates.columns["creator"],
        "available_at_unix_ms": ("<i8", np.zeros(3, dtype="<i8").tobytes()),
        "affinity": ("<f4", np.ones(3, dtype="<f4").tobytes()),
        "discovery": ("|b1", np.zeros(3, dtype=np.bool_).tobytes()),
    }
    candidates = msgspec.structs.replace(DECISION.candidates, scores=scores.tobytes(), columns=columns)
    return msgspec.structs.replace(DECISION, candidates=candidates), table


def test_the_terms_of_a_slot_sum_to_its_logged_score_in_numbers_and_words() -> None:
    decision, table = _scored()
    explained = explain(decision, table)
    (slot,) = explained.slots
    assert slot.score_sum == pytest.approx(slot.score, abs=1e-6)
    assert sum(term.contribution for term in slot.score_terms) == pytest.approx(slot.score, abs=1e-6)
    assert all(term.contribution == pytest.approx(term.weight * term.value) for term in slot.score_terms)
    named = {tuple(term.features): term.value for term in slot.score_terms}
    assert named == {
        (): 1.0,
        ("context:device=tv",): 1.0,
        ("user:taste=Drama",): 0.75,
        ("position:slot=0",): 1.0,
        ("item:genre=Drama",): 1.0,
        ("dynamic:source=als",): 1.0,
        ("user:taste=Drama", "item:genre=Drama"): 0.75,
        ("context:device=tv", "dynamic:source=als"): 1.0,
    }
    sizes = [abs(term.contribution) for term in slot.score_terms]
    assert sizes == sorted(sizes, reverse=True)
    assert explained.weights.version == explained.weights.decision_version == 1834
    assert "which the decision was made with" in explained.weights.in_words
    assert slot.score_in_words.startswith(f"Score {slot.score:+.4f} = {slot.score_terms[0].contribution:+.4f} ")
    assert "+0.1000 prior:affinity" in slot.score_in_words


def test_terms_of_another_version_say_so_and_what_they_sum_to() -> None:
    decision, table = _scored()
    table.version = 2_000
    table.weights *= 2.0
    explained = explain(decision, table)
    (slot,) = explained.slots
    assert (explained.weights.decision_version, explained.weights.version) == (1834, 2_000)
    assert "version 1834, which the decision was made with, is no longer kept" in explained.weights.in_words
    assert slot.score_sum == pytest.approx(2.0 * slot.score, abs=1e-5)
    assert f"was logged; under the weights at hand it is {slot.score_sum:+.4f}" in slot.score_in_words


def test_an_explanation_survives_json() -> None:
    decision, table = _scored()
    explained = explain(decision, table)
    assert msgspec.json.decode(msgspec.json.encode(explained), type=type(explained)) == explained
