"""Finds and calls the user's code, and finds the state of this code."""
