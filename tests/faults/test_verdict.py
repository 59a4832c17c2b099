"""The judge condemns what is lost, doubled or learned otherwise: each of these must fail."""

from __future__ import annotations

import shutil

import pytest

from service.messages import Event
from tests.faults.load import Load
from tests.faults.site import Site
from tests.faults.tape import Undisturbed


def test_the_judge_condemns_what_is_lost_doubled_or_learned_otherwise(site: Site) -> None:
    site.heal()
    site.drive(10)
    site.load.settle()
    verdict = site.verdict
    verdict.assert_sound(site.load)
    with pytest.raises(AssertionError, match="lost decisions"):
        verdict.assert_archived(Load("", decisions={"never"}))
    with pytest.raises(AssertionError, match="lost events"):
        verdict.assert_archived(Load("", events={"never"}))
    newest = max(verdict.archive.glob("events/date=*/hour=*/*.parquet"), key=lambda path: path.stat().st_mtime)
    kept = shutil.move(newest, site.folder / newest.name)
    with pytest.raises(AssertionError, match="archived = journalled"):
        verdict.assert_archived(site.load)
    shutil.move(kept, newest)
    verdict.assert_archived(site.load)
    # A learner that did not see one of the rewards that were joined.
    missed = next(n for n, (_, entry) in enumerate(site.tape.decoded()) if isinstance(entry, Event))
    entry = site.tape.entries.pop(missed)
    verdict._undisturbed = Undisturbed(site.config, site.tape)
    try:
        with pytest.raises(AssertionError):
            verdict.assert_learned()
        with pytest.raises(AssertionError, match="the tape has"):
            site.tape.assert_complete()
    finally:
        site.tape.entries.insert(missed, entry)
        verdict._undisturbed = Undisturbed(site.config, site.tape)
    verdict.assert_sound(site.load)
