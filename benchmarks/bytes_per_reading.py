"""How many octets does the uplink spend on a reading?

Real load curves (simulators/loads) of 500 meters go through the journal and the packer as they would in a gateway;
whole messages are counted, envelope included, topic and MQTT header not. A reading is one cell. Beside them stand what
deflate and base64 make of the bare values (no identity, no time: no JSON of this shape can be smaller), and the same
readings as one JSON row per interval, the common form.

What is left to gain: a block of 4 rows and 4 registers pays 1.0 octet a reading for meter, serial (8 random digits: 3.3
octets before base64, whoever compresses), time of the read and the members' names, on top of 1.3 for its values. An optimal
parse (zopfli, 15 iterations, 200 times the time) gives 2.19. 1.6 is reached by blocks of 12 rows (read every 3 h: 1.59).

usage: bytes_per_reading.py [--quick]
"""

from __future__ import annotations

import base64
import json
import random
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from common import save, table

from edge_core.clock import ManualClock
from edge_core.domain import Block, Column, Layout, as_list
from edge_core.journal import Journal
from edge_core.uplink.packer import Packer, room_of
from edge_core.uplink.payloads import reads
from edge_core.uplink.payloads.envelope import message
from edge_core.uplink.sender import LINGER_S
from edge_core.uplink.topics import Topics
from simulators.loads import Load

DCU = "dcu-0001"
T0 = 1_763_996_400  # a full hour
FOUR = Layout(
    "1.0.99.1.0.255",
    900,
    (
        Column("1.0.1.29.0.255", "Wh", 0),
        Column("1.0.2.29.0.255", "Wh", 0),
        Column("1.0.5.29.0.255", "varh", 0),
        Column("1.0.12.27.0.255", "V", -1),
    ),
)
ELEVEN = Layout(
    "1.0.99.1.0.255",
    900,
    (
        *(Column(f"1.0.{11 + 20 * p}.27.0.255", "A", -2) for p in (1, 2, 3)),
        *(Column(f"1.0.{12 + 20 * p}.27.0.255", "V", -1) for p in (1, 2, 3)),
        Column("1.0.1.29.0.255", "Wh", 0),
        Column("1.0.2.29.0.255", "Wh", 0),
        Column("1.0.5.29.0.255", "varh", 0),
        Column("1.0.8.29.0.255", "varh", 0),
        Column("1.0.9.29.0.255", "VAh", 0),
    ),
)


def block(index: int, first: int, rows: int, layout: Layout, read_at: int) -> Block:
    """Rows of one meter whose first interval begins at `first`."""
    load = Load(index)
    edges = [first + 900 * k for k in range(rows + 1)]
    energy = np.diff(load.cumulative(edges), axis=0)
    times = np.array(edges[1:], np.int64)
    volts = load.voltage(times)
    if layout is FOUR:
        columns = (energy[:, 0], energy[:, 1], energy[:, 2], volts[:, 0])
    else:
        amps = (
            [
                Load.current(int(e) * 4_000, int(v), p) // 10
                for e, v in zip(energy[:, 4], volts[:, p], strict=True)
            ]
            for p in range(3)
        )
        columns = (*(np.array(a, np.int64) for a in amps), *volts.T, *energy.T[:5])
    return Block(
        meter=f"GP{1_000_000 + index}",
        device=f"{(10_000_000 + index * 7919) % 100_000_000:08d}",
        kind="interval",
        layout=layout,
        times=times,
        columns=tuple(np.ascontiguousarray(c) for c in columns),
        tz=330,
        read_at=read_at,
        q={"offset": index * 31 % 5 - 2},
    )


def run(meters: int, hours: int, every_h: int, layout: Layout, *, spread: bool) -> dict[str, float]:
    """Read every so many hours, all meters at once or spread evenly over the time; count what leaves."""
    clock = ManualClock(T0 + 3_600 * hours + 60)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal.open(Path(folder) / "journal.db", clock=clock)
        packer = Packer(
            journal, Topics("dcu", DCU), covered=lambda _: [], room=room_of(100_000, DCU)
        )
        blocks: list[Block] = []
        octets = messages = 0
        reads_due = [
            (T0 + 3_600 * (h + every_h) + (m * 3_600 * every_h // meters if spread else 0), m, h)
            for h in range(0, hours, every_h)
            for m in range(meters)
        ]
        now = 0

        def drain(at: int, linger_s: float) -> None:
            nonlocal octets, messages
            while (found := packer.draft("live", at, linger_s)[0]) is not None:
                whole = message(
                    "reads",
                    dcu=DCU,
                    epoch=T0,
                    n=1_000 + messages,
                    sent=at,
                    kind="interval",
                    members=found.members,
                )
                octets += len(whole)
                messages += 1

        for minute in range(T0, T0 + 3_600 * (hours + every_h) + 61, 60):
            due = [(m, h) for at, m, h in reads_due if minute <= at < minute + 60]
            for k, (m, h) in enumerate(due):
                blocks.append(
                    block(m, T0 + 3_600 * h, 4 * every_h, layout, minute + k * 60 // len(due))
                )
                journal.append(blocks[-1])
            now = minute
            if due:
                journal.flush().result(30)
            drain(minute, LINGER_S)
        drain(now, 0.0)
        journal.close()
    readings = sum(b.readings for b in blocks)
    values = json.dumps(
        [[as_list(c) for c in b.columns] for b in blocks], separators=(",", ":")
    ).encode()
    rows = sum(
        len(
            json.dumps(
                {
                    "meter": b.meter,
                    "time": int(t),
                    **{
                        c.obis: int(column[i])
                        for c, column in zip(layout.cols, b.columns, strict=True)
                    },
                },
                separators=(",", ":"),
            )
        )
        for b in random.Random(1).sample(blocks, min(100, len(blocks)))
        for i, t in enumerate(b.times)
    )
    sampled = sum(b.readings for b in random.Random(1).sample(blocks, min(100, len(blocks))))
    return {
        "readings": readings,
        "messages": messages,
        "octets": octets,
        "octets_per_reading": round(octets / readings, 3),
        "bare_values": round(len(base64.b64encode(reads.gzip(values))) / readings, 3),
        "row_json": round(rows / sampled, 1),
    }


def main() -> None:
    hours = 4 if "--quick" in sys.argv else 8
    cases = {
        "500 meters, hourly, at once, 4 registers": (500, hours, 1, FOUR, False),
        "500 meters, hourly, spread, 4 registers": (500, hours, 1, FOUR, True),
        "500 meters, hourly, at once, 11 registers": (500, hours, 1, ELEVEN, False),
        "5,000 meters, hourly, spread, 4 registers": (5_000, 2, 1, FOUR, True),
        "500 meters, every 4 h, at once, 4 registers": (500, hours, 4, FOUR, False),
        "50 meters, daily, at once, 4 registers": (50, 24, 24, FOUR, False),
    }
    results = {name: run(m, h, e, layout, spread=s) for name, (m, h, e, layout, s) in cases.items()}
    head = ["octets per reading", "messages", "on the uplink", "bare values", "row JSON"]
    lines = [
        [
            name,
            str(r["messages"]),
            f"{r['octets_per_reading']:.2f}",
            f"{r['bare_values']:.2f}",
            f"{r['row_json']:.1f}",
        ]
        for name, r in results.items()
    ]
    print(table([head, *lines]))
    print(save("bytes_per_reading", {"results": results}, "msgspec", "numpy"))


if __name__ == "__main__":
    main()
