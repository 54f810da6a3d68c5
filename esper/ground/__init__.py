"""Helpers that every room may import: clocks, tensors as bytes, random streams, paths, messages about wrong input."""
