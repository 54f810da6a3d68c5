"""From a task and a config to what a run will be: survey, forecast, and the components built. It runs nothing."""
