"""Executes a run from its start or resume to its end. The code is the same in one process and on Ray."""
