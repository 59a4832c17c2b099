"""Choose how to explore: what logs say, what simulated worlds say, and the report of both."""
