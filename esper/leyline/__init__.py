"""Contracts that two rooms share: frozen models, enums and ports. No torch, no behaviour."""
