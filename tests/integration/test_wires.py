"""What two processes say to each other, with real journals and sockets: alarms cross at once, losses are looked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_core.clock import SystemClock
from edge_core.domain import Alarm
from edge_core.gateway.wires import Wires
from edge_core.journal import Journal, Journals
from edge_core.journal.datadir import DataDirectory
from tests.conftest import eventually
from tests.integration.journal.conftest import make_alarm, make_block

CLOCK = SystemClock()


class Process:
    """The wires of a process and what they told it."""

    def __init__(self, directory: DataDirectory, name: str, *roles: str) -> None:
        self.journal = Journal.open(directory.journal(name), clock=CLOCK)
        follows = {"uplink", "detector"} & set(roles)
        self.journals = Journals(self.journal, CLOCK) if follows else None
        self.heard: list[Alarm] = []
        self.commits = self.news = self.looks = 0
        if self.journals is not None:
            self.journals.on_alarm(self.heard.append)
            self.journals.on_commit(self._committed)
        self.wires = Wires(
            directory, name, roles, self.journal, self.journals,
            on_news=self._told, on_look=self._looked,
        )  # fmt: skip
        self.wires.start(asyncio.get_running_loop())

    def _committed(self) -> None:
        self.commits += 1

    def _told(self) -> None:
        self.news += 1

    def _looked(self) -> None:
        self.looks += 1

    def close(self) -> None:
        self.wires.close()
        if self.journals is not None:
            self.journals.close()
        self.journal.close()


Started = Callable[..., Process]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    directory = DataDirectory(tmp_path).prepare()
    made: list[Process] = []

    def start(name: str, *roles: str) -> Process:
        made.append(Process(directory, name, *roles))
        return made[-1]

    yield start
    for process in made:
        process.close()


async def test_an_alarm_crosses_before_its_commit(started):
    uplink, dlms = started("", "uplink"), started("dlms", "dlms", "push")
    dlms.journal._group._commit = lambda batch: None  # the disk takes for ever
    alarm = make_alarm()
    dlms.journal.alarm(alarm)
    await eventually(lambda: uplink.heard == [alarm])
    assert dlms.journal.alarms_waiting() == []


async def test_a_storm_crosses_whole(started):
    uplink, dlms = started("", "uplink"), started("dlms", "dlms", "push")
    alarms = [make_alarm(f"GP{i}") for i in range(1_000)]
    for alarm in alarms:
        dlms.journal.alarm(alarm)
    await eventually(lambda: len(uplink.heard) == len(alarms))
    assert uplink.heard == alarms


async def test_alarms_while_the_uplink_is_away_are_looked_for_when_it_is_back(started):
    dlms = started("dlms", "dlms", "push")
    alarm = make_alarm()
    await asyncio.wrap_future(dlms.journal.alarm(alarm))
    uplink = started("", "uplink")
    assert uplink.journals is not None
    await asyncio.wrap_future(dlms.journal.append(make_block(), durable="now"))
    await eventually(lambda: uplink.looks == 1)
    assert uplink.journals.alarms_waiting() == [alarm]
    await asyncio.wrap_future(dlms.journal.append(make_block(first=9), durable="now"))
    await eventually(lambda: uplink.commits >= 2)
    assert uplink.looks == 1  # once


async def test_commits_are_told_to_uplink_and_detector_and_news_to_the_owners(started):
    uplink, detector = started("", "uplink", "console"), started("detector", "detector")
    dlms, modbus = started("dlms", "dlms", "push"), started("modbus", "modbus")
    await asyncio.wrap_future(modbus.journal.append(make_block(), durable="now"))
    await eventually(lambda: uplink.commits and detector.commits)
    uplink.journals.look()
    uplink.wires.news()
    await eventually(lambda: dlms.news and modbus.news and detector.news)


async def test_the_detector_holds_segments_of_others(started):
    detector, dlms = started("detector", "detector"), started("dlms", "dlms")
    await asyncio.wrap_future(dlms.journal.append(make_block(), durable="now"))
    detector.journals.look()
    base = max(detector.journals.heads())
    detector.journals.hold("detector", base + 1)
    await eventually(lambda: dlms.journal._writing.holds == {"detector": 1})
    detector.journals.hold("detector", 0)  # its own
    assert detector.journal._writing.holds == {"detector": 0}
