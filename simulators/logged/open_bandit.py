"""The Open Bandit data set's small sample: logs of two policies of a fashion shop, with true propensities.

Six logs of 10,000 rows: three campaigns, each under uniform random and under Bernoulli Thompson sampling. They hold 38
to 69 clicks each, which proves the arithmetic of an estimator and cannot rank policies.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow.csv
import yaml

from bandit.support import Float64Array
from simulators.datasets.fetch import Dataset, Fetched, Packaging
from simulators.logged.csv_log import ColumnMap
from simulators.logged.schema import LoggedBandit

Campaign = Literal["all", "men", "women"]
LoggingPolicy = Literal["random", "bts"]

N_POSITIONS = 3
N_SIMULATIONS = 100_000
SEED = 12345
_BLOCK = 5_000
# Columns of the publisher's files, of the full logs as of the sample.
CSV_COLUMNS = ColumnMap(
    reward="click", propensity="propensity_score", action="item_id", position="position", time="timestamp"
)

_LOGS = {
    "random-all": "7168295b6e0a9eabcf3392320a5dd434e542b68e705d5cd9491499af589812f1",
    "random-men": "ede6d08c6877f99cd3770f7d09e26c738e6aa6de4445ccccfb1356ba5d06b1eb",
    "random-women": "e65f3bd3beb17664fa69cc129bf7bf852a775f8ffa630506e505fc905315bb34",
    "bts-all": "0ad874e4dbf6902f0845dd478ad8dde5ef6903583d3ffaace78411bdad064106",
    "bts-men": "db6d1f7ed2d591ba521533e45286d4c1fba7fe57a8ad2e80342210335f43c527",
    "bts-women": "e5d1b49a39b608585a2f3014a3f54970430cd37a495c1b73fceb85cdf428a5b8",
}


def _member(log: str) -> str:
    policy, campaign = log.split("-")
    return f"obp/dataset/obd/{policy}/{campaign}/{campaign}.csv"


OPEN_BANDIT = Dataset(
    name="open-bandit",
    title="Open Bandit (small sample)",
    notice=(
        "Open Bandit: ZOZO Technologies, CC BY 4.0, as packaged by its publisher in obp. Cite: Y. Saito, S. Aihara, "
        "M. Matsutani, Y. Narita, Open Bandit Dataset and Pipeline, NeurIPS Datasets and Benchmarks 2021."
    ),
    packagings=(
        Packaging(
            kind="wheel",
            location="obp==0.4.1",
            archive_glob="obp-0.4.1-*.whl",
            members={f"{log}.csv": _member(log) for log in _LOGS}
            | {"prior_bts.yaml": "obp/policy/conf/prior_bts.yaml"},
            sha256={f"{log}.csv": digest for log, digest in _LOGS.items()}
            | {"prior_bts.yaml": "81a54fbdc184021ccc62ab97de81ec35461c032e3d7f99ccaa0a9745f732d251"},
        ),
    ),
)


def read_log(files: Fetched, *, campaign: Campaign, policy: LoggingPolicy) -> LoggedBandit:
    """Read one log, in time order.

    The user features, hashed by the publisher, become indicators; the first value of each is left out. The log names
    no users, so each row is a cluster of its own.

    Raises:
        ValueError: a value is not what the schema allows.
    """
    table = pyarrow.csv.read_csv(files.files[f"{policy}-{campaign}.csv"])
    table = table.sort_by("timestamp")
    indicators = []
    for name in sorted(column for column in table.column_names if column.startswith("user_feature")):
        values, codes = np.unique(table[name].to_numpy(), return_inverse=True)
        indicators.append(np.eye(len(values))[codes][:, 1:])
    actions = table["item_id"].to_numpy().astype(np.int64)
    return LoggedBandit(
        contexts=np.concatenate(indicators, axis=1),
        actions=actions,
        rewards=table["click"].to_numpy().astype(np.float64),
        propensities=table["propensity_score"].to_numpy().astype(np.float64),
        positions=table["position"].to_numpy().astype(np.int64) - 1,
        clusters=np.arange(len(actions)),
        n_actions=len(read_prior(files, campaign=campaign)[0]),
        n_positions=N_POSITIONS,
    )


def read_prior(files: Fetched, *, campaign: Campaign) -> tuple[Float64Array, Float64Array]:
    """Return alpha and beta of each action's click rate, float64 [n_actions], with which the shop's policy began."""
    prior = yaml.safe_load(files.files["prior_bts.yaml"].read_bytes())[campaign]
    return np.array(prior["alpha"], np.float64), np.array(prior["beta"], np.float64)


def thompson_pmf(alpha: Float64Array, beta: Float64Array) -> Float64Array:
    """Return float64 [n_actions, positions]: how often Bernoulli Thompson sampling puts each action at each position.

    A Monte Carlo figure by definition: the published one is 100,000 rankings under numpy's legacy generator with seed
    12345, and other draws give another policy.
    """
    # The figures to be met were drawn from the legacy generator.
    rng = np.random.RandomState(SEED)
    counts = np.zeros((len(alpha), N_POSITIONS))
    for _ in range(N_SIMULATIONS // _BLOCK):
        rates = rng.beta(alpha, beta, size=(_BLOCK, len(alpha)))
        best = rates.argsort(axis=1)[:, : -N_POSITIONS - 1 : -1]
        for position in range(N_POSITIONS):
            counts[:, position] += np.bincount(best[:, position], minlength=len(alpha))
    return counts / N_SIMULATIONS


def uniform_pmf(n_actions: int) -> Float64Array:
    """Return float64 [n_actions, positions], all alike."""
    return np.full((n_actions, N_POSITIONS), 1.0 / n_actions)
