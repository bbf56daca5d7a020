"""Makes a journal of the present schema with a bit of everything: `python tests/data/journals/make.py v001.db` from the top
folder. Run it once per released schema, never over an old file: these files are the proof that old journals open."""

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from edge_core.clock import ManualClock
from edge_core.journal import Journal
from tests.integration.journal.conftest import PERIOD, T0, make_alarm, make_block


def main(target: Path) -> None:
    if target.exists():
        raise SystemExit(f"{target} exists: released journals are never made again")
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
