"""The nightly function: raw envelopes to Parquet for Athena and DuckDB, midnight and billing rows to files for SFTP."""
