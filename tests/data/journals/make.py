"""Makes a journal, an uplink.db (`uplink-*`) or a counters.db (`counters-*`) of the present schema with a bit of everything:
`python tests/data/journals/make.py v001.db` from the top folder. Run it once per released schema, never over an old file:
these files are the proof that old ones open."""

import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from edge_core.clock import ManualClock
from edge_core.journal import CounterStore, Journal
from edge_core.uplink.outbox import AsideRow, Outbox, Ref
from tests.integration.journal.conftest import PERIOD, T0, make_alarm, make_block


def counters(path: Path) -> None:
    store = CounterStore.open(path, clock=ManualClock())
    store.prepare(b"ODCTITLE", "ab" * 8, at_least=1_000).result()
    store.next(b"ODCTITLE", "ab" * 8)
    store.accept(b"GRXTITLE", "ab" * 8, "push", 77)
    store.accept(b"GRXTITLE", "ab" * 8, "association", 55)
    store.settle_epoch(1_764_000_000).result()
    store.close()


def uplink(path: Path) -> None:
    box = Outbox.open(path, clock=ManualClock())
    box.begin(1_764_000_000)
    for segment in (1, 2):
        n = box.take()
        assert n is not None
        box.record(n, (Ref("s", segment, 0, 12, 12),), bytes(32))
    box.keep_partial(("s", 2), 12, [(0, 5)])
    box.set_aside(
        7,
        AsideRow(
            (Ref("a", "0123456789abcdef", 0, 1, 1),), "cloud-refused", "on purpose", 1_764_000_000
        ),
    )
    box.spend(20_000, 4_711)
    box.sync().result()
    box.close()


def main(target: Path) -> None:
    if target.exists():
        raise SystemExit(f"{target} exists: released journals are never made again")
    with tempfile.TemporaryDirectory() as folder:
        kind = target.name.partition("-")[0]
        if kind in ("counters", "uplink"):
            path = Path(folder) / f"{kind}.db"
            {"counters": counters, "uplink": uplink}[kind](path)
            with sqlite3.connect(path) as db:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            db.close()
            shutil.copy(path, target)
            return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.db"
        journal = Journal.open(path, clock=ManualClock(), machine_id=Path(folder) / "none")
        for first in (0, 4):  # segments 1 and 2
            for meter in ("GP1", "GP2", "GP3"):
                journal.append(make_block(meter, first))
            journal.flush().result()
        step = make_block("GP1", times=[T0 + 7 * PERIOD, T0 + 6 * PERIOD], columns=([1, 2],) * 4)
        step = step.take([0, 1])
        values = make_block("GP1", 7, 1)
        step = make_block(
            "GP1",
            times=[T0 + 7 * PERIOD, T0 + 6 * PERIOD],
            columns=tuple([c[0], 5] for c in values.columns),
        )
        journal.append(step, durable="now").result()  # segment 3: a clock set back
        journal.append(make_block("GP9", kind="midnight"), durable="now").result()  # segment 4
        journal.note_gap(
            "GP1", "D1", "1.0.99.1.0.255", T0 + 8 * PERIOD, T0 + 9 * PERIOD, "line-silent"
        )
        for meter in ("GP1", "GP2"):
            journal.alarm(make_alarm(meter)).result()
        journal.note("replies", "c1", {"state": "done"})
        journal.flush().result()
        journal.set_aside("cloud-refused", "schema-invalid", segments=[4])
        journal.release(segments=[3], alarms=[make_alarm("GP2").id])
        journal.close()
        shutil.copy(path, target)


if __name__ == "__main__":
    main(Path(__file__).parent / sys.argv[1])
