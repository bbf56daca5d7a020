"""Modbus meters: plans, lines, samples."""

from edge_core.acquisition.drivers.modbus.driver import Driver

__all__ = ["Driver"]
