"""Errors that callers see, and errors of the store.

HoneError
+-- InvalidRequest   400/422, names the field
+-- NotFound         404
+-- Conflict         409
+-- StoreUnavailable the store did not answer in time or refused
+-- Fenced           another learner has taken over
"""

from __future__ import annotations


class HoneError(Exception):
    """Base of the service's own errors."""


class InvalidRequest(HoneError):
    """The request cannot be taken.

    Args:
        detail: What, got, expected.
        path: JSONPath of the field, `$` for the body.
        status: HTTP status.
    """

    def __init__(self, detail: str, *, path: str, status: int = 422) -> None:
        super().__init__(detail)
        self.detail = detail
        self.path = path
        self.status = status


class NotFound(HoneError):
    """What the request names does not exist."""


class Conflict(HoneError):
    """The request contradicts an earlier one."""


class StoreUnavailable(HoneError):
    """The store did not answer in time, refused, or is away; nothing is known of what it did."""


class Fenced(HoneError):
    """A newer epoch exists: the writer must stop and publish nothing more."""
