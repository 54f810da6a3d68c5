"""From a task and a config to what a run will be: survey, forecast, and the rooms built. It runs nothing."""
