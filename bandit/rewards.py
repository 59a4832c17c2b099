"""Turn reported events into rewards, as each surface declares it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

Aggregation = Literal["first", "sum", "mean", "max", "last"]


class EventReward(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one event of a type is worth.

    reward = clip(base + per_unit * value, low, high)

    Attributes:
        base: Worth of the event itself.
        per_unit: Worth of each unit of the event's value (seconds watched, currency paid).
        low: Smallest reward.
        high: Largest reward.
    """

    base: float = 0.0
    per_unit: float = 0.0
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        """Refuse bounds that are not finite or not ordered.

        Raises:
            ValueError: a number is not finite or low exceeds high.
        """
        if not all(map(math.isfinite, (self.base, self.per_unit, self.low, self.high))) or self.low > self.high:
            raise ValueError(f"event reward needs finite numbers and low <= high, got {self}")

    def reward(self, value: float) -> float:
        """Return the reward of an event that carries `value`."""
        return min(max(self.base + self.per_unit * value, self.low), self.high)


class RewardPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the events of one surface become one reward per slot.

    Attributes:
        events: Worth by event type; a type that is not named feeds features and is no reward.
        aggregation: Several rewards of one slot into one; `on_reward` learning allows `first` only.
        default: Reward of a slot that got none.
        learn: `on_reward` learns at the first reward, or with the default when the negative window closes;
            `at_close` learns everything when it closes.
        negative_window_s: How long a slot waits for a reward before it is learned, in seconds.
        window_s: Attribution window in seconds; later rewards are logged and counted as late.
    """

    events: dict[str, EventReward] = {}
    aggregation: Aggregation = "first"
    default: float = 0.0
    learn: Literal["on_reward", "at_close"] = "on_reward"
    negative_window_s: float = 60.0
    window_s: float = 600.0

    def __post_init__(self) -> None:
        """Check that the learning mode fits the aggregation and the windows are ordered.

        Raises:
            ValueError: they do not.
        """
        if self.learn == "on_reward" and self.aggregation != "first":
            raise ValueError(f"learn = on_reward needs aggregation = first, got {self.aggregation!r}")
        if not 0.0 < self.negative_window_s <= self.window_s < math.inf:
            raise ValueError(
                f"need 0 < negative_window_s <= window_s, got {self.negative_window_s} and {self.window_s}"
            )

    def reward(self, event_type: str, value: float) -> float | None:
        """Return what an event is worth, None for a type that is no reward. `reward` is worth its own value."""
        if event_type == "reward":
            return value
        declared: Mapping[str, EventReward] = self.events
        return declared[event_type].reward(value) if event_type in declared else None


def aggregate(rewards: Sequence[float], how: Aggregation) -> float:
    """Aggregate the rewards of one slot, in the order the journal fixed.

    Raises:
        ValueError: there are none; the default reward is the caller's to give.
    """
    if not rewards:
        raise ValueError("rewards must not be empty")
    if how == "first":
        return rewards[0]
    if how == "last":
        return rewards[-1]
    if how == "max":
        return max(rewards)
    total = math.fsum(rewards)
    return total if how == "sum" else total / len(rewards)
