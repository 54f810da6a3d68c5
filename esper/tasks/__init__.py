"""Built-in tasks on real data that needs no download. `task()` of a module builds its task and reads the data."""
