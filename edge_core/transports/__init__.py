"""Bytes with deadlines: nothing about meters."""
