"""Wrapper, M-Bus, A-XDR, ACSE, xDLMS, security, profiles, data-notification."""
