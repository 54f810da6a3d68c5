"""Runs whose components are Ray actors. Here are the handles of the actors, their supervision, and the start of Ray."""
