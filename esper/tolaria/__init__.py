"""Tolaria trains the host and its seeds: optimizers, data, losses, snapshots and checkpoints.

It applies plans to the host. Kasmina decides the stages of seeds.
"""
