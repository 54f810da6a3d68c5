"""The host network: its slots, and seeds attached to it, blended in and removed."""
