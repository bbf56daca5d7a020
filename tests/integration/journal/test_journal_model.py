"""The journal as a state machine against plain sets and lists, crashes included.

The model knows of each row, alarm and note whether it was answered (then it must be there after any crash), is only handed
over (then it may be), was released durably (then it must be gone) or only in memory (then it may come back). A crash is a
copy of the files as they are at that moment, opened as a restart would. OPENDCU_LONG=1 plays ten times as long.
"""

import itertools
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge_core.clock import ManualClock
from edge_core.domain import Flag
from edge_core.journal import Journal
from tests.integration.journal.conftest import INTERVAL, PERIOD, T0, make_alarm, make_block, rows_in

LONG = bool(os.environ.get("OPENDCU_LONG"))
METERS = ("GP1", "GP2", "GP3", "GP4")
meters = st.sampled_from(METERS)
firsts, counts = st.integers(0, 60), st.integers(1, 6)


class Machine(RuleBasedStateMachine):
    """One journal and what must be true of it."""

    def __init__(self):
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="journal-model-"))
        self.life = 0
        self.clock = ManualClock()
        self.known = set()  # (meter, row) that were answered
        self.waiting = set()  # those of them that no durable release took away
        self.handed = []  # (meter, rows, future) that wait for company
        self.leaving = set()  # released in memory only
        self.alarms, self.alarms_leaving, self.alarms_ever = {}, set(), set()
        self.notes, self.notes_leaving = {}, set()
        self.aside = set()
        self.epoch = 0
        self.open()

    def open(self):
        self.journal = Journal.open(
            self.base / f"{self.life}" / "journal.db",
            clock=self.clock,
            keep_acked_s=7_200,
            machine_id=self.base / "machine-id",
        )
        assert self.journal.was_damaged is None

    def teardown(self):
        self.journal.close()
        shutil.rmtree(self.base)

    # ---- what may be done

    @initialize(first=firsts)
    def begin(self, first):
        self.append_lazily([(meter, first, 4) for meter in METERS])
        self.flush()

    @rule(
        meter=meters,
        first=firsts,
        count=counts,
        lane=st.sampled_from(("live", "backlog")),
        sampled=st.booleans(),
    )
    def append_now(self, meter, first, count, lane, sampled):
        flags = ((0, count, int(Flag.SAMPLED)),) if sampled else ()
        block = make_block(meter, first, count, flags=flags)
        done = self.journal.append(block, durable="now", lane=lane).result(10)
        self.answered(meter, range(first, first + count), done)
        self.commit()

    @rule(blocks=st.lists(st.tuples(meters, firsts, counts), min_size=1, max_size=6))
    def append_lazily(self, blocks):
        if len(self.handed) >= 24:
            self.flush()
        for meter, first, count in blocks:
            future = self.journal.append(make_block(meter, first, count))
            self.handed.append((meter, range(first, first + count), future))

    @rule(blocks=st.lists(st.tuples(meters, firsts, counts), min_size=2, max_size=6))
    def append_a_group(self, blocks):
        self.append_lazily(blocks)
        self.flush()

    @rule()
    def flush(self):
        self.journal.flush().result(10)
        handed, self.handed = self.handed, []
        for meter, rows, future in handed:
            self.answered(meter, rows, future.result(10))
        self.commit()

    @rule(number=st.integers(0, 12), meter=meters)
    def alarm(self, number, meter):
        alarm = make_alarm(meter, T0 + number)
        assert self.journal.alarm(alarm).result(10) is (alarm.id not in self.alarms_ever)
        if alarm.id not in self.alarms_ever:
            self.alarms[alarm.id] = alarm
            self.alarms_ever.add(alarm.id)
        self.commit()

    @rule(number=st.integers(0, 99))
    def note(self, number):
        future = self.journal.note("replies", f"{number}", {"n": number})
        self.clock.advance(0.2)
        self.notes[future.result(10)] = number
        self.commit()

    @rule(chosen=st.lists(st.booleans(), min_size=3, max_size=7))
    def release(self, chosen):
        choice = itertools.cycle(chosen)
        some = [s.id for s in self.journal.segments(0, limit=1000) if next(choice)]
        alarms = [a.id for a in self.journal.alarms_waiting() if next(choice)]
        notes = [n.id for n in self.journal.notes_waiting() if next(choice)]
        self.leaving |= self.rows_of(some)
        self.alarms_leaving |= set(alarms)
        self.notes_leaving |= set(notes)
        self.journal.release(segments=some, alarms=alarms, notes=notes)
        assert not set(some) & {s.id for s in self.journal.segments(0, limit=1000)}
        assert not set(alarms) & {a.id for a in self.journal.alarms_waiting()}
        assert not set(notes) & {n.id for n in self.journal.notes_waiting()}

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 20))
    def set_aside(self, which):
        segments = [s.id for s in self.journal.segments(0, limit=1000)]
        if not segments:
            return
        one = segments[which % len(segments)]
        rows = self.rows_of([one])
        self.journal.set_aside("cloud-refused", "on purpose", segments=[one])
        self.flush()
        self.aside.add(str(one))
        self.waiting -= rows

    @rule(hours=st.integers(1, 5))
    def time_passes(self, hours):
        self.clock.advance(3600.0 * hours)
        self.flush()  # what waited for company is due now anyway

    @rule()
    def snapshot(self):
        self.flush()
        self.journal._submit("snapshot").result(10)
        self.commit()

    @rule()
    def restart(self):
        self.flush()
        self.journal.close()
        self.commit()
        self.open()

    @rule(chosen=st.lists(st.booleans(), min_size=3, max_size=7), meter=meters, first=firsts)
    def release_and_crash(self, chosen, meter, first):
        self.release(chosen)
        self.append_now(meter, first, 2, "live", False)
        self.crash()

    @rule()
    def crash(self):
        old = self.base / f"{self.life}"
        self.life += 1
        new = self.base / f"{self.life}"
        shutil.copytree(old, new)
        self.journal.close()
        self.open()
        shutil.rmtree(old)
        # whatever was handed over and not answered, or released and not committed, may have happened or not
        held, _ = rows_in(self.journal)
        found = {(m, (t - T0) // PERIOD) for m, _, t, _ in held}
        assert self.waiting - self.leaving <= found, "answered rows are missing"
        assert found <= self.waiting, "rows came back that were released, or never answered"
        self.waiting, self.leaving, self.handed = found, set(), []
        alarms = {a.id for a in self.journal.alarms_waiting()}
        assert set(self.alarms) - self.alarms_leaving <= alarms <= set(self.alarms)
        self.alarms = {i: a for i, a in self.alarms.items() if i in alarms}
        notes = {n.id for n in self.journal.notes_waiting()}
        assert set(self.notes) - self.notes_leaving <= notes <= set(self.notes)
        self.notes = {i: n for i, n in self.notes.items() if i in notes}
        self.alarms_leaving, self.notes_leaving = set(), set()

    # ---- what must be true

    @invariant()
    def holds_what_waits(self):
        held, count = rows_in(self.journal)
        found = {(m, (t - T0) // PERIOD) for m, _, t, _ in held}
        assert count == len(found), "a row stands twice"
        assert found == self.waiting - self.leaving
        for (meter, _, time, _), values in held.items():
            wanted = make_block(meter, (time - T0) // PERIOD, 1).columns
            assert values == tuple(c[0] for c in wanted)

    @invariant()
    def the_ledger_counts_what_was_answered(self):
        for meter in METERS:
            known, captured = set(), 0
            for entry in self.journal.ledger(meter):
                assert entry.profile == INTERVAL.profile
                captured += entry.captured
                known |= {
                    (meter, (t - T0) // PERIOD)
                    for run in entry.runs
                    for t in range(run.first, run.last + 1, PERIOD)
                }
            assert known == {k for k in self.known if k[0] == meter}
            assert captured == len(known)

    @invariant()
    def alarms_notes_and_what_stands_aside(self):
        alarms = {a.id: a for a in self.journal.alarms_waiting()}
        assert alarms == {i: a for i, a in self.alarms.items() if i not in self.alarms_leaving}
        notes = {n.id: n.body["n"] for n in self.journal.notes_waiting()}
        assert notes == {i: n for i, n in self.notes.items() if i not in self.notes_leaving}
        status = self.journal.status()
        assert (status.alarms_waiting, status.notes_waiting) == (len(alarms), len(notes))
        assert {a.id for a in self.journal.aside()} == self.aside

    # ---- small

    def answered(self, meter, rows, done):
        new = {(meter, row) for row in rows} - self.known
        assert (done.new, done.known) == (len(new), len(rows) - len(new))
        self.known |= new
        self.waiting |= new

    def commit(self):
        """Something was committed: releases rode along."""
        self.waiting -= self.leaving
        self.leaving = set()

    def rows_of(self, segments):
        return {
            (b.meter, (int(t) - T0) // PERIOD)
            for s in segments
            for b in self.journal.blocks(s)
            for t in list(b.times)
        }


TestJournal = Machine.TestCase
TestJournal.settings = settings(
    max_examples=300 if LONG else 25,
    stateful_step_count=60 if LONG else 30,
    deadline=None,
    derandomize=not LONG,
    suppress_health_check=list(HealthCheck),
)
TestJournal.pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(1800 if LONG else 120),
]
