"""One visit to a DLMS meter without I/O: recorded from a simulated meter, replayed against what was written down.

Run as a program it records: python -m tests.contract.dlms_visit MODEL FOLDER
The exchange is tests/data/frames/<model>/visit: request.hex and reply.hex (one APDU a line), expected.json, SOURCE.md.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

from edge_core.acquisition.drivers.dlms.learned import (
    Learned,
    capture_objects,
    clock_rules,
    plan_of,
    scaler_row,
    scaler_unit,
    whole_number,
)
from edge_core.config.models import DlmsModel, load_model
from edge_core.domain import Secret, as_list
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.association import Association
from edge_core.protocols.dlms.codes import Mechanism
from edge_core.protocols.dlms.cosem import Attribute, EntrySelector
from edge_core.protocols.dlms.security import AUTHENTICATED_ENCRYPTED, SecurityContext
from edge_core.protocols.dlms.terms import Terms

CHALLENGE = bytes(range(0x40, 0x50))
FIRST_COUNTER = 70_000
ROWS = 12
FRAMES = Path(__file__).parents[1] / "data" / "frames"
PROFILE = 7


def association_of(model: DlmsModel, keys: dict[str, str], title: bytes) -> Association:
    counters = itertools.count(FIRST_COUNTER)
    return Association(
        Terms(
            title=title,
            mechanism=Mechanism.HLS5_GMAC,
            level=AUTHENTICATED_ENCRYPTED,
            ciphering=model.association.ciphering,
            object=model.association.object,
        ),
        next_counter=lambda: next(counters),
        context=SecurityContext(
            0, Secret(bytes.fromhex(keys["guek"])), Secret(bytes.fromhex(keys["gak"]))
        ),
    )


def visit(association: Association, model: DlmsModel) -> Generator[bytes, bytes, dict[str, Any]]:
    """Associate, and read the first rows of interval and midnight with all that they need."""
    yield from association.open(CHALLENGE)
    serial = yield from association.get(Attribute(1, model.association.serial, 2))
    document: dict[str, Any] = {
        "serial": axdr.decode_whole(serial).value.decode(),  # type: ignore[union-attr]
        "title": association.meter_title.hex(),
        "profiles": {},
    }
    for kind in ("interval", "midnight"):
        profile = model.profiles[kind]
        objects = capture_objects((yield from association.get(Attribute(PROFILE, profile.obis, 3))))
        period = whole_number((yield from association.get(Attribute(PROFILE, profile.obis, 4))))
        sort = whole_number((yield from association.get(Attribute(PROFILE, profile.obis, 5))))
        scalers: dict[Any, Any] = {}
        if profile.scaler_profile:
            named = capture_objects(
                (yield from association.get(Attribute(PROFILE, profile.scaler_profile, 3)))
            )
            row = yield from association.get(Attribute(PROFILE, profile.scaler_profile, 2))
            scalers = scaler_row(row, named)
        else:
            for o in objects:
                if o.class_id == 3:
                    data = yield from association.get(Attribute(3, o.obis, 3))
                    scalers[o.class_id, o.obis] = scaler_unit(axdr.decode_whole(data).plain())
        learned = Learned(
            document["serial"],
            0,
            objects,
            period,
            sort,
            tuple(
                (o.obis, o.attribute, *scalers[o.class_id, o.obis])
                for o in objects
                if (o.class_id, o.obis) in scalers
            ),
        )
        buffer = yield from association.get(
            Attribute(PROFILE, profile.obis, 2), EntrySelector(1, ROWS)
        )
        (rows,) = plan_of(learned, profile, clock_rules(model, "UTC")).decode(buffer)
        document["profiles"][kind] = {
            "period": rows.layout.period,
            "cols": [[c.obis, c.unit, c.scaler, c.attribute] for c in rows.layout.cols],
            "times": as_list(rows.times),
            "values": [as_list(c) for c in rows.columns],
            "flags": [list(run) for run in rows.flags],
            "tz": rows.tz,
        }
    return document


def record(name: str, folder: Path) -> None:
    """Play a visit against a simulated meter and write it down; the rows are the meter's own truth."""
    from edge_core.clock import SystemClock
    from simulators.dlms.session import Session
    from simulators.fleet import Fleet
    from simulators.spec import DlmsGroup, FleetSpec

    model = load_model(name)
    assert isinstance(model, DlmsModel)
    with tempfile.TemporaryDirectory() as state:
        spec = FleetSpec(dlms=(DlmsGroup(model=name, pdu=300),), history_s=3 * 86_400)
        meter = Fleet(spec, Path(state), SystemClock()).dlms[0]
        meter.capture()
        keys = {"guek": meter.keys.guek.hex(), "gak": meter.keys.gak.hex()}
        title = b"ODCtest1"
        session, exchange = (
            Session(meter, meter.client),
            visit(association_of(model, keys, title), model),
        )
        sent, came = [next(exchange)], []
        document: dict[str, Any] = {}
        while not document:
            came.append(session.handle(sent[-1]))
            try:
                sent.append(exchange.send(came[-1]))
            except StopIteration as done:
                document = done.value
        for kind, got in document["profiles"].items():
            truth = meter.device.truth(kind)
            assert got["times"] == truth["t"][:ROWS]
            assert got["values"] == [cells[:ROWS] for cells in truth["values"]]
            assert got["cols"] == truth["cols"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "request.hex").write_text("\n".join(a.hex() for a in sent) + "\n")
    (folder / "reply.hex").write_text("\n".join(a.hex() for a in came) + "\n")
    (folder / "expected.json").write_text(
        json.dumps({"keys": keys, "client_title": title.hex()} | document, indent=1) + "\n"
    )
    (folder / "SOURCE.md").write_text(
        f"Recorded from the simulated meter `{name}` of simulators/dlms by tests/contract/dlms_visit.py; the rows were\n"
        "compared with the meter's truth when it was recorded. Test keys, worth nothing elsewhere. Licence: as the project.\n"
    )


if __name__ == "__main__":
    record(sys.argv[1], Path(sys.argv[2]))
