"""Executes a run: start, rounds, fences, restores, resume, end. The code is the same in one process and on Ray."""
