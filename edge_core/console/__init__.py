"""Local web pages and their JSON API; looks in, changes nothing."""
