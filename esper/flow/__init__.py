"""Runs a run: begins, trains, holds fences, goes back, resumes, ends. The code is the same in one process and on
Ray."""
