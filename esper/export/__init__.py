"""The grown network out of a run: loaded as a module, or written as a file for use without esper."""
