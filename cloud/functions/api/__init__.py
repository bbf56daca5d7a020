"""The REST API, and the courier that repeats commands until they are accepted."""
