"""The whole config of a run: the tables of all rooms joined, and those that belong to none. It imports no torch."""
