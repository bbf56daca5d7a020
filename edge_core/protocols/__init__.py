"""Sans-IO: bytes in, events out. No socket, no clock, no chance."""
