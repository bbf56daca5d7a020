"""The vocabulary of alarms: code, class, severity, IEC 61968-9 end device event, what clears it.

`cloud/schemas/alarms.csv` is generated from here. The class decides the topic and the queue; the code never changes.
IEC codes are those seen in public code (metering/service-levels.md, row "IEC 61968-9 event code"); "" where none was
found: a wrong code would be worse than none.
"""

from __future__ import annotations

from typing import NamedTuple


class AlarmKind(NamedTuple):
    """What a code means."""

    class_: str
    severity: str
    iec61968: str = ""
    clears: str = ""


ALARM_KINDS: dict[str, AlarmKind] = {
    "last-gasp": AlarmKind("outage", "critical", "3.26.136.47"),
    "restore": AlarmKind("outage", "info", "3.26.136.216", "last-gasp"),
    "phase-outage": AlarmKind("outage", "major", "3.26.0.85"),
    "phase-restore": AlarmKind("outage", "info", "3.26.9.216", "phase-outage"),
    "outage-inferred": AlarmKind("outage", "critical"),
    "dcu-power-fail": AlarmKind("outage", "critical"),
    "dcu-power-back": AlarmKind("outage", "info", "", "dcu-power-fail"),
    "under-voltage": AlarmKind("voltage", "warning", "3.26.131.223"),
    "over-voltage": AlarmKind("voltage", "warning", "3.26.131.248"),
    "voltage-unbalance": AlarmKind("voltage", "warning"),
    "cover-open": AlarmKind("tamper", "major"),
    "magnet": AlarmKind("tamper", "major"),
    "current-reversed": AlarmKind("tamper", "major"),
    "tamper": AlarmKind("tamper", "major"),
    "bypass": AlarmKind("tamper", "major"),
    "neutral-disturbance": AlarmKind("tamper", "major"),
    "clock": AlarmKind("meter", "warning"),
    "battery-low": AlarmKind("meter", "warning", "3.2.22.150"),
    "meter-fault": AlarmKind("meter", "major"),
    "meter-silent": AlarmKind("meter", "major"),
    "meter-back": AlarmKind("meter", "info", "", "meter-silent"),
    "key-rejected": AlarmKind("meter", "major"),
    "wrong-meter": AlarmKind("meter", "major"),
    "foreign-client": AlarmKind("meter", "major"),
    "value-conflict": AlarmKind("meter", "major"),
    "layout-changed": AlarmKind("meter", "major"),
    "profile-mismatch": AlarmKind("meter", "major"),
    "multiplier-mismatch": AlarmKind("meter", "major"),
    "message-conflict": AlarmKind("gateway", "critical"),
    "disk": AlarmKind("gateway", "critical"),
    "link": AlarmKind("gateway", "major"),
    "journal-full": AlarmKind("gateway", "critical"),
    "journal-damaged": AlarmKind("gateway", "critical"),
    "no-acks": AlarmKind("gateway", "major"),
    "config-unknown-key": AlarmKind("gateway", "warning"),
    "watchdog": AlarmKind("gateway", "major"),
    "certificate": AlarmKind("gateway", "major"),
    "release-fallback": AlarmKind("gateway", "major"),
}
