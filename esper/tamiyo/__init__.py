"""Tamiyo decides: what is open, what to try, whether the risk is borne, and the signed command that asks for it."""
