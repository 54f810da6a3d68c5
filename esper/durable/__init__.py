"""The one way bytes become durable. This room knows no domain word."""
