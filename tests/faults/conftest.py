"""One site for all tests that leave it whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.site import Site, open_site


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """A store and the processes on it."""
    with open_site() as site:
        yield site
