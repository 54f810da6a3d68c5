"""The code of the user: finds it, calls it, and finds its state."""
