"""Worlds by name, for commands and tests."""

from __future__ import annotations

import os
from dataclasses import replace

from simulators.datasets.fetch import cache_folder
from simulators.loop_config import ServiceSettings, Training
from simulators.worlds.churn import Churn
from simulators.worlds.clicks import DependentClick
from simulators.worlds.delays import ClickDelay
from simulators.worlds.feedback_effects import Fatigue, PopularityFeedback
from simulators.worlds.movielens import MovieLensTasteSpec
from simulators.worlds.tastes import ClusterTasteSpec
from simulators.worlds.visits import Crowd
from simulators.worlds.world import WorldSpec

# A site where somebody comes five times a second and clicks come within seconds: a few thousand decisions are half an
# hour, and a negative outcome is learned a hundred decisions later.
_CROWD = Crowd(n_users=1_000, gap_s=200.0)
_DELAY = ClickDelay(median_s=3.0)
QUICK_SETTINGS = ServiceSettings(learning_rate=0.05, negative_window_s=20.0, window_s=120.0)
# With vectors some items are better known than others, so that there is something to discover.
TRAINED_SETTINGS = replace(QUICK_SETTINGS, training=Training())


def clustered_world() -> WorldSpec:
    """Return a world that stands still: clusters of users, genres, nothing comes or goes."""
    return WorldSpec(crowd=_CROWD, delay=_DELAY, churn=Churn(n_live=50), n_slots=3)


def churning_world() -> WorldSpec:
    """Return a world where a new item comes every 40 decisions, the oldest goes, and few items carry the clicks.

    A service that shows what has worked loses what works: every item is gone after 2,000 decisions.
    """
    return WorldSpec(
        crowd=_CROWD,
        delay=_DELAY,
        churn=Churn(n_live=50, every_s=8.0),
        n_slots=3,
        tastes=ClusterTasteSpec(n_clusters=3, n_genres=4, base=-2.5, hit_share=0.15, hit=2.5),
    )


def synthetic_world() -> WorldSpec:
    """Return a world where everything moves: churn, drift, seasons, fatigue, popularity, dependent clicks."""
    return WorldSpec(
        crowd=_CROWD,
        delay=_DELAY,
        churn=Churn(n_live=100, every_s=20.0),
        n_slots=5,
        clicks=DependentClick(persistence=0.9, after_click=0.5),
        fatigue=Fatigue(factor=0.9, half_life_s=3_600.0),
        popularity=PopularityFeedback(logit=0.3, half_life_s=3_600.0),
        tastes=ClusterTasteSpec(season=0.3, drift_period_s=14_400.0, hit=2.0),
        sees_history=True,
    )


def movielens_world(cache: str | None = None) -> WorldSpec:
    """Return a world of the people and films of MovieLens 100k.

    Args:
        cache: Folder of downloads; None takes the user's.
    """
    return WorldSpec(
        crowd=Crowd(n_users=943, gap_s=200.0),
        delay=_DELAY,
        churn=Churn(n_live=900),
        n_slots=5,
        tastes=MovieLensTasteSpec(cache=cache or str(cache_folder(os.environ))),
        sees_history=True,
    )


WORLDS = {
    "synthetic": synthetic_world,
    "clustered": clustered_world,
    "churning": churning_world,
    "movielens": movielens_world,
}
