"""DLMS/COSEM meters: line and counters (session), what profiles hold (learned), reads (driver)."""

from edge_core.acquisition.drivers.dlms.driver import Driver

__all__ = ["Driver"]
