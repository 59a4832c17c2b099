"""The transient optimism of `on_reward`, measured: what new items are believed to earn, through joiner and learner.

Rewards are learned when they come, missing ones when the negative window closes. So the outcomes of an item that has
just appeared are its rewards alone at first, and it is believed better than it is for up to a window. `at_close` learns
both when the window closes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bandit.joining import Joiner, JoinEvent
from bandit.learner import Learner
from bandit.policy import ActionFeatures, ModelSpec, WeightTable
from bandit.rewards import EventReward, RewardPolicy
from bandit.vw_format import Encoded, encode


@dataclass(frozen=True, slots=True)
class NewItems:
    """A stream of single-item decisions about items that appear together.

    Attributes:
        n_items: How many.
        click_rate: Of each.
        negative_window_s: T_neg.
        mean_delay_s: Of a click after its decision, exponential.
        decisions_per_window: Of each item in one negative window.
        n_windows: How long the stream is.
        learning_rate: VW's `-l`.
        seed: Of the stream.
    """

    n_items: int = 40
    click_rate: float = 0.1
    negative_window_s: float = 30.0
    mean_delay_s: float = 8.0
    decisions_per_window: int = 250
    n_windows: int = 4
    learning_rate: float = 0.02
    seed: int = 11


def optimism_curve(
    world: NewItems, learn: Literal["on_reward", "at_close"], *, points_per_window: int = 4
) -> list[tuple[float, float]]:
    """Return (time in negative windows, mean over items of estimated minus true reward), at even times.

    The stream is the same for both modes. An item about which nothing was learned is estimated at 0.
    """
    window_ms = int(world.negative_window_s * 1000)
    policy = RewardPolicy(
        events={"click": EventReward(base=1.0)},
        learn=learn,
        negative_window_s=world.negative_window_s,
        window_s=10 * world.negative_window_s,
    )
    spec = ModelSpec(bits=16, learning_rate=world.learning_rate, interactions=(), schema_version="optimism")
    items = [encode("item", {f"id={n}": 1.0}) for n in range(world.n_items)]
    learner, joiner = Learner(spec), Joiner[int](pending_ms=window_ms)
    moments = [round(window_ms * n / points_per_window) for n in range(1, points_per_window * world.n_windows + 1)]
    curve = []
    for sequence, (at_ms, kind, decision, item) in enumerate(_stream(world, moments)):
        position = (at_ms, 0, sequence)
        if kind == "decision":
            joined = joiner.add_decision(
                position,
                event_id=str(decision),
                policy=policy,
                item_ids=[str(item)],
                user_key="",
                learnable=[True],
                payload=item,
            )
        elif kind == "click":
            click = JoinEvent(str(decision), "click", str(decision), "", None, 0, 1.0)
            joined = joiner.add_event(position, click)
        else:
            joined = joiner.advance(at_ms)
        for outcome in joined:
            if outcome.kind != "late":
                learner.learn({}, {"item": items[outcome.payload]}, reward=outcome.reward, propensity=1.0)
        if kind == "look":
            curve.append((at_ms / window_ms, float(np.mean(_estimates(learner, items))) - world.click_rate))
    return curve


def bench_optimism() -> dict[str, Any]:
    """Measure both modes on the same stream."""
    world = NewItems()
    curves = {mode: optimism_curve(world, mode) for mode in ("on_reward", "at_close")}
    return {
        "click_rate": world.click_rate,
        "negative_window_s": world.negative_window_s,
        "n_items": world.n_items,
        "error_by_windows": {
            mode: {f"{at:g}": round(error, 4) for at, error in curve} for mode, curve in curves.items()
        },
        "largest_error": {mode: round(max(error for _, error in curve), 4) for mode, curve in curves.items()},
    }


def _stream(world: NewItems, moments: Sequence[int]) -> list[tuple[int, str, int, int]]:
    """Return (ms, decision, click or look, decision number, item), in order of time."""
    rng = np.random.default_rng(world.seed)
    n = world.n_items * world.decisions_per_window * world.n_windows
    window_ms = world.negative_window_s * 1000
    shown_ms = np.sort(rng.integers(0, int(window_ms * world.n_windows), n))
    clicked = rng.random(n) < world.click_rate
    # A click after the window is late in both modes; it would make the learned rate another than the true one.
    delays_ms = np.minimum(rng.exponential(world.mean_delay_s * 1000, n), window_ms - 1).astype(np.int64)
    items = rng.integers(0, world.n_items, n)
    happened = [(int(at), "decision", k, int(item)) for k, (at, item) in enumerate(zip(shown_ms, items, strict=True))]
    happened += [(int(shown_ms[k] + delays_ms[k]), "click", int(k), int(items[k])) for k in np.flatnonzero(clicked)]
    happened += [(at, "look", 0, 0) for at in moments]
    end_ms = moments[-1]
    # By time; a decision stands before its click, and a look after both.
    order = {"decision": 0, "click": 1, "look": 2}
    return sorted((h for h in happened if h[0] <= end_ms), key=lambda h: (h[0], order[h[1]], h[2]))


def _estimates(learner: Learner, items: Sequence[Encoded]) -> np.ndarray[Any, np.dtype[np.float32]]:
    table = WeightTable(learner.spec)
    weights = learner.all_weights()
    table.apply(weights.indices, weights.values, version=1)
    return table.score({}, {"item": ActionFeatures.stack(items)})
