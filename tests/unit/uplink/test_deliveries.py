"""What an ack sets free: late, doubled, partial, foreign, of earlier runs, of refused messages; against a simple model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_core.clock import SystemClock
from edge_core.uplink.deliveries import RETRY_REFUSED_S, RETRY_S, Deliveries, Sent
from edge_core.uplink.outbox import ALARM, NOTE, SEGMENT, AsideRow, Outbox, Ref

EPOCH = 1764000000


class Book:
    """Deliveries over an outbox that can be closed and opened as a new run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start()

    def start(self) -> None:
        self.outbox = Outbox.open(self.path, clock=SystemClock())
        self.outbox.begin(EPOCH)
        self.deliveries = Deliveries(self.outbox)

    def restart(self) -> None:
        self.outbox.close()
        self.start()

    def send(self, *refs: Ref, lane: str = "live") -> int:
        n = self.outbox.take()
        assert n is not None
        self.deliveries.send(Sent(n, "t", b"payload", refs, lane, 0.0), b"x" * 32)  # type: ignore[arg-type]
        return n

    def ack(self, *numbers: int) -> list[tuple[str, int | str]]:
        return self.deliveries.acked([(n, n) for n in numbers])[1]


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    book = Book(tmp_path / "uplink.db")
    yield book
    book.outbox.close()


def rows(segment: int, first: int, end: int, total: int) -> Ref:
    return Ref(SEGMENT, segment, first, end, total)


def test_an_item_is_released_when_all_its_parts_are_acked(book: Book) -> None:
    a = book.send(rows(1, 0, 10, 25), rows(2, 0, 5, 5))
    b = book.send(rows(1, 10, 25, 25))
    assert book.ack(b) == []
    assert book.deliveries.covered((SEGMENT, 1)) == [(10, 25)]
    assert book.ack(a) == [(SEGMENT, 1), (SEGMENT, 2)]
    assert book.deliveries.covered((SEGMENT, 1)) is None
    assert book.deliveries.sent == {}
    assert book.deliveries.octets == 0


def test_a_doubled_ack_changes_nothing(book: Book) -> None:
    n = book.send(rows(1, 0, 5, 5))
    assert book.ack(n) == [(SEGMENT, 1)]
    assert book.ack(n) == []
    assert book.ack(n + 1000) == []


def test_a_huge_range_is_no_work_and_frees_only_what_was_sent(book: Book) -> None:
    book.send(rows(1, 0, 5, 5))
    numbers, items = book.deliveries.acked([(0, 1 << 60)])
    assert (numbers, items) == ([1], [(SEGMENT, 1)])


def test_a_late_ack_of_an_earlier_run_frees_and_settles_the_second_sending(book: Book) -> None:
    old = book.send(rows(1, 0, 5, 5))
    book.restart()
    assert book.deliveries.covered((SEGMENT, 1)) == []
    assert not book.deliveries.knows((SEGMENT, 1))
    new = book.send(rows(1, 0, 5, 5))
    assert new != old
    assert book.ack(old) == [(SEGMENT, 1)]
    assert book.deliveries.sent == {}
    assert book.ack(new) == []
    book.restart()
    assert book.outbox.earlier == {}


def test_acked_parts_are_left_out_after_a_restart(book: Book) -> None:
    a = book.send(rows(1, 0, 10, 30))
    book.send(rows(1, 10, 20, 30))
    book.ack(a)
    book.restart()
    assert book.deliveries.covered((SEGMENT, 1)) == [(0, 10)]
    c = book.send(rows(1, 10, 30, 30))
    assert book.ack(c) == [(SEGMENT, 1)]
    book.restart()
    assert (book.outbox.acked, book.outbox.earlier) == ({}, {})


def test_a_refused_message_is_aside_over_restarts_until_a_late_ack(book: Book) -> None:
    n = book.send(rows(1, 0, 5, 10))
    row = book.deliveries.refuse(n, "cloud-refused", "schema-invalid: why", 1)
    assert row is not None
    assert book.deliveries.wholly_aside(row) == []
    assert book.deliveries.aside == 1
    book.restart()
    assert book.deliveries.covered((SEGMENT, 1)) == [(0, 5)]
    m = book.send(rows(1, 5, 10, 10))
    assert book.ack(m) == []
    assert book.deliveries.covered((SEGMENT, 1)) is None
    assert book.ack(n) == [(SEGMENT, 1)]
    assert book.deliveries.aside == 0
    book.restart()
    assert (book.outbox.aside, book.outbox.acked) == ({}, {})


def test_a_refusal_of_an_earlier_runs_number_is_taken(book: Book) -> None:
    n = book.send(rows(1, 0, 5, 5))
    book.restart()
    row = book.deliveries.refuse(n, "cloud-refused", "why", 1)
    assert row == AsideRow((rows(1, 0, 5, 5),), "cloud-refused", "why", 1)
    assert book.deliveries.wholly_aside(row) == [(SEGMENT, 1)]
    assert book.deliveries.refuse(n, "cloud-refused", "again", 2) is None
    assert book.deliveries.refuse(n + 77, "cloud-refused", "never sent", 2) is None


@pytest.mark.parametrize(
    ("cause", "after_s"),
    [("broker-refused", RETRY_S), ("unanswered", RETRY_S), ("cloud-refused", RETRY_REFUSED_S)],
)
def test_what_stands_aside_is_tried_again(book: Book, cause: str, after_s: float) -> None:
    n = book.send(rows(1, 0, 5, 5))
    book.deliveries.refuse(n, cause, "why", 1000)
    assert book.deliveries.knows((SEGMENT, 1))
    assert book.deliveries.retry(999 + after_s) == []
    assert book.deliveries.retry(1000 + after_s) == [rows(1, 0, 5, 5)]
    assert not book.deliveries.knows((SEGMENT, 1))
    assert book.deliveries.covered((SEGMENT, 1)) == []
    m = book.send(rows(1, 0, 5, 5))
    book.deliveries.refuse(m, cause, "why", 2000)
    book.restart()
    passing = cause != "cloud-refused"
    assert book.deliveries.covered((SEGMENT, 1)) == ([] if passing else None)
    assert book.deliveries.aside == (0 if passing else 1)


def test_alarms_and_notes_are_items_too(book: Book) -> None:
    a = book.send(Ref(ALARM, "ab" * 8, 0, 1, 1), Ref(ALARM, "cd" * 8, 0, 1, 1), lane="alarms")
    n = book.send(Ref(NOTE, 4, 0, 1, 2))
    m = book.send(Ref(NOTE, 4, 1, 2, 2))
    assert book.deliveries.knows((ALARM, "ab" * 8))
    assert book.deliveries.open_alarms() == 2
    assert book.ack(a) == [(ALARM, "ab" * 8), (ALARM, "cd" * 8)]
    assert book.deliveries.knows((ALARM, "ab" * 8)), (
        "a repeated push right after the ack is not sent"
    )
    assert book.ack(n) == []
    assert book.ack(m) == [(NOTE, 4)]


def test_records_whose_items_are_gone_are_swept(book: Book) -> None:
    book.send(rows(1, 0, 5, 5))
    book.send(rows(2, 0, 5, 5))
    book.restart()
    assert sorted(book.deliveries.only_earlier()) == [(SEGMENT, 1), (SEGMENT, 2)]
    book.deliveries.release([(SEGMENT, 1)])
    book.restart()
    assert book.deliveries.only_earlier() == [(SEGMENT, 2)]


def test_withdrawn_parts_are_pending_again(book: Book) -> None:
    n = book.send(rows(1, 0, 5, 5))
    assert book.deliveries.withdraw(n) == (rows(1, 0, 5, 5),)
    assert book.deliveries.octets == 0
    assert not book.deliveries.knows((SEGMENT, 1))


def test_back_off_doubles_from_five_to_sixty_seconds() -> None:
    sent = Sent(1, "t", b"", (), "live", 0.0)
    waits = []
    for attempt in range(1, 8):
        sent.attempts = attempt
        sent.back_off(100.0)
        waits.append(sent.due - 100.0)
    assert waits == [5, 10, 20, 40, 60, 60, 60]


@pytest.mark.parametrize("seed", range(12))
def test_against_a_model(book: Book, seed: int) -> None:
    """Random sends, acks, refusals and restarts; a part is free only if a number that carried it was acked."""
    rng = random.Random(seed)
    totals = {segment: rng.randrange(1, 30) for segment in range(1, 6)}
    acked: dict[int, set[int]] = {segment: set() for segment in totals}
    carried: dict[int, Ref] = {}
    released: set[int] = set()
    for _ in range(150):
        what = rng.random()
        if what < 0.5:
            segment = rng.choice(list(totals))
            first = rng.randrange(totals[segment])
            ref = rows(segment, first, rng.randrange(first, totals[segment]) + 1, totals[segment])
            if segment not in released:
                carried[book.send(ref)] = ref
        elif what < 0.8 and carried:
            n = rng.choice(list(carried))
            for kind, key in book.ack(n):
                assert kind == SEGMENT
                assert int(key) not in released
                released.add(int(key))
            ref = carried[n]
            acked[int(ref.key)] |= set(range(ref.first, ref.end))
        elif what < 0.92 and carried:
            book.deliveries.refuse(rng.choice(list(carried)), "cloud-refused", "why", 1)
        else:
            book.restart()
        assert released == {s for s, rows_ in acked.items() if len(rows_) == totals[s]}
        for segment, total in totals.items():
            if segment in released:
                continue
            covered = book.deliveries.covered((SEGMENT, segment))
            rows_covered = (
                set(range(total))
                if covered is None
                else {i for a, b in covered for i in range(a, b)}
            )
            assert rows_covered >= acked[segment]
