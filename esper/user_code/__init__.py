"""The code that a user brings: how it is found and called, and what state it holds. It trains nothing."""
