"""The registry of seeds: every seed's stage, the commands that were admitted, and the gates' judgements."""
