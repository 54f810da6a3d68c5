"""A run directory on disk: its files, what they say, and whether they are sound. It never runs a run."""
