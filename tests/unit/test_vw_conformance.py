"""Learning and scoring through the project's own examples is the VW command line on the same data."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from vowpal_wabbit_next import CBLabel, Workspace, run_cli_driver

from bandit.explorer import Explorer, ExplorerSpec, parse_explorer_arguments
from bandit.learner import Learner
from bandit.policy import ActionFeatures, ModelSpec
from bandit.vw_format import (
    ACTION_NAMESPACES,
    NAMESPACE_LETTERS,
    Encoded,
    ExamplePool,
    encode,
    has_one_table,
    learn_example,
    predict_costs,
    table_arguments,
    weight_table,
)

INTERACTIONS = (("context", "item"), ("user", "dynamic"))
BITS = 12
# VW adds its constant to our examples after the features, its parser before them: sums differ by rounding.
TOLERANCE = 2e-6

COST_TYPES = ["ips", "dm", "dr", "mtr", "sm"]
EXPLORERS = [
    "--bag 5",
    "--bag 5 --greedify",
    "--cover 3",
    "--rnd 3",
    "--regcb",
    "--regcb --regcbopt",
    "--squarecb",
    "--first 100",
    "--first 900",
    "--epsilon 0.1",
    "--softmax --lambda 3",
    "--epsilon 0.1 --cb_type dr",
]
every_explorer = pytest.mark.parametrize("options", EXPLORERS)
Named = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Outcome:
    """One labelled multi-line example; numbers are eighths, which VW's text parser reads exactly."""

    shared: Named
    actions: list[Named]
    chosen: int
    reward: float
    propensity: float

    def text(self) -> str:
        label = f"0:{-self.reward!r}:{self.propensity!r} "
        rows = [(label if row == self.chosen else "") + _text(action) for row, action in enumerate(self.actions)]
        return "\n".join(["shared " + _text(self.shared), *rows, "", ""])

    def encoded(self) -> tuple[dict[str, Encoded], list[dict[str, Encoded]]]:
        return _encoded(self.shared), [_encoded(action) for action in self.actions]


def _text(named: Named) -> str:
    groups = ((NAMESPACE_LETTERS[name], features) for name, features in named.items() if features)
    return " ".join(f"|{letter} " + " ".join(f"{k}:{v!r}" for k, v in features.items()) for letter, features in groups)


def _encoded(named: Named) -> dict[str, Encoded]:
    return {name: encode(name, features) for name, features in named.items()}


def _outcomes(n: int, seed: int) -> list[Outcome]:
    rng = np.random.default_rng(seed)

    def features(least: int, most: int) -> dict[str, float]:
        values = rng.choice([-1.5, 0.125, 0.375, 1.0, 1.0, 2.0], size=rng.integers(least, most + 1))
        return {f"f{rng.integers(30)}": float(value) for value in values}

    found = []
    for _ in range(n):
        actions: list[Named] = [{"item": features(1, 3), "dynamic": features(0, 2)} for _ in range(rng.integers(1, 7))]
        found.append(
            Outcome(
                shared={"context": features(0, 3), "user": features(0, 3), "position": {"slot=1": 1.0}},
                actions=actions,
                chosen=int(rng.integers(len(actions))),
                reward=float(rng.choice([0.0, 1.0, 0.5, -0.25])),
                propensity=float(rng.choice([0.125, 0.25, 0.5, 1.0])),
            )
        )
    return found


TRAINING, PROBES = _outcomes(400, seed=1), _outcomes(100, seed=2)


def _train_by_command_line(arguments: list[str], folder: Path) -> bytes:
    (folder / "train.txt").write_text("".join(outcome.text() for outcome in TRAINING))
    run_cli_driver(["-d", "train.txt", "-f", "model.vw", *arguments], onethread=True, cwd=folder)
    return (folder / "model.vw").read_bytes()


def _predict_by_command_line(folder: Path) -> list[dict[int, float]]:
    # Lines without a label, so that nothing is learned. With `-t` VW's learning rate is 0, which RegCB's bounds go by.
    (folder / "probe.txt").write_text("".join(replace(outcome, chosen=-1).text() for outcome in PROBES))
    arguments = ["-d", "probe.txt", "-i", "model.vw", "-p", "out.txt", "-l", "0.05", "--quiet"]
    run_cli_driver(arguments, onethread=True, cwd=folder)
    lines = (line.split(",") for line in (folder / "out.txt").read_text().splitlines() if line)
    return [{int(pair.split(":")[0]): float(pair.split(":")[1]) for pair in line} for line in lines]


def _predictions(workspace: Workspace) -> np.ndarray:
    pool = ExamplePool()
    rows = []
    for probe in PROBES:
        pairs = predict_costs(workspace, pool.fill(*probe.encoded()))
        rows += [value for _, value in sorted(pairs)]
    return np.array(rows)


@pytest.mark.parametrize("cost_type", COST_TYPES)
def test_learning_and_scoring_all_actions_equals_the_command_line(cost_type: str, tmp_path: Path) -> None:
    arguments = ["--cb_adf", "--cb_type", cost_type]
    arguments += table_arguments(INTERACTIONS, learning_rate=0.05, bits=BITS)
    theirs = Workspace(model_data=_train_by_command_line(arguments, tmp_path))
    ours, pool = Workspace(arguments), ExamplePool()
    for outcome in TRAINING:
        label = CBLabel(label=(-outcome.reward, outcome.propensity))
        learn_example(ours, pool.fill(*outcome.encoded(), chosen=outcome.chosen, label=label))
    predictions = _predictions(ours)
    assert np.ptp(predictions) > 0.1
    assert np.abs(predictions - _predictions(theirs)).max() <= TOLERANCE
    if has_one_table(arguments):
        weights = weight_table(ours, arguments)[:, 0]
        assert np.count_nonzero(weights) > 500
        assert np.abs(weights - weight_table(theirs, arguments)[:, 0]).max() <= TOLERANCE


@pytest.mark.parametrize(("baseline", "power_t"), [(True, 0.0), (False, 0.0), (True, 0.5)])
def test_the_learner_equals_the_command_line_on_one_action_examples(
    baseline: bool, power_t: float, tmp_path: Path
) -> None:
    spec = ModelSpec(BITS, 0.05, INTERACTIONS, "v", baseline, power_t)
    learner = Learner(spec)
    single = [Outcome(o.shared, [o.actions[o.chosen]], 0, o.reward, o.propensity) for o in TRAINING]
    for outcome in single:
        shared, (action,) = outcome.encoded()
        learner.learn(shared, action, reward=outcome.reward, propensity=outcome.propensity)
    (tmp_path / "train.txt").write_text("".join(outcome.text() for outcome in single))
    run_cli_driver(["-d", "train.txt", "-f", "model.vw", *spec.arguments()], onethread=True, cwd=tmp_path)
    theirs = Workspace(model_data=(tmp_path / "model.vw").read_bytes())
    change = learner.all_weights()
    expected = weight_table(theirs, spec.arguments())[:, 0]
    assert len(change.indices) > 500
    differences = np.abs(expected[change.indices] - change.values)
    # A rate that falls with the gradients is largest where there were next to none: there it magnifies rounding.
    assert (differences <= TOLERANCE).mean() > (0.95 if power_t else 1.0 - 1e-12)
    assert differences.max() <= (1e-3 if power_t else TOLERANCE)
    assert np.count_nonzero(expected) == len(change.indices)


def _explorer(options: str, model_bytes: bytes | None = None) -> Explorer:
    arguments = parse_explorer_arguments(f"--cb_explore_adf {options}")
    spec = ExplorerSpec(arguments, BITS, learning_rate=0.05, interactions=INTERACTIONS, schema_version="v")
    return Explorer(spec, model_bytes)


def _teach(explorer: Explorer, outcomes: list[Outcome]) -> None:
    for o in outcomes:
        explorer.learn(*o.encoded(), chosen=o.chosen, reward=o.reward, propensity=o.propensity)


@every_explorer
def test_an_explorer_learns_and_gives_the_pmf_of_the_command_line(options: str, tmp_path: Path) -> None:
    ours = _explorer(options)
    model = _train_by_command_line(ours.spec.command(), tmp_path)
    _teach(ours, TRAINING)
    theirs = _explorer(options, model)
    printed = _predict_by_command_line(tmp_path)
    assert len(printed) == len(PROBES)
    n_printed_alike = 0
    for probe, line in zip(PROBES, printed, strict=True):
        pmf = ours.pmf(*probe.encoded())
        assert abs(pmf.sum() - 1.0) < 1e-12
        assert np.abs(pmf - theirs.pmf(*probe.encoded())).max() <= TOLERANCE
        # The command line prints six digits; regcbopt's do not sum to 1.
        raw = np.array([line[action] for action in range(len(pmf))])
        n_printed_alike += bool(np.abs(pmf - raw / raw.sum()).max() <= 2 * TOLERANCE)
    if "--rnd" in options:
        # VW's command line prints other numbers than VW's library for one and the same model file and text.
        return
    # regcb gives mass to what may be best: a step function, which rounding can move.
    assert n_printed_alike >= (98 if "--regcb" in options else 100)


@every_explorer
def test_an_explorer_survives_being_serialised(options: str) -> None:
    ours = _explorer(options)
    _teach(ours, TRAINING[:150])
    loaded = _explorer(options, ours.serialize())
    for probe in PROBES[:30]:
        assert loaded.pmf(*probe.encoded()).tolist() == ours.pmf(*probe.encoded()).tolist()


def test_a_spoiled_mask_would_be_seen(tmp_path: Path) -> None:
    """`--rnd` draws first weights from masked indices; with VW's unmasked hashes it is another model."""
    explorer = _explorer("--rnd 3")
    theirs = _explorer("--rnd 3", _train_by_command_line(explorer.spec.command(), tmp_path))
    explorer._mask = np.uint32(0xFFFFFFFF)
    _teach(explorer, TRAINING)
    gaps = [np.abs(explorer.pmf(*p.encoded()) - theirs.pmf(*p.encoded())).max() for p in PROBES]
    assert max(gaps) > 1e-3


def test_regcb_learns_from_rewards_though_vw_takes_costs_to_be_positive() -> None:
    shares = []
    for costs in ("", " --cb_min_cost 0 --cb_max_cost 1"):
        explorer = _explorer("--regcb --mellowness 0.0001" + costs)
        actions = [{"item": encode("item", {name: 1.0})} for name in ("good", "bad")]
        for turn in range(200):
            explorer.learn({}, actions, chosen=turn % 2, reward=1.0 - turn % 2, propensity=0.5)
        shares.append(explorer.pmf({}, actions)[0])
    assert shares[0] == 1.0
    # In VW's own range what earns 1 and what earns 0 are one and the same.
    assert shares[1] == 0.5


def _child(script: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=root, timeout=60
    )


@pytest.mark.parametrize("options", ["--cb_adf --cb_type dr", *(f"--cb_explore_adf {o}" for o in EXPLORERS)])
def test_reading_weights_is_refused_or_safe_and_never_ends_the_process(options: str) -> None:
    child = _child(f"""
        from vowpal_wabbit_next import Workspace
        from bandit.vw_format import weight_table
        arguments = {options.split()!r} + ["-b", "18", "--quiet"]
        workspace = Workspace(arguments)
        try:
            print("read", float(weight_table(workspace, arguments).sum()))
        except ValueError as error:
            print("refused", error)
    """)
    assert child.returncode == 0, child.stderr
    several = any(word in options for word in ("dr", "--bag", "--cover", "--rnd"))
    assert child.stdout.split()[0] == ("refused" if several else "read")


def test_a_model_whose_header_names_several_tables_is_refused_whatever_the_arguments_say() -> None:
    child = _child("""
        from vowpal_wabbit_next import Workspace
        from bandit.learner import Learner
        from bandit.policy import ModelSpec
        from bandit.vw_format import weight_table
        spec = ModelSpec(bits=18, learning_rate=0.1, interactions=(), schema_version="v")
        for options in (["--cb_adf", "--cb_type", "dr"], ["--cb_explore_adf", "--bag", "5"]):
            data = Workspace([*options, "-b", "18", "--quiet"]).serialize()
            for read in (
                lambda: weight_table(Workspace(model_data=data), spec.arguments()),
                lambda: Learner(spec, data),
            ):
                try:
                    read()
                except ValueError as error:
                    print("refused")
    """)
    assert (child.returncode, child.stdout.split()) == (0, ["refused"] * 4), child.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--cb_adf --cb_type mtr -b 18 -q CI --power_t 0 -l 0.1 --quiet", True),
        ("--cb_adf", True),
        ("--cb_adf --cb_type=dr", False),
        ("--cb_adf --cb_type", False),
        ("--cb_explore_adf --cb_type dm --epsilon 0.1", True),
        ("--cb_explore_adf --bag=5", False),
        ("--cb_explore_adf --squarecb --gamma_scale 10", True),
        ("--cb_adf -l -0.5", True),
        ("--ccb_explore_adf", False),
        ("--cb_adf --boosting 3", False),
    ],
)
def test_the_arguments_alone_say_whether_the_weights_are_one_table(arguments: str, expected: bool) -> None:
    assert has_one_table(arguments.split()) is expected


def test_a_shortlist_is_given_in_any_order_and_actions_are_built_once() -> None:
    explorer = _explorer("--softmax --lambda 3")
    _teach(explorer, TRAINING)
    probe = next(o for o in PROBES if len(o.actions) >= 5)
    shared, actions = probe.encoded()
    features = {n: ActionFeatures.stack([action[n] for action in actions]) for n in ACTION_NAMESPACES}
    request = explorer.ask(shared, features)
    for shortlist in ([0, 1, 2], [4, 2], [3], [2, 4, 0, 1, 3]):
        got = request.pmf(np.array(shortlist))
        fresh = _explorer("--softmax --lambda 3", explorer.serialize())
        assert got.tolist() == fresh.pmf(shared, [actions[a] for a in shortlist]).tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--bag 5", "must have --cb_explore_adf"),
        ("--cb_explore_adf -f /etc/passwd", "'-f' cannot be set"),
        ("--cb_explore_adf --final_regressor=/tmp/x", "cannot be set"),
        ("--cb_explore_adf -b 30", "'-b' cannot be set"),
        ("--cb_explore_adf --bag", "followed by its value, got nothing"),
        ("--cb_explore_adf --bag --regcb", "followed by its value, got '--regcb'"),
    ],
)
def test_arguments_that_are_not_about_exploration_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_explorer_arguments(text)


def test_a_model_of_other_arguments_is_refused() -> None:
    model = _explorer("--bag 3").serialize()
    with pytest.raises(ValueError, match="bag"):
        _explorer("--bag 5", model)
    with pytest.raises(ValueError, match="explorer"):
        _explorer("--cover 3", model)
