"""The ingest function: from the queue to the lake, the acknowledgement, the table."""
