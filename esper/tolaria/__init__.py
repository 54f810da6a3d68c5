"""Tolaria trains: steps, rounds, losses, forks. It never changes a seed's stage."""
