"""The user's code: esper finds and calls it here, and finds its state."""
