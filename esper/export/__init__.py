"""Loads the grown network of a run as a module, or writes it as a file for use without esper."""
