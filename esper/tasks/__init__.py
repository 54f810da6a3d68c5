"""Built-in tasks on real data that needs no download.

The function `task` of a module reads the data and builds the task.
"""
