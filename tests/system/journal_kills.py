"""Kills of a process that journals, and what must hold after them: the rules, and campaigns of any length.

After any number of kills of one folder: every acknowledged row, alarm and note is in the journal or was given to the cloud,
no row waits twice, no value changed, the ledger counts exactly what is there, no invocation counter was used twice and no
peer's counter is accepted again. `test_journal_kills.py` makes some hundred kills, `durability.py` as many as one likes.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

from edge_core.journal import CounterStore, Journal
from tests.integration.journal.conftest import T0, make_alarm, make_block, rows_in
from tests.system.journal_child import KEY, LIMITS, METER_TITLE, METERS, TITLE, clock_of

CHECK_EVERY = 15


class Server:
    """The fork server; one child at a time."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.journal_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def start(self, folder, seed, mode="go", clock="-"):
        self.process.stdin.write(f"RUN {folder} {seed} {mode} {clock}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def ended(self):
        """Wait status of the child."""
        return int(self.process.stdout.readline().split()[1])

    def close(self):
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


def read_acks(folder):
    """Words of each line."""
    return [line.split() for line in (folder / "acks").read_text().splitlines()]


def wait_for_ack(folder, since, pid, timeout_s=20.0):
    """Until the child has acknowledged something more than `since` octets, or is gone."""
    end = time.monotonic() + timeout_s
    path = folder / "acks"
    while time.monotonic() < end:
        if path.exists() and path.stat().st_size > since:
            return
        if (folder / "failed").exists():
            raise AssertionError((folder / "failed").read_text())
        time.sleep(0.001)
    raise AssertionError("the child acknowledges nothing")


@dataclass
class Tally:
    """What was done and held against the rules; every broken rule is an AssertionError instead."""

    kills: int = 0
    checks: int = 0
    rows: int = 0
    alarms: int = 0
    notes: int = 0
    counters: int = 0

    def __iadd__(self, other):
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self


def check(folder, clock="-"):
    """Hold what the journal has and what the cloud was given against what was acknowledged."""
    acks = read_acks(folder)
    assert not [a for a in acks if a[0] == "damaged"]
    counters_used = Counter(a[1] for a in acks if a[0] == "counter")
    assert [c for c, n in counters_used.items() if n > 1] == []
    rows, alarms, notes, peers = set(), set(), set(), set()
    cloud, cloud_alarms, releasing = {}, set(), set()
    for what, *rest in acks:
        if what == "rows":
            m, first, count = map(int, rest)
            rows |= {(m, first + i) for i in range(count)}
        elif what == "alarm":
            alarms.add(int(rest[0]))
        elif what == "note":
            notes.add(rest[0])
        elif what == "peer":
            peers.add(int(rest[0]))
        elif what == "cloud":
            m, row, value = map(int, rest)
            assert cloud.setdefault((m, row), value) == value
        elif what == "cloudalarm":
            cloud_alarms.add(int(rest[0]))
        elif what == "releasing":
            releasing |= {int(s) for s in rest}
    journal = Journal.open(folder / "journal.db", clock=clock_of(clock), **LIMITS)
    counters = CounterStore.open(folder / "counters.db", clock=clock_of(clock))
    try:
        assert journal.was_damaged is None
        assert journal.verify().problems == ()
        held, count = rows_in(journal)
        assert count == len(held), "a row stands twice among what waits"
        mine = {(int(k[0][2:]), (k[2] - T0) // 900): v[0] for k, v in held.items()}
        assert rows <= set(mine) | set(cloud), "acknowledged rows are missing"
        for (m, row), value in (mine | cloud).items():
            assert value == make_block(f"GP{m}", row, 1).columns[0][0], "a value changed"
        # what is both waiting and in the cloud is a resend: only of segments whose release was not yet durable
        again = {s.id for s in journal.segments(0, limit=10_000)} & releasing
        twice = set()
        for segment in again:
            for b in journal.blocks(segment):
                twice |= {(int(b.meter[2:]), (int(t) - T0) // 900) for t in list(b.times)}
        assert set(mine) & set(cloud) <= twice, "a row was journalled a second time"
        # the ledger holds exactly what is waiting or released
        for m in range(METERS):
            known = set()
            for entry in journal.ledger(f"GP{m}"):
                for run in entry.runs:
                    known |= {(m, (t - T0) // 900) for t in range(run.first, run.last + 1, 900)}
            missing = {k for k in set(mine) | rows if k[0] == m} - known
            assert not missing, f"the ledger lacks {sorted(missing)[:5]} of {len(known)}"
            assert known <= set(mine) | set(cloud)
        held_alarms = journal.alarms_waiting(100_000)
        waiting = {a.at for a in held_alarms}
        merged = {int(a.meter[2:]) for a in held_alarms if "merged" in a.detail}
        missing = alarms - waiting - cloud_alarms
        assert {a % METERS for a in missing} <= merged, "acknowledged alarms are missing"
        assert notes <= {n.sub for n in journal.notes_waiting(limit=100_000)}
        for alarm in random.Random(1).sample(sorted(alarms), min(20, len(alarms))):
            again = journal.alarm(make_alarm(f"GP{alarm % METERS}", alarm))
            assert again.result(10) is False
        used = max((int(c) for c in counters_used), default=0)
        counters.prepare(TITLE, KEY).result(10)
        mine_now = counters.next(TITLE, KEY)
        assert mine_now > used
        assert not any(counters.accept(METER_TITLE, KEY, "push", p) for p in peers)
    finally:
        journal.close()
        counters.close()
    with (folder / "acks").open("a") as acks_file:  # the counter that this check used up
        acks_file.write(f"counter {mine_now}\n")
    return Tally(0, 1, len(rows), len(alarms), len(notes), len(counters_used))


# ---- campaigns ---------------------------------------------------------------------------------

POINTS = {  # how far the numbered points of one life reach, when the files are there already
    "trace": 150,  # SQL statements of opening and of some commits
    "ops": 1_200,  # 20 instructions of SQLite's virtual machine each
    "late-trace": 80,
    "late-ops": 320,
}


def killed_by_itself(server, folder):
    status = server.ended()
    failed = folder / "failed"
    assert os.WIFSIGNALED(status), failed.read_text() if failed.exists() else status
    assert os.WTERMSIG(status) == signal.SIGKILL


def random_kills(server, folder, count, seed=0, clock="-"):
    """Kill `count` lives of one folder, each at a moment up to 120 ms after its first acknowledgement."""
    rng, tally = random.Random(f"{seed} random"), Tally()
    for turn in range(count):
        before = (folder / "acks").stat().st_size if (folder / "acks").exists() else 0
        pid = server.start(folder, seed + turn, clock=clock)
        wait_for_ack(folder, before, pid)
        time.sleep(rng.uniform(0, 0.03) * rng.choice((1, 1, 4)))  # the random point
        os.kill(pid, signal.SIGKILL)
        killed_by_itself(server, folder)
        if turn % CHECK_EVERY == CHECK_EVERY - 1 or turn == count - 1:
            last = check(folder, clock)
            tally.checks += 1
    tally += last
    tally.kills += count
    return tally


def enumerated_kills(server, folder, kind, points, seed=0, clock="-"):
    """Kill one life at each of the points: before a statement, or in the middle of one."""
    tally, last, count = Tally(), Tally(), 0
    for turn, point in enumerate(points):
        server.start(folder, seed + turn, f"{kind}:{point}", clock)
        killed_by_itself(server, folder)
        count += 1
        if count % CHECK_EVERY == 0:
            last = check(folder, clock)
            tally.checks += 1
    if count % CHECK_EVERY:
        last = check(folder, clock)
    tally += last
    tally.kills += count
    return tally


def kills_while_the_files_are_made(server, folder, kind, points, seed=0):
    """Each point in a fresh folder: the schema is being made, then the first commits. Opened again, all must be well."""
    tally = Tally()
    for turn, point in enumerate(points):
        fresh = folder / f"{turn}"
        fresh.mkdir(parents=True)
        server.start(fresh, seed + turn, f"{kind}:{point}")
        killed_by_itself(server, fresh)
        (fresh / "acks").touch()
        tally += check(fresh)
        tally.kills += 1
    return tally


def kills_while_migrating(server, folder, points, old):
    """A journal of the first schema is opened by a release with a second one, and killed at each point of it."""
    tally = Tally()
    for turn, point in enumerate(points):
        fresh = folder / f"{turn}"
        fresh.mkdir(parents=True)
        (fresh / "journal.db").write_bytes(old.read_bytes())
        server.start(fresh, turn, f"migrate:{point}")
        status = server.ended()
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, (fresh / "failed").read_text()
        for _ in range(2):  # the release before opens it, and once more
            journal = Journal.open(fresh / "journal.db", clock=clock_of("-"))
            try:
                assert journal.was_damaged is None
                assert journal.verify().problems == ()
                assert rows_in(journal)[1] == 24
            finally:
                journal.close()
        tally += Tally(int(os.WIFSIGNALED(status)), 1, 24)
    return tally


def fast():
    """A clock for which an hour passes in 18 ms: what was kept long enough is retired at nearly every turn."""
    now = time.time()  # noqa: TID251 the anchor of the children's clocks
    return f"{now:.3f}:1764000000:200000"


def spread(kind, count):
    """`count` points of a kind, evenly over its reach and over again, never twice the same when there are more of them."""
    reach = POINTS[kind]
    step = max(1, reach // max(1, count))
    return list(itertools.islice(itertools.cycle(range(1, reach, step)), count))
