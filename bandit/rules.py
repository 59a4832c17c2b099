"""Business rules: functions of (columns, time, history) that act inside the draw, never after it.

Candidates carry the columns that rules read; a rule never looks anything up, so a log that holds the columns and the
rules is enough to recompute every propensity. Masks forbid, boosts add to the score, placements reserve slots.
"""

from __future__ import annotations

from bandit.boosts import Boost, Diversity, Freshness, Prior, SeenDemotion
from bandit.masks import MaxPer
from bandit.placements import Discovery, Pinned, Placement, Sponsored

Rule = MaxPer | Freshness | Prior | SeenDemotion | Diversity | Discovery | Sponsored | Pinned

__all__ = [
    "Boost",
    "Discovery",
    "Diversity",
    "Freshness",
    "MaxPer",
    "Pinned",
    "Placement",
    "Prior",
    "Rule",
    "SeenDemotion",
    "Sponsored",
]
