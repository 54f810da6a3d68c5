"""Built-in tasks on real data that every machine has. Each module offers `task()`; nothing is read on import."""
