"""Reads and checks run directories: their files, their history, and whether a run can be resumed. It runs nothing."""
