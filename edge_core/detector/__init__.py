"""Scores blocks of the journal; writes findings back into it."""
