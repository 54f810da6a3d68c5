"""The gates G0-G5 and the statistics that they use. They read evidence and touch no network."""
