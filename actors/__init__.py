"""A run whose rooms are actors of Ray: handles, supervision, Ray itself. It has no rule of a room."""
