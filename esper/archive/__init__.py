"""Reads run directories, and checks their files, their history, and whether a run can be resumed. It runs nothing."""
