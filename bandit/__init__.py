"""Decide, exactly: features, scores, pmfs, rules, slates, rewards, learning. Pure: no I/O, no clock, no global RNG."""
