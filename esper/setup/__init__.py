"""Prepares a run from a task and a config: survey, forecast, and the components. It trains only networks that are
discarded afterwards."""
