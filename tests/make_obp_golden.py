"""Golden figures of the Open Bandit Pipeline, against which our estimators are compared.

Its dependencies are heavy, so it runs apart, once, in an environment of its own:

    python -m venv /tmp/obp && /tmp/obp/bin/pip install obp==0.4.1
    /tmp/obp/bin/pip install --no-deps --ignore-requires-python obp==0.5.7
    /tmp/obp/bin/python -m tests.make_obp_golden

0.5.7 has the estimators that 0.4.1 lacks (marginalised weights, Cascade-DR, self-normalised slates) and the same data;
it runs with the dependencies of 0.4.1. The inputs below are made with numpy alone, so that tests make them again.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_name("obp_golden.json")
CLIP, THRESHOLD, SHRINKAGE = 1.5, 1.25, 3.0


def _pmf(rng: np.random.Generator, *shape: int) -> np.ndarray:
    masses = 0.1 + rng.random(shape)
    return masses / masses.sum(axis=-1, keepdims=True)


def _choose(pmf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    uniforms = rng.random(pmf.shape[:-1])[..., None]
    return np.minimum((np.cumsum(pmf, axis=-1) < uniforms).sum(axis=-1), pmf.shape[-1] - 1)


def action_inputs() -> dict[str, np.ndarray]:
    """Single actions at positions: pmfs and model are [n, positions, actions]."""
    rng = np.random.default_rng(101)
    n, n_actions, n_positions, n_embeddings = 300, 5, 3, 4
    logging, target = _pmf(rng, n, n_positions, n_actions), _pmf(rng, n, n_positions, n_actions)
    position = np.arange(n) % n_positions
    rows = np.arange(n)
    action = _choose(logging[rows, position], rng)
    embedding_pmf = _pmf(rng, n_actions, n_embeddings)
    return {
        "logging": logging,
        "target": target,
        "model": rng.random((n, n_positions, n_actions)),
        "position": position,
        "action": action,
        "reward": (rng.random(n) < 0.4).astype(np.float64),
        "embedding_pmf": embedding_pmf,
        "embedding": _choose(embedding_pmf[action], rng),
    }


def slate_inputs() -> dict[str, np.ndarray]:
    """Slates with conditional pmfs [n, slots, actions], and made-up marginals of the logged actions [n, slots]."""
    rng = np.random.default_rng(103)
    n, n_slots, n_actions = 200, 3, 5
    logging, target = _pmf(rng, n, n_slots, n_actions), _pmf(rng, n, n_slots, n_actions)
    return {
        "logging": logging,
        "target": target,
        "action": _choose(logging, rng),
        "reward": (rng.random((n, n_slots)) < 0.4).astype(np.float64),
        "marginal_logging": 0.1 + 0.9 * rng.random((n, n_slots)),
        "marginal_target": 0.1 + 0.9 * rng.random((n, n_slots)),
        "model": rng.random((n, n_slots, n_actions)),
    }


def _of_actions() -> dict[str, float]:
    from obp import ope

    given = action_inputs()
    n = len(given["action"])
    rows = np.arange(n)
    by_action = {name: np.swapaxes(given[name], 1, 2) for name in ("logging", "target", "model")}
    common = {
        "reward": given["reward"],
        "action": given["action"],
        "position": given["position"],
        "action_dist": by_action["target"],
        "pscore": given["logging"][rows, given["position"], given["action"]],
    }
    model = {**common, "estimated_rewards_by_reg_model": by_action["model"]}
    embedded = {
        "context": np.zeros((n, 1)),
        "action_embed": given["embedding"][:, None],
        "pi_b": by_action["logging"],
        "p_e_a": given["embedding_pmf"][:, :, None],
    }
    n_actions = given["logging"].shape[2]
    found = {
        "ips": ope.InverseProbabilityWeighting().estimate_policy_value(**common),
        "clipped_ips": ope.InverseProbabilityWeighting(lambda_=CLIP).estimate_policy_value(**common),
        "snips": ope.SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**common),
        "dm": ope.DirectMethod().estimate_policy_value(**model),
        "dr": ope.DoublyRobust().estimate_policy_value(**model),
        "sndr": ope.SelfNormalizedDoublyRobust().estimate_policy_value(**model),
        "switch_dr": ope.SwitchDoublyRobust(lambda_=THRESHOLD).estimate_policy_value(**model),
        "dr_os": ope.DoublyRobustWithShrinkage(lambda_=SHRINKAGE).estimate_policy_value(**model),
        "mips": ope.MarginalizedInverseProbabilityWeighting(n_actions=n_actions).estimate_policy_value(
            **common, **embedded
        ),
    }
    return {name: float(value) for name, value in found.items()}


def _of_slates() -> dict[str, float]:
    from obp import ope

    given = slate_inputs()
    n, n_slots, n_actions = given["logging"].shape
    rows, slots = np.indices((n, n_slots))
    logging, target = (given[name][rows, slots, given["action"]] for name in ("logging", "target"))
    common = {
        "slate_id": rows.ravel(),
        "position": slots.ravel(),
        "reward": given["reward"].ravel(),
    }
    whole = {
        "pscore": np.repeat(logging.prod(axis=1), n_slots),
        "evaluation_policy_pscore": np.repeat(target.prod(axis=1), n_slots),
    }
    marginal = {
        "pscore_item_position": given["marginal_logging"].ravel(),
        "evaluation_policy_pscore_item_position": given["marginal_target"].ravel(),
    }
    cascade = {
        "pscore_cascade": logging.cumprod(axis=1).ravel(),
        "evaluation_policy_pscore_cascade": target.cumprod(axis=1).ravel(),
    }
    found = {
        "slate_ips": ope.SlateStandardIPS(len_list=n_slots).estimate_policy_value(**common, **whole),
        "sn_slate_ips": ope.SelfNormalizedSlateStandardIPS(len_list=n_slots).estimate_policy_value(**common, **whole),
        "iips": ope.SlateIndependentIPS(len_list=n_slots).estimate_policy_value(**common, **marginal),
        "sn_iips": ope.SelfNormalizedSlateIndependentIPS(len_list=n_slots).estimate_policy_value(**common, **marginal),
        "rips": ope.SlateRewardInteractionIPS(len_list=n_slots).estimate_policy_value(**common, **cascade),
        "sn_rips": ope.SelfNormalizedSlateRewardInteractionIPS(len_list=n_slots).estimate_policy_value(
            **common, **cascade
        ),
        "cascade_dr": ope.SlateCascadeDoublyRobust(len_list=n_slots, n_unique_action=n_actions).estimate_policy_value(
            **common,
            **cascade,
            action=given["action"].ravel(),
            q_hat=given["model"].ravel(),
            evaluation_policy_action_dist=given["target"].ravel(),
        ),
    }
    return {name: float(value) for name, value in found.items()}


def _of_open_bandit() -> dict[str, dict[str, float]]:
    """Bernoulli Thompson sampling from the uniform logs, as the pipeline's quick start does it."""
    import obp
    import pandas
    from obp import ope
    from obp.policy import BernoulliTS

    found = {}
    for campaign, n_actions in (("all", 80), ("men", 34), ("women", 46)):
        path = Path(obp.__file__).parent / "dataset" / "obd" / "random" / campaign / f"{campaign}.csv"
        log = pandas.read_csv(path, index_col=0).sort_values("timestamp")
        policy = BernoulliTS(
            n_actions=n_actions, len_list=3, is_zozotown_prior=True, campaign=campaign, random_state=12345
        )
        given = {
            "reward": log["click"].to_numpy(),
            "action": log["item_id"].to_numpy(),
            "position": log["position"].to_numpy() - 1,
            "pscore": log["propensity_score"].to_numpy(),
            "action_dist": policy.compute_batch_action_dist(n_sim=100_000, n_rounds=len(log)),
        }
        found[campaign] = {
            "ips": float(ope.InverseProbabilityWeighting().estimate_policy_value(**given)),
            "snips": float(ope.SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**given)),
        }
    return found


def main() -> None:
    import obp

    figures = {
        "obp": obp.__version__,
        "actions": _of_actions(),
        "slates": _of_slates(),
        "open_bandit": _of_open_bandit(),
    }
    GOLDEN.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
