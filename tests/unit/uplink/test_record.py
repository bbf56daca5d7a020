"""The record of commands: an id is entered once, its last answer survives restarts, and the record stays small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_core.clock import SystemClock
from edge_core.uplink import record as module
from edge_core.uplink.outbox import Outbox
from edge_core.uplink.record import Order, Record, open_orders

NOW = 1_764_000_000.0


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[], Outbox]]:
    made: list[Outbox] = []

    def open_() -> Outbox:
        for before in made:
            before.close()
        made.append(Outbox.open(tmp_path / "uplink.db", clock=SystemClock()))
        made[-1].begin(1764000000)
        return made[-1]

    yield open_
    for box in made:
        box.close()


def order(number: int, do: str = "read") -> Order:
    return Order(
        id=f"c-{number}", do=do, meter="GP1", args={"what": "clock"}, expires=4_000_000_000
    )


def test_what_is_given_waits_for_its_role(opened):
    box = opened()
    record = Record(box)
    record.enter(order(1), "given", "dlms", NOW).result(10)
    record.enter(order(2), "given", "modbus", NOW).result(10)
    record.enter(order(3), "accepted", "dlms", NOW).result(10)
    assert open_orders(box.path, ["dlms", "push"], ["given"]) == [("given", order(1))]
    assert open_orders(box.path, ["dlms"], ["given", "accepted"]) == [
        ("given", order(1)), ("accepted", order(3)),
    ]  # fmt: skip
    record.answered("c-1", {"state": "accepted"})
    box.sync().result(10)
    assert open_orders(box.path, ["dlms"], ["given"]) == []
    record.answered("c-1", {"state": "done"})
    box.sync().result(10)
    assert open_orders(box.path, ["dlms"], ["given", "accepted"]) == [("accepted", order(3))]


def test_a_repeat_is_answered_from_disk_after_a_restart(opened):
    record = Record(opened())
    record.enter(order(1), "accepted", "dlms", NOW).result(10)
    body = {"state": "done", "registers": [{"name": "clock", "value": 7}]}
    record.answered("c-1", body)
    assert record.answer("c-1") == body
    record = Record(opened())
    assert record.state("c-1") == "done"
    assert record.answer("c-1") == body
    assert record.state("c-2") == ""
    assert record.answer("c-2") is None


def test_what_is_finished_does_not_change_and_what_is_unknown_is_not_kept(opened):
    record = Record(opened())
    record.enter(
        order(1), "failed", "dlms", NOW, {"state": "failed", "error": {"class": "Expired"}}
    )
    record.answered("c-1", {"state": "accepted"})  # read again from a journal
    record.answered("c-9", {"state": "done"})
    assert record.state("c-1") == "failed"
    assert record.answer("c-1") == {"state": "failed", "error": {"class": "Expired"}}
    assert record.state("c-9") == ""


def test_of_a_large_answer_only_the_state_is_kept(opened):
    record = Record(opened())
    record.enter(order(1), "accepted", "dlms", NOW)
    record.answered("c-1", {"state": "done", "blocks": ["x" * module.KEPT_OCTETS]})
    kept = record.answer("c-1")
    assert kept is not None
    assert kept["state"] == "done"
    assert kept["error"]["class"] == "AnswerNotKept"


def test_the_oldest_finished_ones_are_forgotten(opened, monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 10)
    box = opened()
    record = Record(box)
    record.enter(order(0), "accepted", "dlms", NOW)
    for number in range(1, 30):
        record.enter(order(number), "failed", "dlms", NOW + number)
    box.sync().result(10)
    assert record.state("c-0") == "accepted"  # open: the last to go
    assert [n for n in range(1, 30) if record.state(f"c-{n}")] == list(range(21, 30))
    again = Record(opened())
    assert [n for n in range(30) if again.state(f"c-{n}")] == [0, *range(21, 30)]


def test_there_is_no_record_yet(tmp_path):
    assert open_orders(tmp_path / "uplink.db", ["dlms"], ["given"]) == []


def test_a_new_epoch_keeps_the_record(opened):
    box = opened()
    record = Record(box)
    record.enter(order(1), "accepted", "dlms", NOW)
    box.begin(1764000009)
    box.sync().result(10)
    assert open_orders(box.path, ["dlms"], ["accepted"]) == [("accepted", order(1))]
