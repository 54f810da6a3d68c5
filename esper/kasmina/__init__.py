"""Kasmina grows the host: slots, blueprints, admission, lifecycle, gates. Tamiyo chooses the seeds to try."""
