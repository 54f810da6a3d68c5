"""The registry of seeds: every seed's stage, the admitted commands, and the judgements of the gates."""
