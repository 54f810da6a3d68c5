"""Tamiyo decides what to grow: eligible pairs, the policy's choice, the limits of risk, and signed commands."""
