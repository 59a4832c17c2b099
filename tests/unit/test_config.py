"""The configuration: unknown keys are errors, the environment wins, every error names the key."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from service.config import DEFAULT_PATH, Config, ConfigError, load_config

MINIMAL = """
[models.m]
bits = 18
[surfaces.home]
model = "m"
sources = [{ name = "popular", quota = 10 }]
exploration = { kind = "epsilon", rate = 0.1 }
rules = [{ kind = "max_per", column = "creator", limit = 2, window = 10 }]
[surfaces.home.reward]
events = { click = { base = 1.0 } }
"""


def _load(tmp_path: Path, text: str = MINIMAL, **environment: str) -> Config:
    path = tmp_path / "hone.toml"
    path.write_text(text)
    return load_config(path, environment)


def test_the_shipped_configuration_declares_the_demo_surfaces() -> None:
    config = load_config()
    assert set(config.surfaces) == {"home", "similar", "because_you_watched", "playlist"}
    assert config.data_path == Path("var")


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert _load(tmp_path, "") == Config()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("colour = 1", "colour"),
        ("[http]\nprot = 1", "prot"),
        ("[store]\nurl = ''\nretries = 3", "retries"),
        (MINIMAL + "[surfaces.home2]\nmodel = 'm'\nexplore = 1", "explore"),
        (MINIMAL.replace("rate = 0.1", "rat = 0.1"), "rat"),
        (MINIMAL.replace("limit = 2", "limits = 2"), "limits"),
        (MINIMAL.replace("quota", "qouta"), "qouta"),
        (MINIMAL.replace("base", "bass"), "bass"),
        ("[features]\nfeatures = [{ name = 'a', namespace = 'item', source = 'a', kin = 'multi' }]", "kin"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_it(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown field `{named}`"):
        _load(tmp_path, text)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("bits = 18", "bits = 'many'", r"\$\.models\[\.\.\.\]\.bits"),
        ("bits = 18", "bits = 9", r"bits must be in \[10, 28\], got 9"),
        ("bits = 18", "power_t = 0.7", r"\$\.models\[\.\.\.\]\.power_t"),
        ("rate = 0.1", "rate = 1.5", r"rate must be in \[0, 1\], got 1.5"),
        ('kind = "epsilon"', 'kind = "magic"', r"exploration\.kind"),
        ('kind = "max_per"', 'kind = "min_per"', r"rules\[0\]\.kind"),
        ("limit = 2", "limit = 0", r"limit and window must be at least 1, got 0"),
        ('"popular"', '"psychic"', r"sources\[0\]\.name"),
        ("quota = 10", "quota = 1.5", r"sources\[0\]\.quota"),
        ('model = "m"', 'model = "other"', r"surface 'home' names model 'other', declared are \['m'\]"),
        ("base = 1.0", "base = inf", r"reward"),
        ("click = { base = 1.0 }", "click = 1.0", r"reward\.events"),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_its_key(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert old in MINIMAL
    with pytest.raises(ConfigError, match=named) as raised:
        _load(tmp_path, MINIMAL.replace(old, new, 1))
    assert str(tmp_path / "hone.toml") in str(raised.value)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.toml: No such file"):
        load_config(tmp_path / "nowhere.toml")


def test_what_is_not_toml_is_an_error_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not TOML: .*line 2"):
        _load(tmp_path, "[http]\nport =\n")


def test_the_environment_overrides_single_keys(tmp_path: Path) -> None:
    plain = _load(tmp_path)
    config = _load(
        tmp_path,
        HONE_DATA_DIR="/data",
        HONE_LOG_LEVEL="debug",
        HONE_HTTP__WORKERS="7",
        HONE_STORE__TIMEOUT_S="0.5",
        HONE_SURFACES__HOME__EXPLORATION__RATE="0.25",
        HONE_SURFACES__HOME__AGE_GATE__UNKNOWN_USER_AGE="12",
        HONE_MODELS__M__BITS="20",
        UNRELATED="x",
    )
    assert (config.data_dir, config.log_level, config.http.workers) == ("/data", "debug", 7)
    assert config.store.timeout_s == 0.5
    home = config.surfaces["home"]
    assert home.exploration == msgspec.structs.replace(plain.surfaces["home"].exploration, rate=0.25)
    assert home.age_gate is not None
    assert home.age_gate.unknown_user_age == 12
    assert home.rules == plain.surfaces["home"].rules
    assert config.models["m"].bits == 20


def test_short_names_stand_for_the_keys_that_are_set_most(tmp_path: Path) -> None:
    config = _load(tmp_path, HONE_REDIS_URL="redis://elsewhere:1/0", HONE_PORT="9000", HONE_HOST="0.0.0.0")
    assert (config.store.url, config.http.port, config.http.host) == ("redis://elsewhere:1/0", 9000, "0.0.0.0")


def test_keys_of_other_parts_are_passed_over(tmp_path: Path) -> None:
    assert _load(tmp_path, HONE_CONFIG="x", HONE_CACHE_DIR="y") == _load(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("HONE_HTTP__PROT", "1", "unknown field `prot`"),
        ("HONE_TYPO", "1", "unknown field `typo`"),
        ("HONE_HTTP__PORT", "http", r"\$\.http\.port"),
        ("HONE_PORT", "", r"\$\.http\.port"),
        ("HONE_HTTP", "1", r"\$\.http"),
        ("HONE_DATA_DIR__X", "1", "HONE_DATA_DIR__X: 'data_dir' is not a section"),
        ("HONE_MODELS__M__BITS", "99", r"bits must be in \[10, 28\], got 99"),
        ("HONE_SURFACES__HOME__MODEL", "other", "names model 'other'"),
    ],
)
def test_a_wrong_variable_is_an_error_that_names_it(tmp_path: Path, name: str, text: str, named: str) -> None:
    # `data_dir` is in the file here, as a value and not a section.
    with pytest.raises(ConfigError, match=named) as raised:
        _load(tmp_path, 'data_dir = "var"\n' + MINIMAL, **{name: text})
    assert name in str(raised.value)


def test_the_version_changes_with_what_decides_a_slate_and_with_nothing_else(tmp_path: Path) -> None:
    version = _load(tmp_path).version
    assert _load(tmp_path, HONE_PORT="9000", HONE_DATA_DIR="/data", HONE_LOG_LEVEL="debug").version == version
    for name, text in (
        ("HONE_SURFACES__HOME__EXPLORATION__RATE", "0.2"),
        ("HONE_MODELS__M__BITS", "19"),
        ("HONE_SURFACES__HOME__MAX_N", "7"),
    ):
        assert _load(tmp_path, **{name: text}).version != version


def test_the_default_file_reads_the_same_by_path_and_without_one() -> None:
    assert load_config(DEFAULT_PATH) == load_config()


FEATURE = '[features]\nfeatures = [{ namespace = "%s", name = "f", source = "%s", kind = "recency", %s }]\n'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (FEATURE % ("dynamic", "last_shown_s", "window_s = 86401"), r"'last_shown_s' for 86401 s, the store keeps"),
        (FEATURE % ("user", "since_last_s", "ttl_s = 90000"), r"'since_last_s' for 90000 s"),
        ("[features]\nimpressions_window_s = 90000", r"store.impressions_ttl_s keeps them for 86400 s"),
        ("[features]\nsession_gap_s = 90000", r"session_gap_s must not exceed"),
        ("[features]\nhalf_life_s = 0", r"half_life_s must be positive"),
        (FEATURE % ("user", "since_last_s", "window_s = -1"), r"feature 'f': window_s"),
    ],
)
def test_features_must_not_need_what_the_store_forgets(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        _load(tmp_path, text + "\n" + MINIMAL)


def test_a_feature_may_need_what_the_store_is_told_to_keep(tmp_path: Path) -> None:
    text = FEATURE % ("dynamic", "last_shown_s", "window_s = 90000")
    assert _load(tmp_path, f"{text}\n[store]\nimpressions_ttl_s = 90000\n{MINIMAL}").features.features
