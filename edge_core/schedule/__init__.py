"""When: capture periods, civil days, due times. calendar.py is pure."""
