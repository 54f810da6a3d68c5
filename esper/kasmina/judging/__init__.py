"""The gates G0-G5 and their statistics. Gates read evidence and run no network."""
