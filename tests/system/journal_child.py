"""What the kill tests kill: appends, alarms, counters, releases, as fast as it can, telling what was acknowledged.

A fork server: it imports once, and forks one child per line "RUN <folder> <seed> <mode> <clock>" on stdin. A child writes its
acknowledgements to `<folder>/acks` (one os.write each, so that a kill takes nothing back: the page cache outlives the process).
Modes: `go` = until it is killed; `trace:<n>` = the child ends itself by SIGKILL before the n-th SQL statement of its
connections, `ops:<n>` = in the middle of one, after n times 20 instructions of SQLite's virtual machine; `late-trace` and
`late-ops` begin to count when both files are open. `migrate:<n>` = as `trace`, while a release with a second schema opens
the journal. The clock is one of OPENDCU_CLOCK, or "-" for the system's.
"""

import itertools
import os
import random
import signal
import sqlite3
import sys
from pathlib import Path

from edge_core.clock import SystemClock
from edge_core.domain import Flag
from edge_core.journal import CounterStore, Journal, opening, store
from tests.integration.journal.conftest import make_alarm, make_block

METERS = 12
LIMITS = {"max_bytes": 768 << 10, "alarm_reserve_bytes": 64 << 10, "keep_acked_s": 40}
NEXT_SCHEMA = """
CREATE TABLE later(id INTEGER PRIMARY KEY, body BLOB);
INSERT INTO later(body) SELECT 'x' FROM note;
CREATE VIEW later_view AS SELECT * FROM note;
CREATE INDEX later_index ON later(body);
INSERT INTO meta VALUES ('later', 1);
"""
TITLE, METER_TITLE, KEY = b"ODCKILLS", b"GRXKILLS", "ab" * 8


class Fuse:
    """Ends the process when so many statements or instructions have run."""

    def __init__(self, mode):
        kind, _, number = mode.partition(":")
        self.left = itertools.count(int(number or 0), -1)
        self.lit = not kind.startswith("late-")
        self.kind = kind.removeprefix("late-")
        if self.kind != "go":
            self.connect, store.connect = store.connect, self.watched

    def watched(self, path, *, reader=False):
        connection = self.connect(path, reader=reader)
        if self.kind == "trace":
            connection.set_trace_callback(self.burn)
        else:
            connection.set_progress_handler(self.burn, 20)
        return connection

    def burn(self, *_):
        if self.lit and next(self.left) <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()


def clock_of(text):
    """The system's clock for "-", else as OPENDCU_CLOCK describes it."""
    return SystemClock() if text == "-" else SystemClock.from_environment({"OPENDCU_CLOCK": text})


def migrate(folder, mode):
    """Open as a release with a further schema would."""
    schemas = opening.schemas()
    opening.schemas = lambda: [*schemas, NEXT_SCHEMA]
    Fuse(mode.replace("migrate", "trace"))
    Journal.open(Path(folder) / "journal.db", clock=SystemClock()).close()


def child(folder, seed, mode, turns=None, clock="-"):
    if mode.startswith("migrate"):
        migrate(folder, mode)
        return
    folder = Path(folder)
    rng = random.Random(seed)
    acks = os.open(folder / "acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(*words):
        os.write(acks, (" ".join(map(str, words)) + "\n").encode())

    fuse = Fuse(mode)
    journal = Journal.open(folder / "journal.db", clock=clock_of(clock), **LIMITS)
    counters = CounterStore.open(folder / "counters.db", clock=clock_of(clock))
    fuse.lit = True
    say("open", journal.epoch)
    if journal.was_damaged or (counters.was_damaged):
        say("damaged", journal.was_damaged, counters.was_damaged)
    marks = dict.fromkeys(range(METERS), 0)
    for m in marks:
        for entry in journal.ledger(f"GP{m}"):
            marks[m] = max(marks[m], (entry.watermark - 1_764_000_000) // entry.period + 1)
    for turn in itertools.count() if turns is None else range(turns):
        what = rng.random()
        if what < 0.55:
            batch = []
            for m in rng.sample(range(METERS), rng.randint(1, 5)):
                first, rows = max(0, marks[m] - rng.randint(0, 2)), rng.randint(1, 6)
                flags = ((0, rows, int(Flag.SAMPLED)),) if m == 0 else ()
                durable = rng.choice(("now", "now", "soon", "lazy"))
                lane = rng.choice(("live", "backlog"))
                b = make_block(f"GP{m}", first, rows, flags=flags)
                batch.append((m, first, rows, journal.append(b, durable=durable, lane=lane)))
            journal.flush()
            for m, first, rows, future in batch:
                if future.exception(20) is None:
                    say("rows", m, first, rows)
                    marks[m] = max(marks[m], first + rows)
        elif what < 0.7:
            number = rng.randrange(10**6)
            if journal.alarm(make_alarm(f"GP{number % METERS}", number)).exception(20) is None:
                say("alarm", number)
        elif what < 0.8:
            counters.prepare(TITLE, KEY, count=3).result(20)
            for _ in range(rng.randint(0, 3)):
                say("counter", counters.next(TITLE, KEY))  # told before it is used
        elif what < 0.85:
            number = rng.randrange(10**6)
            if counters.accept(METER_TITLE, KEY, "push", turn + (seed << 16)):
                counters.flush().result(20)
                say("peer", turn + (seed << 16))
            note = journal.note("replies", f"{number}", {"n": number})
            journal.flush()
            if note.exception(20) is None:
                say("note", number)
        elif what < 0.95:
            page = [s.id for s in journal.segments(0, limit=20)]
            some = [s for s in page if rng.random() < 0.8]
            say("releasing", *some)
            for segment in some:  # as the cloud does: it has the rows before it acks
                for b in journal.blocks(segment):
                    for i, time in enumerate(list(b.times)):
                        first = (int(time) - 1_764_000_000) // 900
                        say("cloud", b.meter[2:], first, b.columns[0][i])
            journal.release(segments=some)
            if rng.random() < 0.5:
                journal.flush().result(20)
                say("released", *some)
        else:
            waiting = journal.alarms_waiting(5)
            for alarm in waiting[:2]:
                say("cloudalarm", alarm.at)
            journal.release(alarms=[a.id for a in waiting[:2]])


def main():
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    assert sqlite3.threadsafety
    for line in sys.stdin:
        _, folder, seed, mode, clock = line.split()
        pid = os.fork()
        if not pid:
            try:
                child(folder, int(seed), mode, clock=clock)
                os._exit(0)
            except BaseException as error:
                import traceback

                Path(folder, "failed").write_text(traceback.format_exc())
                print(error, file=sys.stderr, flush=True)
                os._exit(70)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print("ended", status, flush=True)


if __name__ == "__main__":
    main()
