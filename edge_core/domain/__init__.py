"""The nouns of the product: frozen, without I/O. Re-exports only."""

from edge_core.domain.alarm import Alarm, alarm_id, make_alarm
from edge_core.domain.alarm_codes import ALARM_KINDS, AlarmKind
from edge_core.domain.block import Block, Column, Layout, Values, as_list
from edge_core.domain.obis import Obis, obis_from_bytes, obis_to_bytes
from edge_core.domain.register import RegisterReading
from edge_core.domain.secret import Secret
from edge_core.domain.status import Flag
from edge_core.domain.units import Unit, unit_from_dlms

__all__ = [
    "ALARM_KINDS",
    "Alarm",
    "AlarmKind",
    "Block",
    "Column",
    "Flag",
    "Layout",
    "Obis",
    "RegisterReading",
    "Secret",
    "Unit",
    "Values",
    "alarm_id",
    "as_list",
    "make_alarm",
    "obis_from_bytes",
    "obis_to_bytes",
    "unit_from_dlms",
]
