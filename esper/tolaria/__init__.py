"""The training room: the host and its seeds, their optimizers, data and losses, snapshots and checkpoints. It applies
plans and never changes a seed's stage.
"""
