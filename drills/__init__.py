"""Breaks a run on purpose at a named step and reports what happened. It mocks nothing and picks no random victim."""
