"""Journals in real files, and what to put into them."""

import random
import shutil

import pytest

from edge_core.clock import SystemClock
from edge_core.domain import Alarm, Block, Column, Layout, alarm_id
from edge_core.journal import Journal

PERIOD = 900
T0 = 1_764_000_000
INTERVAL = Layout(
    "1.0.99.1.0.255",
    PERIOD,
    tuple(Column(f"1.0.{c}.8.0.255", "Wh", 0) for c in (1, 2, 3, 4)),
)
DAILY = Layout("1.0.98.2.0.255", 86_400, (Column("1.0.1.8.0.255", "Wh", 0),))


def make_block(meter="GP1", first=0, rows=4, *, device="D1", salt=0, **fields):
    """Rows first, first + 1, ... of a load profile; values follow from meter, row and salt."""
    kind = fields.get("kind", "interval")
    layout = fields.pop("layout", DAILY if kind == "midnight" else INTERVAL)
    rng = random.Random(f"{meter}{device}{salt}")
    base = rng.randrange(1 << 30)
    return Block(
        **{
            "meter": meter,
            "device": device,
            "kind": "interval",
            "layout": layout,
            "times": [T0 + (first + i) * layout.period for i in range(rows)],
            "columns": tuple(
                [base + c + 37 * (first + i) + salt for i in range(rows)]
                for c in range(len(layout.cols))
            ),
            "tz": 330,
            "read_at": T0 + 50,
            **fields,
        }
    )


def make_alarm(meter="GP1", at=T0, code="last-gasp"):
    return Alarm(
        id=alarm_id(meter, code, (), at),
        meter=meter,
        class_="outage",
        code=code,
        at=at,
        heard=at + 1,
        authenticated=True,
    )


def rows_in(journal, **kwargs):
    """(meter, device, time, occurrence) -> values of everything waiting, as the lake would merge it; and how many rows."""
    out, count, after = {}, 0, 0
    while page := journal.segments(after, limit=50, **kwargs):
        for segment in page:
            after = segment.id
            for b in journal.blocks(segment.id):
                occ = dict(b.occ)
                for i, time in enumerate(list(b.times)):
                    count += 1
                    key = (b.meter, b.device, int(time), occ.get(i, 0))
                    out[key] = tuple(c[i] for c in b.columns)
    return out, count


@pytest.fixture
def opening(tmp_path):
    """Open journals; all are closed at the end."""
    opened = []

    def open_(name="a", clock=None, **options):
        options.setdefault("machine_id", tmp_path / "machine-id")
        path = tmp_path / name / "journal.db"
        opened.append(Journal.open(path, clock=clock or SystemClock(), **options))
        return opened[-1]

    yield open_
    for journal in opened:
        journal.close()


@pytest.fixture
def killed(tmp_path):
    """What a SIGKILL would leave of a journal: a copy of its files as they are, under another name."""

    def kill(journal, name):
        shutil.copytree(journal.path.parent, tmp_path / name)
        return name

    return kill
