"""One slot: what it may hold, best first, its pmf as a mixture of three parts, and the draw from it.

The parts are a mass shared by the tied best actions, a pmf over a shortlist, and a uniform floor over all that is
allowed. The pmf is the marginal over the part, which nothing later reads: the mixture is what is sampled from and what
is logged, never the probability of the part taken. All of it is compiled; the types say what each piece is.
"""

from __future__ import annotations

import numpy as np

from bandit._native import Mixture, SlotDraw, SlotPmf, SlotView, build_pmf, draw_slot, view_slot

__all__ = ["ALL_GREEDY", "Mixture", "SlotDraw", "SlotPmf", "SlotView", "build_pmf", "draw_slot", "view_slot"]

# No exploration: of a greedy policy, and of a slot that a placement fills.
ALL_GREEDY = Mixture(greedy=1.0, shortlist=np.zeros(0), uniform=0.0)
