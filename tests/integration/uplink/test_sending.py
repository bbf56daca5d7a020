"""Journal to cloud over a real broker: once, whole, in the right order, whatever cloud and broker do."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_core.clock import SystemClock
from edge_core.domain import Column, Layout, make_alarm
from edge_core.uplink.outbox import RANGE
from tests.conftest import Mosquitto, eventually, free_port
from tests.integration.uplink.conftest import LAYOUT, T0, Cloud, Uplinked, block, cells

pytestmark = [pytest.mark.integration, pytest.mark.peer]
Make = Callable[..., Uplinked]


def gasp(meter: int, at: int = T0) -> Any:
    return make_alarm(
        f"GP{1_000_000 + meter}", "last-gasp", at=at, heard=at + 1, authenticated=True
    )


async def test_everything_arrives_once_and_is_released(cloud: Cloud, uplink: Make) -> None:
    box = uplink().start()
    blocks = [block(m, T0 + 3600 * h) for h in range(3) for m in range(40)]
    for h in range(3):
        box.append(*blocks[h * 40 : (h + 1) * 40])
    blocks += [block(101, T0, 2, "midnight"), block(102, T0, 1, "instantaneous")]
    box.append(*blocks[-2:])
    for m in range(5):
        box.journal.alarm(gasp(m))
    await eventually(lambda: cloud.cells == cells(*blocks) and len(cloud.alarms) == 5)
    await eventually(lambda: box.drained)
    assert set(cloud.topics) == {
        "reads/interval", "reads/midnight", "reads/instantaneous", "alarms/outage",
    }  # fmt: skip
    assert set(cloud.alarms.values()) == {1}
    assert len(cloud.digests) == len(cloud.arrived), "nothing was sent twice"
    assert {epoch for _, epoch, _ in cloud.arrived} == {box.journal.epoch}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_a_cloud_that_misbehaves(cloud: Cloud, uplink: Make, seed: int) -> None:
    cloud.rng.seed(seed)
    cloud.misbehave = {
        "lost": 0.3, "doubled": 0.3, "foreign": 0.3, "reject": 0.25, "forget": 0.25, "late": 0.3,
    }  # fmt: skip
    box = uplink(max_message_bytes=4_800).start()
    blocks = [block(m, T0 + 3600 * h) for h in range(12) for m in range(20)]
    for h in range(12):
        box.append(*blocks[h * 20 : (h + 1) * 20])
        box.journal.alarm(gasp(h))
        await asyncio.sleep(0.02)
    await eventually(lambda: box.sender.counts.published >= 20)
    cloud.misbehave = {}

    def done() -> bool:
        cloud.redrive()
        return box.drained and not box.sender.status().aside

    await eventually(done, 25)
    assert cloud.cells == cells(*blocks)
    assert len(cloud.alarms) == 12
    assert box.epochs == []
    assert {cause for _, cause, _ in box.aside} <= {"cloud-refused"}


async def test_rejected_messages_stand_aside_until_a_late_ack(cloud: Cloud, uplink: Make) -> None:
    cloud.misbehave = {"reject": 1.0}
    box = uplink().start()
    box.append(block(1))
    await eventually(lambda: [cause for _, cause, _ in box.aside] == ["cloud-refused"])
    assert box.sender.status().aside == 1
    assert [(a.what, a.cause) for a in box.journal.aside()] or await_aside(box)
    cloud.misbehave = {}
    box.append(block(2))
    await eventually(lambda: cloud.cells == cells(block(2)))
    cloud.redrive()
    await eventually(lambda: box.drained and box.sender.status().aside == 0)
    assert cloud.cells == cells(block(1), block(2))


def await_aside(box: Uplinked) -> bool:
    box.journal.flush().result(5)
    return [(a.what, a.cause) for a in box.journal.aside()] == [("segment", "cloud-refused")]


async def test_a_refused_message_whose_later_ack_was_lost_is_tried_again(
    cloud: Cloud, uplink: Make
) -> None:
    now = SystemClock().now()
    box = uplink(clock=SystemClock(now, now, 20_000.0)).start()  # six hours in a second
    cloud.misbehave = {"reject": 1.0}
    box.append(block(1))
    box.journal.alarm(gasp(1))
    await eventually(lambda: box.sender.status().aside == 2)
    cloud.misbehave = {}
    await eventually(lambda: box.drained and box.sender.status().aside == 0)
    assert cloud.cells == cells(block(1))
    assert list(cloud.alarms) == [gasp(1).id]


async def test_acks_of_other_epochs_free_nothing(cloud: Cloud, uplink: Make) -> None:
    cloud.silent = True
    box = uplink().start()
    box.append(block(1))
    await eventually(lambda: cloud.arrived)
    ((_, epoch, n),) = cloud.arrived
    for foreign in (epoch - 1, epoch + 1):
        cloud.send_ack(foreign, acked=[[0, 1 << 40]], high=1 << 40)
    cloud.send("down/acks", b"no json")
    cloud.send("down/acks", {"schema": "opendcu.ack/1"})
    await eventually(
        lambda: (box.sender.counts.acks_ignored, box.sender.counts.down_malformed) == (2, 2)
    )
    assert box.journal.segments(0, limit=1)
    assert box.epochs == []
    cloud.send_ack(epoch, acked=[[n, n]])
    await eventually(lambda: box.drained)


async def test_unacked_messages_come_again_with_the_same_octets(cloud: Cloud, uplink: Make) -> None:
    cloud.silent = True
    box = uplink().start()
    box.append(block(1))
    box.journal.alarm(gasp(1))
    await eventually(lambda: len(cloud.arrived) == 2)
    began = time.monotonic()
    await eventually(lambda: len(cloud.arrived) == 4, 12)
    assert 3.5 < time.monotonic() - began < 9
    assert len(cloud.digests) == 2
    cloud.silent = False
    await eventually(lambda: box.drained, 15)


@pytest.mark.parametrize("how", ["restart", "outage", "lane"])
async def test_live_overtakes_backlog(
    cloud: Cloud, uplink: Make, mosquitto: Mosquitto, how: str
) -> None:
    """What waited before the start, since an outage began, or was fetched as backlog lets the newest pass."""
    box = uplink(max_message_bytes=4_800)
    if how == "outage":
        mosquitto.kill()
        box.start()
    old = [block(m, T0 + 86_400 * d, 96) for d in range(100) for m in range(4)]
    for d in range(100):
        box.append(*old[d * 4 : (d + 1) * 4], lane="backlog" if how == "lane" else "live")
    if how == "restart":
        await box.stop()
        box = uplink(max_message_bytes=4_800)
    if how == "outage":
        mosquitto.start()
    else:
        box.start()
    await eventually(lambda: cloud.arrived)
    new = block(77)
    box.append(new)
    expected = len(cells(new, *old))
    await eventually(lambda: len(cloud.cells) == expected, 20)
    await eventually(lambda: box.drained)
    order = [i for i, (_, d) in enumerate(cloud.documents) if d["blocks"][0]["meter"] == new.meter]
    assert len(cloud.documents) > 150
    assert order
    assert order[0] < 120


async def test_an_alarm_overtakes_a_backlog_under_way(cloud: Cloud, uplink: Make) -> None:
    box = uplink()
    for h in range(30):
        box.append(*(block(m, T0 + 3600 * h) for m in range(60)))
    box.start()
    await eventually(lambda: cloud.arrived)
    box.journal.alarm(gasp(1))
    await eventually(lambda: box.drained, 25)
    topics = [topic for topic, _, _ in cloud.arrived]
    place = topics.index("alarms/outage")
    assert place < len(topics) - 1, "the whole backlog went first"


async def test_a_storm_shares_messages_but_the_first_ones_leave_alone(
    cloud: Cloud, uplink: Make
) -> None:
    box = uplink().start()
    await eventually(lambda: box.connected)
    for m in range(500):
        box.journal.alarm(gasp(m))
    await eventually(lambda: len(cloud.alarms) == 500)
    await eventually(lambda: box.drained)
    sizes = [len(d["alarms"]) for topic, d in cloud.documents if topic == "alarms/outage"]
    assert sizes[:10] == [1] * 10
    assert len(sizes) < 30
    assert set(cloud.alarms.values()) == {1}


async def test_alarms_heard_while_the_broker_is_away_come_when_it_is_back(
    cloud: Cloud, uplink: Make, mosquitto: Mosquitto
) -> None:
    box = uplink().start()
    await eventually(lambda: box.connected)
    mosquitto.kill()
    await eventually(lambda: not box.connected)
    for m in range(30):
        box.journal.alarm(gasp(m))
    box.append(block(1))
    mosquitto.start()
    await eventually(lambda: len(cloud.alarms) == 30 and cloud.cells == cells(block(1)), 15)
    await eventually(lambda: box.drained, 15)


async def test_a_broker_that_is_away_at_the_start_is_no_error(
    uplink: Make, mosquitto: Mosquitto
) -> None:
    mosquitto.kill()
    box = uplink().start()
    await eventually(lambda: "refused" in box.sender.status().reason.lower())
    box.append(block(1))
    mosquitto.start()
    cloud = Cloud(mosquitto.port)
    await eventually(lambda: cloud.cells == cells(block(1)), 15)
    cloud.close()


@pytest.mark.slow
async def test_a_frozen_broker_costs_a_bounded_wait(
    cloud: Cloud, uplink: Make, mosquitto: Mosquitto
) -> None:
    box = uplink().start()
    await eventually(lambda: box.connected)
    mosquitto.signal(signal.SIGSTOP)
    try:
        box.append(block(1))
        box.journal.alarm(gasp(1))
        await eventually(lambda: not box.connected, 15)
        assert "PUBACK" in box.sender.status().reason or "answer" in box.sender.status().reason
    finally:
        mosquitto.signal(signal.SIGCONT)
    await eventually(lambda: box.drained, 25)
    assert cloud.cells == cells(block(1))
    assert len(cloud.alarms) == 1


async def test_a_broken_block_stands_aside_and_blocks_nobody(cloud: Cloud, uplink: Make) -> None:
    box = uplink(max_message_bytes=4_800).start()
    wide = Layout(
        "1.0.99.3.0.255", 900, tuple(Column(f"1.1.{i}.8.0.255", "hex", 0) for i in range(120))
    )
    good = block(1)
    noise = [f"{i * 7919 % 2**64:064x}" for i in range(120)]
    bad = block(2, layout=wide, rows=1)
    bad = type(bad)(
        **{f: getattr(bad, f) for f in bad.__struct_fields__}
        | {"columns": tuple([hash_hex(n)] for n in noise)}
    )
    box.append(bad, good)
    await eventually(lambda: cloud.cells == cells(good))
    await eventually(lambda: [c for _, c, _ in box.aside] == ["too-large"])
    assert box.sender.status().aside == 1


def hash_hex(text: str) -> str:
    import hashlib

    return hashlib.sha512(text.encode()).hexdigest()


async def test_a_block_too_large_for_a_message_is_split_by_rows(cloud: Cloud, uplink: Make) -> None:
    cloud.max_bytes = 4_800
    box = uplink(max_message_bytes=4_800)
    large = block(1, T0, 3_000)
    box.append(large)
    box.start()
    await eventually(lambda: cloud.cells == cells(large), 20)
    await eventually(lambda: box.drained)
    assert len(cloud.arrived) > 3
    sizes = [len(json.dumps(d, separators=(",", ":"))) for _, d in cloud.documents]
    assert max(sizes) > 3_000


async def test_partial_acks_survive_a_restart(cloud: Cloud, uplink: Make, tmp_path: Path) -> None:
    box = uplink(max_message_bytes=4_800)
    large = block(1, T0, 3_000)
    box.append(large)
    cloud.misbehave = {"forget": 0.5}
    box.start()
    await eventually(lambda: len(cloud.acked) >= 2 and len(cloud.held) >= 2)
    await eventually(
        lambda: (
            box.sender.counts.acked == len(cloud.acked)
            and box.sender.status().unacked == len(cloud.held)
        )
    )
    before = set(cloud.acked)
    await box.stop()
    acked_cells = dict(cloud.cells)
    cloud.misbehave = {}
    arrived = len(cloud.arrived)
    again = uplink(max_message_bytes=4_800).start()
    await eventually(lambda: again.drained, 20)
    assert cloud.cells == cells(large)
    assert not before & {(e, n) for _, e, n in cloud.arrived[arrived:]}
    sent_again = sum(
        sum(b["rows"] for b in d["blocks"]) for _, d in cloud.documents[arrived:] if "blocks" in d
    )
    assert sent_again * 4 == len(cells(large)) - len(acked_cells)


async def test_high_above_what_we_used_begins_a_new_epoch(cloud: Cloud, uplink: Make) -> None:
    cloud.silent = True
    box = uplink().start()
    box.append(block(1), block(2))
    box.journal.alarm(gasp(1))
    await eventually(lambda: len(cloud.arrived) == 2)
    epoch = box.journal.epoch
    cloud.send_ack(epoch, acked=[[1, 2]], high=2)
    await eventually(lambda: box.drained)  # the last that we used: ours
    box.append(block(3))
    box.journal.alarm(gasp(3))
    await eventually(lambda: len(cloud.arrived) == 4)
    cloud.silent = False
    cloud.send_ack(epoch, acked=[[1, 5]], high=5)  # reserved, and never used by us
    await eventually(lambda: box.epochs and box.drained)
    assert box.journal.epoch > epoch
    assert box.epochs == [(box.journal.epoch, box.epochs[0][1])]
    assert {e for _, e, _ in cloud.arrived[4:]} == {box.journal.epoch}
    assert cloud.cells == cells(block(3))
    assert list(cloud.alarms) == [gasp(3).id]


async def test_a_copy_older_than_a_restart_is_found_out(cloud: Cloud, uplink: Make) -> None:
    """Both lives of the file reserve the same numbers: the reservation tells nothing, what was used does."""
    box = uplink().start()
    box.append(block(1))
    await eventually(lambda: box.drained)
    await box.stop()
    copy = box.folder / "copy"
    shutil.copytree(box.folder / "data", copy)
    box = uplink().start()
    box.append(block(2))
    box.append(block(3))
    await eventually(lambda: box.drained)
    await box.stop()
    shutil.rmtree(box.folder / "data")
    copy.rename(box.folder / "data")
    box = uplink().start()
    await eventually(lambda: box.connected)
    assert (
        box.journal.was_copied
    )  # by its inode number; a restored disk image shows in the numbers only
    cloud.send_ack(box.journal.epoch, high=1 << 30)
    await eventually(lambda: box.epochs)
    for meter in (2, 3, 4):
        box.append(block(meter))
    await eventually(lambda: box.drained)
    assert cloud.cells == cells(*(block(meter) for meter in (1, 2, 3, 4)))


async def test_a_lost_uplink_db_begins_a_new_epoch(cloud: Cloud, uplink: Make) -> None:
    cloud.misbehave = {"lost": 1.0}
    box = uplink().start()
    box.append(block(1))
    await eventually(lambda: cloud.arrived)
    await box.stop()
    for file in (box.folder / "data").glob("uplink.db*"):
        file.unlink()
    cloud.misbehave = {}
    again = uplink()
    assert len(again.epochs) == 1
    again.start()
    await eventually(lambda: again.drained)
    first, second = cloud.arrived
    assert second[1] > first[1]
    await again.stop()
    third = uplink()
    assert third.epochs == []
    assert third.journal.epoch == second[1]


async def test_late_acks_of_an_earlier_run_still_free(cloud: Cloud, uplink: Make) -> None:
    cloud.silent = True
    box = uplink().start()
    box.append(block(1))
    await eventually(lambda: box.sender.counts.published == 1)
    await box.stop()
    await eventually(lambda: cloud.arrived)
    again = uplink()
    _, epoch, n = cloud.arrived[0]
    again.start()
    await eventually(lambda: len(cloud.arrived) == 2)
    assert cloud.arrived[1][2] > RANGE
    cloud.send_ack(epoch, acked=[[n, n]])
    await eventually(lambda: again.drained)


async def test_no_acks_makes_the_connection_anew(cloud: Cloud, uplink: Make) -> None:
    cloud.silent = True
    box = uplink(no_acks_s=1.0).start()
    box.append(block(1))
    await eventually(lambda: box.no_acks and box.sender.counts.connects >= 2)
    cloud.silent = False
    await eventually(lambda: box.drained, 15)


async def test_notes_events_and_health(cloud: Cloud, uplink: Make) -> None:
    box = uplink().start()
    log = Layout(
        "0.0.99.98.0.255",
        0,
        (Column("0.0.96.11.0.255", "count", 0), Column("1.0.12.7.0.255", "V", -2)),
    )
    events = block(1, layout=log, rows=1, kind="events-voltage")
    box.append(events)
    box.journal.note("replies", "cmd-1", {"state": "done", "registers": [{"value": 1.5}]})
    box.journal.note("completeness", "", {"day": "2025-11-24", "profiles": []})
    finding = {
        "id": "x", "rev": 1, "meter": "m", "kind": "flat", "from": 1, "to": 2,
        "score": 0.9, "threshold": 0.5, "model": "1", "explain": {},
    }  # fmt: skip
    box.journal.note("anomalies", "", {"findings": [finding]})
    box.journal.note("replies", "cmd-2", {"state": "maybe"})
    box.journal.note("weather", "", {})
    await eventually(lambda: box.connected)
    box.sender.publish_health({"uptime_s": 5, "memory_mb": 60.4})
    await eventually(
        lambda: (
            set(cloud.topics) == {"events", "replies/cmd-1", "completeness", "anomalies", "health"}
        )
    )
    await eventually(lambda: box.drained)
    documents = dict(cloud.documents)
    assert documents["health"]["n"] == 0
    assert documents["anomalies"]["findings"][0]["score"] == 900
    assert documents["replies/cmd-1"]["registers"] == [{"value": "1.5"}]
    assert documents["events"]["events"][0]["code"] == events.columns[0][0]
    assert sorted(cause for _, cause, _ in box.aside) == ["malformed", "malformed"]


async def test_findings_too_many_for_a_message_travel_in_several(
    cloud: Cloud, uplink: Make
) -> None:
    cloud.max_bytes = 4_800
    box = uplink(max_message_bytes=4_800).start()
    findings = [
        {
            "id": f"{i:064d}", "rev": 1, "meter": f"m{i}", "kind": "flat", "from": 1, "to": 2,
            "score": i, "threshold": 0, "model": "1", "explain": {},
        }
        for i in range(100)
    ]  # fmt: skip
    box.journal.note("anomalies", "", {"findings": findings})
    await eventually(lambda: box.drained and cloud.arrived)
    got = [f["score"] for _, d in cloud.documents for f in d["findings"]]
    assert sorted(got) == list(range(100))
    assert len(cloud.arrived) > 2


async def test_commands_reach_the_callback_as_they_came(cloud: Cloud, uplink: Make) -> None:
    box = uplink().start()
    await eventually(lambda: box.connected)
    command = {"schema": "opendcu.command/1", "id": "c-1", "do": "ping"}
    cloud.send("down/commands/c-1", command)
    cloud.send("down/commands/c-2", b"x" * 9_000)
    cloud.send("down/other", b"{}")
    cloud.send("down/commands/c-3", b"not json")
    await eventually(lambda: len(box.commands) == 2)
    assert box.commands[0] == ("c-1", json.dumps(command).encode())
    assert box.commands[1] == ("c-3", b"not json")
    assert box.sender.counts.down_malformed == 1


async def test_ack_by_the_broker(cloud: Cloud, uplink: Make) -> None:
    cloud.silent = True
    box = uplink(ack="broker").start()
    box.append(block(1))
    box.journal.alarm(gasp(1))
    await eventually(lambda: box.drained and len(cloud.arrived) == 2)


async def test_a_byte_budget_holds_everything_but_alarms(cloud: Cloud, uplink: Make) -> None:
    box = uplink(byte_budget_per_day=3_000, max_message_bytes=4_800)
    box.append(*(block(m) for m in range(200)))
    box.start()
    await eventually(lambda: box.sender.status().state == "budget spent")
    box.journal.alarm(gasp(1))
    await eventually(lambda: cloud.alarms and not box.sender.status().unacked)
    assert box.sender.counts.octets < 3_000 + 2 * 4_800
    assert box.journal.segments(0, limit=1)
    await box.stop()
    again = uplink(byte_budget_per_day=3_000, max_message_bytes=4_800).start()
    await eventually(lambda: again.sender.status().state == "budget spent")
    assert again.sender.counts.published == 0


async def test_live_reads_wait_for_company(cloud: Cloud, uplink: Make) -> None:
    box = uplink(linger_s=1.5).start()
    await eventually(lambda: box.connected)
    for m in range(5):
        box.append(block(m))
    await eventually(lambda: len(cloud.cells) == len(cells(*(block(m) for m in range(5)))))
    assert cloud.topics["reads/interval"] == 1


async def test_a_message_that_the_broker_refuses_blocks_nobody(
    tmp_path: Path, brokers: Callable[[str], Mosquitto], uplink: Make
) -> None:
    acl = tmp_path / "acl"
    acl.write_text(
        "topic readwrite dcu/dcu-0001/reads/midnight\ntopic readwrite dcu/dcu-0001/alarms/#\n"
        "topic readwrite dcu/dcu-0001/down/#\ntopic read dcu/dcu-0001/#\n"
    )
    broker = brokers(f"acl_file {acl}\n")
    cloud = Cloud(broker.port)
    box = uplink(url=broker.url).start()
    box.append(block(1))
    box.append(block(2, kind="midnight"))
    box.journal.alarm(gasp(1))
    await eventually(lambda: cloud.alarms and cloud.cells)
    assert set(cloud.cells) == set(cells(block(2, kind="midnight")))
    await eventually(lambda: box.sender.counts.refused == 1)
    await eventually(lambda: [s.kind for s in box.journal.segments(0)] == ["interval"])
    cloud.close()


async def test_messages_fit_what_the_broker_takes(
    brokers: Callable[[str], Mosquitto], uplink: Make
) -> None:
    broker = brokers("max_packet_size 3000\n")
    cloud = Cloud(broker.port)
    box = uplink(url=broker.url).start()
    blocks = [block(m) for m in range(100)]
    box.append(*blocks)
    for m in range(40):
        box.journal.alarm(gasp(m))
    await eventually(lambda: cloud.cells == cells(*blocks) and len(cloud.alarms) == 40)
    assert box.sender.counts.connects == 1
    cloud.close()


async def test_a_broker_that_hangs_up_on_large_messages_gets_smaller_ones(
    tmp_path: Path, uplink: Make
) -> None:
    """rumqttd speaks 3.1.1 here: no word about its limit of 20,480 octets, it closes the connection."""
    from iotcore import Broker

    with Broker(port=free_port(), listen="127.0.0.1") as broker:
        cloud = Cloud(broker.port, version=4)
        box = uplink(url=f"mqtt://127.0.0.1:{broker.port}").start()
        blocks = [block(m, rows=96) for m in range(60)]
        box.append(*blocks)
        box.append(block(100, kind="midnight"))
        expected = cells(*blocks, block(100, kind="midnight"))
        await eventually(lambda: len(cloud.cells) == len(expected), 25)
        assert cloud.cells == expected
        await eventually(lambda: box.drained)
        assert box.aside == []
        await box.stop()
        cloud.close()


async def test_layouts_stand_once_in_a_message(cloud: Cloud, uplink: Make) -> None:
    box = uplink()
    other = Layout(LAYOUT.profile, 1800, LAYOUT.cols)
    box.append(*(block(m, layout=LAYOUT if m % 2 else other) for m in range(20)))
    box.start()
    await eventually(lambda: cloud.documents)
    _, document = cloud.documents[0]
    assert len(document["layouts"]) == 2
    assert len(document["blocks"]) == 20


async def test_stop_is_quick_while_the_broker_is_frozen(uplink: Make, mosquitto: Mosquitto) -> None:
    box = uplink().start()
    await eventually(lambda: box.connected)
    mosquitto.signal(signal.SIGSTOP)
    try:
        box.append(block(1))
        await eventually(lambda: box.sender.status().in_flight)
        began = time.monotonic()
        await box.stop()
        assert time.monotonic() - began < 3
    finally:
        mosquitto.signal(signal.SIGCONT)
