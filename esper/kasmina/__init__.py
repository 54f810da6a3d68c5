"""Kasmina grows the host. It has the slots, the blueprints, the admission of commands, the lifecycle of seeds, and the
gates. Tamiyo chooses the seeds to try.
"""
