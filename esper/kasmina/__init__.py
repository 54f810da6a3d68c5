"""Carries changes out on the host: slots, blueprints, admission, lifecycle, gates. It never chooses what to try."""
