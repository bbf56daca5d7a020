"""gateway.toml, fleet files, keys, meter models: every mistake at once."""
