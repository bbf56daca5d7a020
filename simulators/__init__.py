"""Simulated meters, lines and faults: the desk's neighbourhood. The product never imports this."""
