"""Built-in tasks on real data that needs no download. Each module has `task()`; its import reads no data."""
