"""A run directory on disk: its files, what they say, whether they are sound and the run can go on. It runs none."""
