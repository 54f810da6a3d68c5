"""Tamiyo decides what to grow: finds eligible pairs, calls the policy, applies limits of risk, and signs commands."""
