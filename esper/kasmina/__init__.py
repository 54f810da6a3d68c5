"""Kasmina grows the host: slots, blueprints, admission, lifecycle, gates. Tamiyo chooses what to try."""
