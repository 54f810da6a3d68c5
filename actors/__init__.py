"""Runs with Ray actors as components: handles, supervision, and Ray itself."""
