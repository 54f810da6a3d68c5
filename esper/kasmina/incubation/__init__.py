"""Incubation: plans candidates from blueprints, trains them on forks of the host, and trains a control."""
