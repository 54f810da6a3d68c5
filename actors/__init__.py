"""The same flow across processes: thin actors, typed handles, supervision, the conductor. No rule of a room is here."""
