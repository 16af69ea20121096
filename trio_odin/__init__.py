"""Filtered WebSocket fan-out of NATS token events, on trio."""

__version__ = "0.1.0"
