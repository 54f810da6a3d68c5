"""Reads the spans and severe events of a run, which may be in progress or from a stranger. It writes nothing."""
