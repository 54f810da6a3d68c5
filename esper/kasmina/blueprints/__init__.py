"""Blueprints: seed modules that can be built, by kind of slot."""
