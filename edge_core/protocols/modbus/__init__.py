"""Reading plans and register codecs."""
