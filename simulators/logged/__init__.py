"""Logs of other systems, read into one schema."""
