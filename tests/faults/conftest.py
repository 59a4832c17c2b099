"""One site for all tests that leave it whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.site import Site, open_site
from tests.faults.test_failpoints import LEAVER, write_old_hours


@pytest.fixture(scope="session")
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A store and the processes on it; with old hours in its archive when long tests run."""
    is_long = any(item.get_closest_marker("long") for item in request.session.items)
    with open_site(before=write_old_hours if is_long else None) as site:
        site.verdict.ignore_user(LEAVER)
        yield site
