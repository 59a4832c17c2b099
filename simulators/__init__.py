"""Data sets, replay and simulation: callers of the service's own code, never a copy of it."""
