"""Runs whose components are Ray actors: handles, supervision, Ray itself. It holds no rules of training or growth."""
