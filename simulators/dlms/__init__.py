"""Simulated DLMS/COSEM meters: an implementation of its own, so that one wrong reading of the standard is not mirrored.

Nothing in here imports `edge_core.protocols`. `codec` knows octets, `layouts` what a meter offers, `device` what it has
captured, `session` one association, `lines` the sockets, `record` the counters and their violations.
"""
