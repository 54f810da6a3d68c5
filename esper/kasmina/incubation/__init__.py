"""Incubation: plans candidates from blueprints, and trains them on forks of the host beside a control."""
