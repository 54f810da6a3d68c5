"""Incubation: candidates planned from blueprints, and trained on forks of the host beside a control."""
