"""The host network: finds its slots, and attaches, blends and removes seeds."""
