"""Worlds whose truth is known: who comes, what there is, what is liked, how a slate is looked at."""
