"""SIGKILL at random and at enumerated points: nothing acknowledged is missing, nothing is doubled, no counter is used twice."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from edge_core.clock import SystemClock
from edge_core.journal import CounterStore, Journal
from tests.integration.journal.conftest import T0, make_alarm, make_block, rows_in
from tests.system.journal_child import KEY, METER_TITLE, METERS, TITLE

pytestmark = [pytest.mark.system, pytest.mark.slow]


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

    def start(self, folder, seed, mode="go"):
        self.process.stdin.write(f"RUN {folder} {seed} {mode}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def ended(self):
        """Wait status of the child."""
        return int(self.process.stdout.readline().split()[1])

    def close(self):
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture
def server():
    out = Server()
    yield out
    out.close()


def read_acks(folder):
    return [line.split() for line in (folder / "acks").read_text().splitlines()]


def wait_for_ack(folder, since, pid, timeout_s=20.0):
    """Until the child has acknowledged something more than `since` octets, or is gone."""
    end = time.monotonic() + timeout_s
    path = folder / "acks"
    while time.monotonic() < end:
        if path.exists() and path.stat().st_size > since:
            return
        if (folder / "failed").exists():
            pytest.fail((folder / "failed").read_text())
        time.sleep(0.001)
    pytest.fail("the child acknowledges nothing")


def check(folder):
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
    journal = Journal.open(folder / "journal.db", clock=SystemClock(), max_bytes=768 << 10,
                           alarm_reserve_bytes=64 << 10, keep_acked_s=40)  # fmt: skip
    counters = CounterStore.open(folder / "counters.db", clock=SystemClock())
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
            assert {k for k in set(mine) | rows if k[0] == m} <= known
            assert known <= set(mine) | set(cloud)
        waiting = {a.at for a in journal.alarms_waiting(100_000)}
        assert alarms <= waiting | cloud_alarms, "acknowledged alarms are missing"
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
    return len(rows), len(alarms)


@pytest.mark.timeout(120)
def test_kills_at_random_points(server, tmp_path):
    rng = random.Random(20251124)
    for seed in range(150):
        before = (tmp_path / "acks").stat().st_size if seed else 0
        pid = server.start(tmp_path, seed)
        wait_for_ack(tmp_path, before, pid)
        time.sleep(rng.uniform(0, 0.03) * rng.choice((1, 1, 4)))  # the random point
        os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(server.ended()) == signal.SIGKILL, (tmp_path / "failed").read_text()
        if seed % 15 == 14:
            check(tmp_path)
    rows, alarms = check(tmp_path)
    assert rows > 1000
    assert alarms > 50


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["trace", "ops", "late-trace", "late-ops"])
def test_kills_at_enumerated_points(server, tmp_path, kind):
    """Before each statement, and between the instructions of statements: of opening, then of committing."""
    points = {
        "trace": [*range(1, 130, 5), *range(130, 260, 20)],
        "ops": range(2, 1200, 48),
        "late-trace": range(1, 80, 2),
        "late-ops": range(1, 320, 11),
    }[kind]
    for seed, point in enumerate(points):
        server.start(tmp_path, seed, f"{kind}:{point}")
        status = server.ended()
        assert os.WIFSIGNALED(status), (tmp_path / "failed").read_text()
        assert os.WTERMSIG(status) == signal.SIGKILL
        if seed % 15 == 14:
            check(tmp_path)
    rows, _ = check(tmp_path)
    assert rows or "late" not in kind
