"""Topics of DESIGN section 5, and the limits of IoT Core that no emulator enforces."""

from __future__ import annotations

import pytest

from edge_core.uplink.topics import BASIC_INGEST, Topics, check


def test_topics_are_those_of_the_contract() -> None:
    t = Topics("dcu", "dcu-0001")
    assert t.reads("interval") == "dcu/dcu-0001/reads/interval"
    assert t.alarms("outage") == "dcu/dcu-0001/alarms/outage"
    assert [t.plain(k) for k in ("events", "anomalies", "health", "completeness")] == [
        f"dcu/dcu-0001/{k}" for k in ("events", "anomalies", "health", "completeness")
    ]
    assert t.reply("cmd-1") == "dcu/dcu-0001/replies/cmd-1"
    assert t.subscription == "dcu/dcu-0001/down/#"
    assert t.acks == "dcu/dcu-0001/down/acks"
    assert (t.commands + "cmd-1") == "dcu/dcu-0001/down/commands/cmd-1"


def test_basic_ingest_carries_reads_and_never_alarms() -> None:
    t = Topics("dcu", "d", basic_ingest=True)
    assert t.reads("midnight") == "$aws/rules/opendcu_reads/dcu/d/reads/midnight"
    assert t.alarms("outage") == "dcu/d/alarms/outage"
    assert t.plain("events") == "dcu/d/events"


@pytest.mark.parametrize("kind", ["", "events", "Interval", "interval/x"])
def test_unknown_kinds_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="no kind of reads"):
        Topics("p", "d").reads(kind)


def test_unknown_classes_and_notes_are_refused() -> None:
    with pytest.raises(ValueError, match="no class"):
        Topics("p", "d").alarms("weather")
    with pytest.raises(ValueError, match="no topic"):
        Topics("p", "d").plain("reads")


@pytest.mark.parametrize("command", ["", "a/b", "a+", "#", "x\0"])
def test_command_ids_that_would_leave_their_level_are_refused(command: str) -> None:
    with pytest.raises(ValueError, match="no command id"):
        Topics("p", "d").reply(command)


def test_seven_slashes_and_256_octets() -> None:
    assert check("/".join("abcdefgh")) == "a/b/c/d/e/f/g/h"
    with pytest.raises(ValueError, match="slashes"):
        check("/".join("abcdefghi"))
    assert check(BASIC_INGEST + "/".join("abcdefgh"))
    assert check("x" * 256)
    with pytest.raises(ValueError, match="octets"):
        check("x" * 257)
    with pytest.raises(ValueError, match="octets"):
        check("é" * 129)
    with pytest.raises(ValueError, match="octets"):
        Topics("p" * 64, "d" * 128)
