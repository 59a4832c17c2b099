"""The manifest of an artefact: its checksum, and its signature when there is a key. Touches disk to read one."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Any, cast, get_args

import orjson

from retrieval.indexes import IndexKind

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"


class BundleError(Exception):
    """A bundle is missing, damaged, of another schema, or not signed with the given key."""


def seal(manifest: dict[str, Any], hmac_key: bytes | None) -> bytes:
    """Encode a manifest with its signature (when a key is given) and the checksum of both."""
    sealed = dict(manifest)
    if hmac_key is not None:
        sealed["hmac"] = hmac.new(hmac_key, _encode(manifest), hashlib.sha256).hexdigest()
    sealed["sha256"] = hashlib.sha256(_encode(sealed)).hexdigest()
    return _encode(sealed)


def unseal(content: bytes, hmac_key: bytes | None, *, what: str) -> dict[str, Any]:
    """Return the manifest that `seal` encoded.

    Args:
        content: The sealed bytes.
        hmac_key: Key of the signature; with a key an unsigned manifest is refused, without one none is checked.
        what: Whose manifest it is, for the message.

    Raises:
        BundleError: it is damaged or not signed with the key.
    """
    try:
        manifest = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BundleError(f"{what} has no readable manifest: {error}") from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{what} is damaged: its manifest is not an object")
    checksum, signature = manifest.pop("sha256", None), manifest.get("hmac")
    if content != _encode({**manifest, "sha256": hashlib.sha256(_encode(manifest)).hexdigest()}):
        raise BundleError(f"{what} is damaged: its manifest does not have its checksum {checksum}")
    manifest.pop("hmac", None)
    if hmac_key is not None:
        wanted = hmac.new(hmac_key, _encode(manifest), hashlib.sha256).hexdigest()
        if not isinstance(signature, str) or not hmac.compare_digest(signature, wanted):
            raise BundleError(f"{what} is {'wrongly' if signature else 'not'} signed with the given key")
    return cast("dict[str, Any]", manifest)


def read_manifest(folder: Path, version: str, hmac_key: bytes | None) -> dict[str, Any]:
    """Read the manifest of a bundle; one of schema 1 gets the kind of its indexes.

    Raises:
        BundleError: it is missing, damaged, of another schema or version, or not signed with the key.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(f"bundle {version} has no readable manifest: {error}") from error
    manifest = unseal(content, hmac_key, what=f"bundle {version}")
    if not isinstance(manifest.get("files"), dict):
        raise BundleError(f"bundle {version} is damaged: its manifest lists no files")
    if manifest.get("schema") not in (1, SCHEMA_VERSION) or manifest.get("version") != version:
        raise BundleError(
            f"bundle must be version {version} of schema {SCHEMA_VERSION} or 1,"
            f" got version {manifest.get('version')} of schema {manifest.get('schema')}"
        )
    if manifest["schema"] == 1:
        # These had graphs only.
        manifest["kind"] = "graph"
    if manifest.get("kind") not in get_args(IndexKind):
        raise BundleError(f"bundle {version} must be of kind {list(get_args(IndexKind))}, got {manifest.get('kind')}")
    return manifest


def _encode(manifest: dict[str, Any]) -> bytes:
    return orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS)
