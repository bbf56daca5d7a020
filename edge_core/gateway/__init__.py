"""The composition root and what looks in from outside: control requests, commands of the cloud, the console's view."""

from edge_core.gateway.root import Gateway

__all__ = ["Gateway"]
