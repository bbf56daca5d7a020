"""OpenDCU: the open edge gateway runtime for smart-meter concentrators."""

__version__ = "0.1.0"
