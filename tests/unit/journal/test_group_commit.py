import threading

import pytest

from edge_core.clock import ManualClock
from edge_core.journal.writer import LAZY_S, LAZY_WEIGHT, GroupCommit


class Sink:
    """Commits what it is given when the gate is open."""

    def __init__(self, idle=None):
        self.clock = ManualClock()
        self.gate = threading.Event()
        self.gate.set()
        self.batches = []
        self.group = GroupCommit("test", self.clock, self.commit, idle)

    def commit(self, batch):
        assert self.gate.wait(10)
        self.batches.append([item.what for item in batch])
        for item in batch:
            item.future.set_result(None)


@pytest.fixture
def sink():
    out = Sink()
    out.group.start()
    yield out
    out.gate.set()
    assert out.group.close(5)


def test_what_arrives_during_a_commit_shares_the_next(sink):
    sink.gate.clear()
    first = sink.group.submit("a")
    while sink.group.urgent():  # until it is taken
        pass
    rest = [sink.group.submit(str(n)) for n in range(50)]
    sink.gate.set()
    for item in (first, *rest):
        item.future.result(5)
    assert [len(b) for b in sink.batches] == [1, 50]


def test_lazy_items_wait_for_their_time_or_weight(sink):
    lazy = sink.group.submit("lazy", within_s=LAZY_S, weight=10)
    sink.group.submit("now").future.result(5)
    assert sink.batches == [["now"]]
    assert sink.group.waiting() == 10
    heavy = sink.group.submit("heavy", within_s=LAZY_S, weight=LAZY_WEIGHT)
    heavy.future.result(5)
    assert lazy.future.done()
    last = sink.group.submit("last", within_s=LAZY_S, weight=1)
    sink.clock.advance(LAZY_S)
    last.future.result(5)
    assert sink.batches[1:] == [["lazy", "heavy"], ["last"]]


def test_what_weighs_nothing_joins_any_commit(sink):
    release = sink.group.submit("release", within_s=LAZY_S)
    sink.group.submit("now").future.result(5)
    assert release.future.done()


def test_a_future_cannot_be_cancelled(sink):
    item = sink.group.submit("lazy", within_s=LAZY_S, weight=1)
    assert not item.future.cancel()
    sink.group.flush().result(5)
    assert item.future.result(0) is None


def test_a_commit_that_raises_answers_all_and_the_next_one_works():
    sink = Sink()
    broken = [True]

    def commit(batch):
        if broken.pop():
            raise ZeroDivisionError
        sink.commit(batch)

    sink.group._commit = commit
    broken.insert(0, False)
    sink.group.start()
    with pytest.raises(ZeroDivisionError):
        sink.group.submit("a").future.result(5)
    sink.group.submit("b").future.result(5)
    assert sink.group.close(5)


def test_idle_work_gives_way_to_what_is_due():
    done = []
    reached = threading.Event()

    def idle():
        done.append(len(sink.batches))
        if len(done) == 3:
            reached.set()
            sink.group.submit("now")
        return len(done) < 6

    sink = Sink(idle)
    sink.group.start()
    assert reached.wait(5)
    sink.group.flush().result(5)
    assert sink.group.close(5)
    assert sink.batches[0][0] == "now"
    assert done[:3] == [0, 0, 0]


def test_closing_commits_what_is_queued_and_refuses_more():
    sink = Sink()
    sink.group.start()
    item = sink.group.submit("lazy", within_s=LAZY_S, weight=1)
    assert sink.group.close(5)
    assert item.future.result(0) is None
    with pytest.raises(RuntimeError, match="closed"):
        sink.group.submit("more")
