"""Roles in several processes: what several do is what one does, whoever is killed, and whichever way the roles move."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edge_core.domain import alarm_id
from edge_core.journal.elsewhere import Elsewhere
from edge_core.uplink.outbox import open_reader
from tests.conftest import Mosquitto, eventually_sync
from tests.integration.uplink.conftest import Cloud, cells
from tests.system.conftest import MIXED_FLEET, OPENDCU, Fleet
from tests.system.split import FOUR, ONE, Split

pytestmark = [pytest.mark.system, pytest.mark.timeout(150)]

DLMS, MODBUS, DETECTOR, UPLINK = FOUR


@pytest.fixture
def fleet(tmp_path: Path, civil: dict[str, str]) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, MIXED_FLEET, civil)
    yield fleet
    fleet.close()


@pytest.fixture
def gateway(
    tmp_path: Path, fleet: Fleet, mosquitto: Mosquitto, civil: dict[str, str]
) -> Iterator[Split]:
    made = Split(tmp_path, mosquitto.url, civil)
    yield made
    made.close()


def kept(gateway: Split) -> dict[Any, Any]:
    """Every cell that the journals of all processes hold, in the shape of Cloud.cells; they must agree."""
    out: dict[Any, Any] = {}
    for path in sorted((gateway.folder / "data").glob("journal*.db")):
        journal = Elsewhere(path)
        after = 0
        while page := journal.segments(after, everything=True):
            for segment in page:
                after = segment.id
                for identity, cell in cells(*journal.blocks(segment.id)).items():
                    assert out.setdefault(identity, cell) == cell
        journal.close()
    return out


def arrivals(cloud: Cloud) -> Counter[Any]:
    """How often each row arrived."""
    rows: Counter[Any] = Counter()
    for topic, document in list(cloud.documents):
        for block in document.get("blocks", ()) if topic.startswith("reads/") else ():
            layout = document["layouts"][block["layout"]]
            times = block.get("t") or [
                block["t0"] + i * layout["period"] for i in range(block["rows"])
            ]
            rows.update((block["meter"], block["device"], layout["profile"], at) for at in times)
    return rows


def waiting(gateway: Split, roles: str) -> int:
    status = gateway.ask_of(roles, "journal-status")
    return -1 if status is None else status["segments_waiting"]


def subscribed(gateway: Split, roles: str = UPLINK) -> None:
    """The uplink hears commands."""

    def connected() -> bool:
        overview = gateway.ask_of(roles, "overview")
        return bool(overview) and overview["uplink"]["state"] == "connected"

    eventually_sync(connected, 20)


def command(cloud: Cloud, id_: str, do: str, meter: str, **args: Any) -> None:
    cloud.send(
        f"down/commands/{id_}",
        {"schema": "opendcu.command/1", "id": id_, "do": do, "meter": meter, "args": args, "expires": 4_000_000_000},
    )  # fmt: skip


def replies(cloud: Cloud, id_: str, *states: str) -> list[dict[str, Any]]:
    found = [d for topic, d in list(cloud.documents) if topic == f"replies/{id_}"]
    return [d for d in found if not states or d["state"] in states]


def gasp(gateway: Split, fleet: Fleet, cloud: Cloud, meter: int) -> None:
    """A last gasp arrives."""
    report = fleet.order("gasp", meter=meter, to=gateway.push_url, how="genuine")
    wanted = alarm_id(report["meter"], "last-gasp", [], report["at"])
    eventually_sync(lambda: wanted in cloud.alarms, 15)


def test_four_processes_are_one_gateway(gateway, fleet, cloud, settled, civil):
    gateway.run(*FOUR)
    settled(gateway)
    gasp(gateway, fleet, cloud, 1)
    for do in ("ping", "read", "backfill", "park", "unpark"):
        command(cloud, f"c-{do}", do, "GP1000002", **({"what": "clock"} if do == "read" else {}))
    for do in ("ping", "read", "backfill", "park", "unpark"):
        eventually_sync(lambda id_=f"c-{do}": replies(cloud, id_, "done"), 20)
    assert replies(cloud, "c-read", "done")[0]["registers"]
    for meter in ("GP1000003", "MB2"):  # each in the process that polls it
        done = subprocess.run(
            [OPENDCU, "read", meter, "-c", gateway.config, "--what", "instantaneous", "--json"],
            env=civil, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["registers"]
    second = subprocess.run(
        [OPENDCU, "run", "-c", gateway.config, "--roles", "push,console"],
        env=civil, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert second.returncode == 1  # a role that another process plays
    assert "the role push" in second.stderr
    assert str(gateway.running[DLMS].pid) in second.stderr
    for roles in FOUR:  # owners free what is acked
        eventually_sync(lambda r=roles: waiting(gateway, r) == 0, 30)
    assert gateway.end() == [0, 0, 0, 0]
    held = kept(gateway)
    assert any(identity[0] == "MB1" for identity, _ in held)
    assert held.items() <= cloud.cells.items()
    assert max(arrivals(cloud).values()) == 1


def test_each_is_killed_and_nothing_is_lost(gateway, fleet, cloud, settled):
    gateway.run(*FOUR)
    eventually_sync(lambda: all(m["device"] for m in gateway.ask("meters")), 30)
    for number, roles in enumerate(FOUR):
        before = len(cloud.cells)
        gateway.kill_of(roles)
        if roles not in (UPLINK, DLMS):  # the others go on
            gasp(gateway, fleet, cloud, number % 4)
        gateway.run(roles)
        eventually_sync(
            lambda n=before: gateway.ask("sweep", timeout_s=2) and len(cloud.cells) > n, 40
        )
    settled(gateway, 40)
    gasp(gateway, fleet, cloud, 3)
    assert {epoch for _, epoch, _ in cloud.arrived} == {cloud.arrived[0][1]}  # no new epoch
    for roles in FOUR:
        eventually_sync(lambda r=roles: waiting(gateway, r) == 0, 40)
    assert gateway.end() == [0, 0, 0, 0]
    assert kept(gateway).items() <= cloud.cells.items()


def test_from_one_process_to_four_and_back_with_a_backlog(
    gateway, fleet, mosquitto, cloud, settled
):
    gateway.run(ONE)
    eventually_sync(lambda: len(cloud.cells) > 2_000, 30)
    eventually_sync(lambda: waiting(gateway, ONE) == 0, 30)

    changes: list[int] = []

    def backlog(*processes: str) -> None:
        """The broker goes; more is read; the processes end, and others take over."""
        mosquitto.kill()
        held = len(kept(gateway))
        eventually_sync(
            lambda: gateway.ask("sweep", timeout_s=3) and len(kept(gateway)) > held + 50, 40
        )
        assert set(gateway.end()) == {0}
        changes.append(sum(topic != "health" for topic, _, _ in cloud.arrived))
        gateway.run(*processes)
        mosquitto.start()

    backlog(*FOUR)
    eventually_sync(lambda: all(m["last_read"] for m in gateway.ask("meters")), 30)
    eventually_sync(lambda: kept(gateway).items() <= cloud.cells.items(), 40)
    for roles in FOUR:
        eventually_sync(lambda r=roles: waiting(gateway, r) == 0, 40)
    backlog(ONE)
    settled(gateway, 40)
    eventually_sync(lambda: kept(gateway).items() <= cloud.cells.items(), 40)
    assert set(gateway.end()) == {0}
    rows = arrivals(cloud)
    assert max(rows.values()) == 1, rows.most_common(3)
    numbers = [(epoch, n) for topic, epoch, n in cloud.arrived if topic != "health"]
    assert len({epoch for epoch, _ in numbers}) == 1
    for change in changes:  # numbers go on from process to process
        assert max(numbers[:change]) < min(numbers[change:])


def test_a_command_is_not_run_again_after_a_restart(gateway, fleet, cloud):
    gateway.run(DLMS, UPLINK)
    eventually_sync(lambda: all(m["device"] for m in gateway.ask("meters")), 30)
    subscribed(gateway)
    command(cloud, "c-park", "park", "GP1000001", until=4_000_000_000)
    eventually_sync(lambda: replies(cloud, "c-park", "done"), 20)
    assert gateway.ask_of(DLMS, "unpark", meter="GP1000001")
    for roles in (DLMS, UPLINK):
        gateway.kill_of(roles)
    gateway.run(DLMS, UPLINK)
    subscribed(gateway)
    before = len(replies(cloud, "c-park", "done"))
    # a repeat of another command, running behind it, shows that the first was looked at
    command(cloud, "c-park", "park", "GP1000001", until=4_000_000_000)
    command(cloud, "c-read", "read", "GP1000002", what="clock")
    eventually_sync(lambda: len(replies(cloud, "c-park", "done")) > before, 20)
    eventually_sync(lambda: replies(cloud, "c-read", "done"), 20)
    assert gateway.ask_of(DLMS, "meter", meter="GP1000001")["state"] != "parked"


@pytest.mark.parametrize("processes", [(DLMS, UPLINK), ("dlms,push,uplink",)])
def test_a_command_that_a_kill_interrupts_has_failed_and_is_not_begun_again(
    gateway, fleet, cloud, processes
):
    gateway.run(*processes)
    eventually_sync(lambda: all(m["device"] for m in gateway.ask("meters")), 30)
    for meter in range(4):
        fleet.order("fault", meter=meter, what="silent", **{"for": 60.0})
    subscribed(gateway, processes[-1])
    command(cloud, "c-slow", "read", "GP1000001", what="clock")
    eventually_sync(lambda: replies(cloud, "c-slow", "accepted"), 20)
    gateway.kill_of(processes[0])
    gateway.run(processes[0])
    failed = eventually_sync(lambda: replies(cloud, "c-slow", "failed", "done"), 30)
    assert failed[0]["state"] == "failed"
    assert failed[0]["error"]["class"] == "Interrupted"
    query = "SELECT state FROM command WHERE id = 'c-slow'"
    with closing(open_reader(gateway.directory.uplink)) as db:
        eventually_sync(lambda: db.execute(query).fetchone() == ("failed",))
    subscribed(gateway, processes[-1])
    command(cloud, "c-slow", "read", "GP1000001", what="clock")
    again = eventually_sync(lambda: len(replies(cloud, "c-slow", "failed")) >= 2, 20)
    assert again
    assert not replies(cloud, "c-slow", "done")
