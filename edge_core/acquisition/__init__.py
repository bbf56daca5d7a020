"""Polling and listening: from meters to the journal."""
