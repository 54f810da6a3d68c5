"""The registry of seeds: which seeds there are, in which stage, by which commands and judgements."""
