"""The alarms lane: at once, together in a storm, each once, none kept back that cannot leave."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from edge_core.clock import SystemClock
from edge_core.domain import Alarm, make_alarm
from edge_core.uplink.alarm_lane import AT_ONCE_BURST, MOST_WAITING, AlarmLane
from edge_core.uplink.packer import Draft, room_of
from edge_core.uplink.payloads.alarms import Alarms
from edge_core.uplink.payloads.envelope import message
from edge_core.uplink.topics import Topics
from tests.conftest import eventually


class Lane:
    """A lane with a cloud that remembers what was emitted."""

    def __init__(
        self, *, limit: int = 100_000, narrow: bool = False, batch_s: float = 0.05
    ) -> None:
        self.limit = limit
        self.drafts: list[Draft] = []
        self.known: set[Any] = set()
        self.open = True
        self.lane = AlarmLane(
            Topics("dcu", "d"),
            emit=self.emit,
            knows=self.known.__contains__,
            clock=SystemClock(),
            batch_s=batch_s,
            room=room_of(limit, "d"),
            narrow=narrow,
        )

    def emit(self, draft: Draft) -> bool:
        if self.open:
            self.drafts.append(draft)
            self.known |= {ref.item for ref in draft.refs}
        return self.open

    def heard(self, *alarms: Alarm) -> None:
        for alarm in alarms:
            self.lane.heard(alarm, asyncio.get_running_loop())

    def messages(self) -> list[tuple[str, Any]]:
        out = []
        for n, draft in enumerate(self.drafts, start=1):
            whole = message(
                draft.name,
                dcu="d",
                epoch=10**10,
                n=10**9 + n,
                sent=10**10,
                kind=draft.kind,
                members=draft.members,
            )
            assert len(whole) <= self.limit
            msgspec.json.decode(whole, type=Alarms)
            out.append((draft.topic, json.loads(whole)["alarms"]))
        return out


def gasp(k: int, code: str = "last-gasp", **more: Any) -> Alarm:
    return make_alarm(
        f"GP{k:07d}", code, at=1764000000 + k, heard=1764000001 + k, authenticated=True, **more
    )


async def test_single_alarms_leave_in_the_same_turn() -> None:
    lane = Lane()
    lane.heard(gasp(1))
    assert [[a["meter"] for a in alarms] for _, alarms in lane.messages()] == [["GP0000001"]]
    lane.heard(gasp(1))
    assert len(lane.drafts) == 1


async def test_a_storm_is_gathered_and_nothing_is_doubled() -> None:
    lane = Lane()
    storm = [gasp(k) for k in range(1_000)]
    lane.heard(*storm, *storm)
    await eventually(lambda: sum(len(d.refs) for d in lane.drafts) == 1_000)
    sizes = [len(d.refs) for d in lane.drafts]
    assert sizes[: int(AT_ONCE_BURST)] == [1] * int(AT_ONCE_BURST)
    assert len(sizes) <= AT_ONCE_BURST + 4
    ids = [a["id"] for _, alarms in lane.messages() for a in alarms]
    assert sorted(ids) == sorted(a.id for a in storm)


async def test_classes_do_not_mix() -> None:
    lane = Lane()
    lane.lane.found([gasp(1), gasp(2, "cover-open"), gasp(3), gasp(4, "under-voltage")])
    assert sorted((t, len(a)) for t, a in lane.messages()) == [
        ("dcu/d/alarms/outage", 2),
        ("dcu/d/alarms/tamper", 1),
        ("dcu/d/alarms/voltage", 1),
    ]


async def test_messages_keep_to_the_limit() -> None:
    lane = Lane(limit=4_800)
    lane.lane.found([gasp(k) for k in range(300)])
    assert sum(len(alarms) for _, alarms in lane.messages()) == 300
    assert len(lane.drafts) > 10


@pytest.mark.parametrize("detail", [{"x": "y" * 9_000}, {"x": {1, 2}}, {"x": [[[]]] * 3}])
async def test_an_alarm_leaves_even_if_its_detail_cannot(detail: dict[str, Any]) -> None:
    lane = Lane(limit=4_800)
    lane.heard(gasp(1, detail=detail))
    ((_, alarms),) = lane.messages()
    assert alarms[0]["id"] == gasp(1).id


async def test_what_cannot_leave_is_left_to_the_journal() -> None:
    lane = Lane()
    lane.lane.missed = False
    lane.open = False
    lane.heard(gasp(1))
    assert lane.lane.missed
    lane.open = True
    lane.lane.found([gasp(1)])
    assert len(lane.drafts) == 1


async def test_what_waits_is_bounded() -> None:
    lane = Lane(batch_s=30.0)
    lane.lane.missed = False
    lane.heard(*(gasp(k) for k in range(MOST_WAITING + 100)))
    assert lane.lane.missed
    lane.lane.flush()
    assert sum(len(d.refs) for d in lane.drafts) == MOST_WAITING + AT_ONCE_BURST


async def test_a_narrow_link_gets_columns_in_a_storm() -> None:
    lane = Lane(limit=4_800, narrow=True)
    odd = [
        gasp(1, "phase-outage", phases=("L1",)),
        msgspec.structs.replace(gasp(2), authenticated=False),
    ]
    lane.heard(gasp(9_999), *(gasp(k) for k in range(100, 600)), *odd)
    assert [len(d.refs) for d in lane.drafts] == [1]
    await eventually(lambda: sum(len(d.refs) for d in lane.drafts) == 503)
    compact = [a for _, a in lane.messages() if isinstance(a, dict)]
    assert sum(len(a["ids"]) for a in compact) == 500
    assert {a["code"] for a in compact} == {"last-gasp"}
    assert all(len(a["at"]) == len(a["meters"]) == len(a["ids"]) for a in compact)
    plain = [a for _, alarms in lane.messages() if isinstance(alarms, list) for a in alarms]
    assert {a["id"] for a in plain} == {gasp(9_999).id, *(a.id for a in odd)}
    assert len(lane.drafts) < 15
