"""Small worlds for off-policy estimators, in which every expectation is a finite sum.

Each world lists its cells: what can happen in one row before the reward. An estimator is a function of rows, so putting
each cell in once, with the mean reward, and averaging by the cells' probabilities gives its exact expectation (for a
ratio, its limit). Drawing cells and rewards gives logs for tests of coverage.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from bandit.estimators import ActionRows, Estimate, marginal_weights, value_of_sums
from bandit.slate_estimators import SlateRows


def exact(estimate: Estimate, probabilities: np.ndarray) -> float:
    """Expectation of an estimate over cells, or the limit of a ratio."""
    return float(value_of_sums(probabilities @ estimate.columns()))


def softmax(scores: np.ndarray) -> np.ndarray:
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


@dataclass(frozen=True)
class ActionWorld:
    """Contexts, actions in clusters of two, and users with several rows who are all a little happier or sadder.

    Attributes:
        direct_effect: how much an action's reward depends on more than its cluster.
        model_error: added to the reward model where the action's cluster is the last.
    """

    direct_effect: float = 0.15
    model_error: float = 0.0
    n_contexts: int = 4
    n_actions: int = 6

    @cached_property
    def tables(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(20)
        shape = (self.n_contexts, self.n_actions)
        clusters = np.arange(self.n_actions) // 2
        by_cluster = (rng.uniform(0.15, 0.5, size=(self.n_contexts, 3)) + np.array([0.0, 0.0, 0.1]))[:, clusters]
        reward = by_cluster + self.direct_effect * np.where(np.arange(self.n_actions) % 2, -1.0, 1.0)
        return {
            "context": softmax(rng.normal(size=self.n_contexts)),
            "logging": 0.3 / self.n_actions + 0.7 * softmax(rng.normal(size=shape)),
            "target": softmax(1.5 * rng.normal(size=shape)),
            "reward": reward,
            "model": reward + self.model_error * (clusters == 2),
            "embedding": np.eye(3)[clusters],
            "cluster": clusters,
        }

    @property
    def truth(self) -> float:
        t = self.tables
        return float(t["context"] @ (t["target"] * t["reward"]).sum(axis=1))

    @property
    def largest_weight(self) -> float:
        return float((self.tables["target"] / self.tables["logging"]).max())

    def cells(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Contexts, actions and probabilities of every cell."""
        contexts, actions = (part.ravel() for part in np.indices((self.n_contexts, self.n_actions)))
        t = self.tables
        return contexts, actions, t["context"][contexts] * t["logging"][contexts, actions]

    def rows(
        self, contexts: np.ndarray, actions: np.ndarray, rewards: np.ndarray, *, by_cluster: bool = False
    ) -> ActionRows:
        t = self.tables
        weights = t["target"][contexts, actions] / t["logging"][contexts, actions]
        if by_cluster:
            weights = marginal_weights(
                t["target"][contexts],
                t["logging"][contexts],
                embedding_pmf=t["embedding"],
                embeddings=t["cluster"][actions],
            )
        return ActionRows(
            rewards,
            weights,
            model_logged=t["model"][contexts, actions],
            model_target=(t["target"] * t["model"]).sum(axis=1)[contexts],
        )

    def cell_rows(self, *, by_cluster: bool = False) -> tuple[ActionRows, np.ndarray]:
        contexts, actions, probabilities = self.cells()
        return self.rows(contexts, actions, self.tables["reward"][contexts, actions], by_cluster=by_cluster), (
            probabilities
        )

    def draw(self, rng: np.random.Generator, n_users: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Draw contexts, actions, rewards and users; one user's rows share context and mood."""
        t = self.tables
        users = np.repeat(np.arange(n_users), rng.integers(1, 6, size=n_users))
        contexts = rng.choice(self.n_contexts, p=t["context"], size=n_users)[users]
        mood = rng.choice([0.7, 1.3], size=n_users)[users]
        steps = np.cumsum(t["logging"], axis=1)[contexts]
        actions = np.minimum((rng.random(len(users))[:, None] > steps).sum(axis=1), self.n_actions - 1)
        rewards = (rng.random(len(users)) < t["reward"][contexts, actions] * mood).astype(np.float64)
        return contexts, actions, rewards, users


# Items 2 and 3 lift their neighbours; the target policy prefers them, the logging policy does not.
GOOD_COMPANY = np.array([False, False, True, True])
SCORES = np.array([[[1.0, 0.4, 0.0, -0.3], [0.2, 0.9, -0.6, 0.1]], [[-0.5, 0.3, 1.0, 0.7], [0.1, -0.2, 0.4, 1.1]]])
OWN_REWARD = np.array([[0.25, 0.5, 0.35, 0.6], [0.55, 0.3, 0.6, 0.2]])


@dataclass(frozen=True)
class SlateWorld:
    """Two contexts, a logged discovery coin, and three of four items drawn without replacement.

    Attributes:
        attention: which items change the reward of a slot: "own" alone, those "above" too, or those "below" too.
        model_error: factor on the true value-to-go, less 1.
    """

    attention: str = "own"
    model_error: float = 0.0
    n_items: int = 4
    n_slots: int = 3

    @property
    def position_weights(self) -> np.ndarray:
        return np.array([1.0, 0.7, 0.5])

    def _conditional(self, policy: int, context: int, coin: int, prefix: tuple[int, ...]) -> np.ndarray:
        """Pmf of the next item; the coin lifts the good company in slot 1."""
        scores = SCORES[policy, context] + (1.5 * GOOD_COMPANY if coin and len(prefix) == 1 else 0.0)
        scores[list(prefix)] = -np.inf
        return softmax(scores)

    @property
    def coins(self) -> np.ndarray:
        """P(coin) by policy: logging, target."""
        return np.array([[0.5, 0.5], [0.2, 0.8]])

    def _mean_reward(self, context: int, slate: tuple[int, ...], slot: int) -> float:
        reward = float(OWN_REWARD[context, slate[slot]])
        if self.attention == "above" and slot > 0:
            reward *= 1.5 if GOOD_COMPANY[slate[slot - 1]] else 0.4
        if self.attention == "below" and slot < self.n_slots - 1:
            reward *= 1.5 if GOOD_COMPANY[slate[slot + 1]] else 0.4
        return reward

    @cached_property
    def cells(self) -> list[tuple[int, int, tuple[int, ...]]]:
        slates = itertools.permutations(range(self.n_items), self.n_slots)
        return [(context, coin, slate) for slate in slates for context in (0, 1) for coin in (0, 1)]

    @cached_property
    def tables(self) -> dict[str, np.ndarray]:
        """By cell: slot pmf values of both policies [policy, n, S], mean rewards [n, S], marginal weights, model."""
        n = len(self.cells)
        slot = np.empty((2, n, self.n_slots))
        for i, (context, coin, slate) in enumerate(self.cells):
            for policy, k in itertools.product((0, 1), range(self.n_slots)):
                slot[policy, i, k] = self._conditional(policy, context, coin, slate[:k])[slate[k]]
        contexts = np.array([context for context, _, _ in self.cells])
        coins = np.array([coin for _, coin, _ in self.cells])
        slates = np.array([slate for _, _, slate in self.cells])
        probability = 0.5 * self.coins[:, coins] * slot.prod(axis=2)
        marginal = np.empty((2, n, self.n_slots))
        for i, k in itertools.product(range(n), range(self.n_slots)):
            alike = (contexts == contexts[i]) & (slates[:, k] == slates[i, k])
            marginal[:, i, k] = probability[:, alike].sum(axis=1)
        means = [[self._mean_reward(x, slate, k) for k in range(self.n_slots)] for x, _, slate in self.cells]
        to_go = [[self._value_to_go(x, d, slate[: k + 1]) for k in range(self.n_slots)] for x, d, slate in self.cells]
        ahead = [[self._expected_to_go(x, d, slate[:k]) for k in range(self.n_slots)] for x, d, slate in self.cells]
        return {
            "probability": probability,
            "slot": slot,
            "discovery": self.coins[1, coins] / self.coins[0, coins],
            "marginal": marginal[1] / marginal[0],
            "reward": np.array(means),
            "model_logged": np.array(to_go),
            "model_target": np.array(ahead),
        }

    def _value_to_go(self, context: int, coin: int, prefix: tuple[int, ...]) -> float:
        """Model of what slots len(prefix) - 1 and later earn under the target policy, wrong by the model error."""
        k = len(prefix) - 1
        filled = prefix + tuple(item for item in range(self.n_items) if item not in prefix)
        here = self.position_weights[k] * self._mean_reward(context, filled, k)
        later = self._expected_to_go(context, coin, prefix) if k < self.n_slots - 1 else 0.0
        return here * (1.0 + self.model_error) + later

    def _expected_to_go(self, context: int, coin: int, prefix: tuple[int, ...]) -> float:
        pmf = self._conditional(1, context, coin, prefix)
        return sum(pmf[item] * self._value_to_go(context, coin, (*prefix, item)) for item in np.flatnonzero(pmf))

    @property
    def truth(self) -> float:
        t = self.tables
        return float(t["probability"][1] @ (t["reward"] @ self.position_weights))

    def rows(self, cells: np.ndarray, rewards: np.ndarray) -> SlateRows:
        t = self.tables
        weights = t["slot"][1, cells] / t["slot"][0, cells]
        return SlateRows(rewards, weights, self.position_weights, t["discovery"][cells])

    def cell_rows(self) -> tuple[SlateRows, np.ndarray]:
        return self.rows(np.arange(len(self.cells)), self.tables["reward"]), self.tables["probability"][0]

    def draw(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw cells and rewards."""
        t = self.tables
        cells = rng.choice(len(self.cells), p=t["probability"][0], size=n)
        return cells, (rng.random((n, self.n_slots)) < t["reward"][cells]).astype(np.float64)


@cache
def slate_world(attention: str, model_error: float = 0.0) -> SlateWorld:
    """A world whose tables are computed once."""
    return SlateWorld(attention=attention, model_error=model_error)
