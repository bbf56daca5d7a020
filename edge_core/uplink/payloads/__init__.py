"""The envelopes of DESIGN section 6, one file per kind."""
