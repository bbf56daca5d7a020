"""Local web pages and their JSON API; looks in, changes nothing. Needs the extra [console]."""

from edge_core.console.server import serve
from edge_core.console.view import View

__all__ = ["View", "serve"]
