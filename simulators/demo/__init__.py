"""The desk's neighbourhood in one command: fleet, local cloud, gateway, console, faults, and a count at the end."""
