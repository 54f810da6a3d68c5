"""Durable files, logs and locks: all durable writes of esper go through this room. It uses no domain types."""
