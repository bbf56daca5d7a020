"""How fast is a load profile decoded, from the octets of the APDU to a block with UTC clocks?

Row: clock octet-string(12), status unsigned, four double-long-unsigned; payloads are built here by hand from the A-XDR
rules. A round over a fleet: every buffer has other values, the capture times are those of the round. `first` is the
same with a clock column that was never met before (ours only: peers remember nothing). gurux-dlms (GPL-2.0) and
dlms-cosem 21.3.2 (MIT) run as processes of their own, on the same buffers; every value of all three is compared.

usage: decode_profile.py [--quick]
"""

from __future__ import annotations

import datetime as dt
import json
import statistics
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from common import measure, save, spread, table

ROWS = (1, 4, 16, 48, 96, 2880)
METERS = 20
EPOCH = dt.datetime(2025, 3, 1, tzinfo=dt.UTC)
EAST_MIN = 330
OBIS = ("1.0.1.29.0.255", "1.0.9.29.0.255", "1.0.12.27.0.255", "1.0.11.27.0.255")
PEERS = ("gurux-dlms", "dlms-cosem")


def buffer(rows: int, meter: int, start: dt.datetime = EPOCH) -> bytes:
    """A profile buffer of one meter: deviation -330 (Blue Book sign, which both peers assume)."""
    count = bytes([rows]) if rows < 0x80 else b"\x82" + rows.to_bytes(2, "big")
    out = bytearray(b"\x01" + count)
    for i in range(rows):
        local = start + dt.timedelta(minutes=15 * i + EAST_MIN)
        out += b"\x02\x06\x09\x0c" + struct.pack(
            ">HBBBBBBBhB",
            local.year,
            local.month,
            local.day,
            local.isoweekday(),
            local.hour,
            local.minute,
            local.second,
            0,
            -EAST_MIN,
            0,
        )
        out += b"\x11\x00" + b"".join(b"\x06" + v.to_bytes(4, "big") for v in values(i, meter))
    return bytes(out)


def values(row: int, meter: int) -> tuple[int, ...]:
    return (
        1_000_000 * meter + 37 * row,
        52_000 + 3 * row + meter,
        2_300 + row % 50,
        410 + (row + meter) % 7,
    )


def expected(rows: int, meter: int) -> list[list[int]]:
    """[UTC second, values ...] per row."""
    first = int(EPOCH.timestamp())
    return [[first + 900 * i, *values(i, meter)] for i in range(rows)]


# --- ours


def ours(rows: int, number: int) -> tuple[list[float], list[float]]:
    """Seconds per buffer in a round, and with a clock column never met before."""
    from edge_core.domain import Block, as_list
    from edge_core.protocols.dlms.cosem import CaptureObject
    from edge_core.protocols.dlms.datetime import LOCAL_TO_UTC, ClockRules
    from edge_core.protocols.dlms.profile import Plan, ScalerUnit

    objects = [CaptureObject(8, "0.0.1.0.0.255", 2), CaptureObject(1, "0.0.96.10.1.255", 2)]
    objects += [CaptureObject(3, obis, 2) for obis in OBIS]
    scalers = {(obis, 2): ScalerUnit(0, "Wh") for obis in OBIS}
    plan = Plan(
        "1.0.99.1.0.255", objects, scalers, 900, ClockRules(LOCAL_TO_UTC), status="0.0.96.10.1.255"
    )
    buffers = [buffer(rows, meter) for meter in range(METERS)]

    def block(octets: bytes) -> Block:
        (found,) = plan.decode(octets)
        return Block(
            meter="m",
            device="d",
            kind="interval",
            layout=found.layout,
            times=found.times,
            columns=found.columns,
            occ=found.occ,
            flags=found.flags,
            tz=found.tz,
            read_at=0,
            proven_at=0,
        )

    for meter, octets in enumerate(buffers):
        got = block(octets)
        cells = zip(as_list(got.times), *(as_list(c) for c in got.columns), strict=True)
        assert [list(row) for row in cells] == expected(rows, meter)

    def round_() -> None:
        for octets in buffers:
            block(octets)

    warm = [s / METERS for s in measure(round_, number=number)]
    days = iter(
        [buffer(rows, 0, EPOCH + dt.timedelta(days=31 * k)) for k in range(1, 8 * number + 20)]
    )
    cold = measure(lambda: block(next(days)), number=number)
    return warm, cold


# --- peers, each in a process of its own


def gurux(buffers: list[bytes], number: int) -> tuple[list[float], list[Any]]:
    from gurux_dlms import GXByteBuffer, GXDLMSClient
    from gurux_dlms.enums import InterfaceType
    from gurux_dlms.internal._GXCommon import _GXCommon
    from gurux_dlms.internal._GXDataInfo import _GXDataInfo
    from gurux_dlms.objects import (
        GXDLMSCaptureObject,
        GXDLMSClock,
        GXDLMSData,
        GXDLMSProfileGeneric,
        GXDLMSRegister,
    )

    client = GXDLMSClient(True, 16, 1, interfaceType=InterfaceType.WRAPPER)
    profile = GXDLMSProfileGeneric("1.0.99.1.0.255")
    columns = [
        GXDLMSClock("0.0.1.0.0.255"),
        GXDLMSData("0.0.96.10.1.255"),
        *(GXDLMSRegister(o) for o in OBIS),
    ]
    profile.captureObjects = [(column, GXDLMSCaptureObject(2, 0)) for column in columns]

    def run(octets: bytes) -> list[Any]:
        value = _GXCommon.getData(client.settings, GXByteBuffer(octets), _GXDataInfo())
        profile.buffer = []
        client.updateValue(profile, 2, value)
        return profile.buffer

    got = [[[int(r[0].value.timestamp()), *r[2:]] for r in run(octets)] for octets in buffers]
    return [
        s / len(buffers) for s in measure(lambda: [run(b) for b in buffers], number=number)
    ], got


def dlms_cosem(buffers: list[bytes], number: int) -> tuple[list[float], list[Any]]:
    from dlms_cosem import enumerations
    from dlms_cosem.cosem import CosemAttribute, Obis
    from dlms_cosem.parsers import ProfileGenericBufferParser

    kinds = [enumerations.CosemInterface.CLOCK, enumerations.CosemInterface.DATA]
    kinds += [enumerations.CosemInterface.REGISTER] * 4
    names = ["0.0.1.0.0.255", "0.0.96.10.1.255", *OBIS]
    attributes = [
        CosemAttribute(interface=kind, instance=Obis.from_string(name), attribute=2)
        for kind, name in zip(kinds, names, strict=True)
    ]

    def run(octets: bytes) -> list[Any]:
        return ProfileGenericBufferParser(attributes, 15).parse_bytes(octets)

    got = [
        [[int(r[0].value.timestamp()), *(c.value for c in r[2:])] for r in run(b)] for b in buffers
    ]
    return [
        s / len(buffers) for s in measure(lambda: [run(b) for b in buffers], number=number)
    ], got


def peer(name: str, rows: int, number: int) -> list[float]:
    """Seconds per buffer of a peer, which must have read the same values."""
    meters = METERS if rows <= 96 else 2
    job = json.dumps({"peer": name, "rows": rows, "meters": meters, "number": number})
    child = subprocess.run(
        [sys.executable, __file__, "--child", job], capture_output=True, text=True, check=True
    )
    answer = json.loads(child.stdout.splitlines()[-1])
    assert answer["rows"] == [expected(rows, meter) for meter in range(meters)], name
    return list(answer["seconds"])


def child(job: dict[str, Any]) -> None:
    buffers = [buffer(job["rows"], meter) for meter in range(job["meters"])]
    run = {"gurux-dlms": gurux, "dlms-cosem": dlms_cosem}[job["peer"]]
    seconds, rows = run(buffers, job["number"])
    print(json.dumps({"seconds": seconds, "rows": rows}))


def main() -> None:
    quick = "--quick" in sys.argv
    results = []
    lines = [
        [
            "rows",
            "ours us",
            "first us",
            *(f"{name} us" for name in PEERS),
            *(f"x {name}" for name in PEERS),
        ]
    ]
    for rows in ROWS:
        number = 2 if quick else max(2, 2000 // rows)
        warm, cold = ours(rows, max(1, number // 4))
        peers = {name: peer(name, rows, max(1, number // 200)) for name in PEERS}
        median = statistics.median(warm)
        ratios = {name: round(statistics.median(s) / median, 1) for name, s in peers.items()}
        results.append(
            {
                "rows": rows,
                "octets": len(buffer(rows, 0)),
                "ours": spread(warm),
                "ours_first": spread(cold),
                "peers": {name: spread(s) for name, s in peers.items()},
                "times_faster": ratios,
            }
        )
        lines.append(
            [
                str(rows),
                f"{median * 1e6:.2f}",
                f"{statistics.median(cold) * 1e6:.1f}",
                *(f"{statistics.median(s) * 1e6:.0f}" for s in peers.values()),
                *(f"{r:.0f}" for r in ratios.values()),
            ]
        )
    print(table(lines))
    if not quick:
        print(save("decode_profile", {"results": results}, "numpy", "msgspec", *PEERS))


if __name__ == "__main__":
    if "--child" in sys.argv:
        child(json.loads(sys.argv[-1]))
    else:
        main()
