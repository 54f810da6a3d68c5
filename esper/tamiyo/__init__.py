"""Tamiyo decides what to grow: finds the eligible (slot, blueprint) pairs, calls the policy, applies the limits of
risk, and signs commands.
"""
