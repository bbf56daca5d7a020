"""Logs, events that log and count, metrics."""
