"""Helpers that every room may use: clocks, tensors as bytes, random streams, paths, messages about wrong input."""
