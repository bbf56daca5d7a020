"""One suite over every kind of message: golden examples, schemas, structs and builders must agree.

The golden examples in tests/data/payloads are what both ends are held to (the cloud's tests read them too). They are
made from the fixed inputs below: `python -m tests.contract.test_payloads` writes them, the tests compare.
"""

from __future__ import annotations

import base64
import copy
import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_core.domain import Alarm, Block, Column, Layout, make_alarm
from edge_core.uplink.payloads import alarms, down, events, notes, reads, schemas
from edge_core.uplink.payloads.envelope import message

GOLDEN = Path(__file__).parents[1] / "data" / "payloads"
ENVELOPE: dict[str, Any] = {"dcu": "dcu-0001", "epoch": 1764000000, "n": 1234, "sent": 1764001234}

BLOCK_LOAD = Layout(
    "1.0.99.1.0.255",
    900,
    (
        Column("1.0.1.29.0.255", "Wh", 0),
        Column("1.0.12.27.0.255", "V", -2),
        Column("1.0.31.27.0.255", "A", -2, 3),
    ),
)
DAILY = Layout(
    "1.0.99.2.0.255",
    86400,
    (Column("1.0.1.8.0.255", "Wh", 0), Column("0.0.96.1.0.255", "hex", 0)),
)
EVENT_LOG = Layout(
    "0.0.99.98.0.255",
    0,
    (Column("0.0.96.11.0.255", "count", 0), Column("1.0.12.7.0.255", "V", -2)),
)


def interval_blocks() -> list[Block]:
    return [
        Block(
            meter="GP1000001",
            device="12345678",
            kind="interval",
            layout=BLOCK_LOAD,
            times=np.array([1763999100, 1764000000, 1764000900, 1764001800], np.int64),
            columns=(
                np.array([12, 0, 7, 2**53 + 1], np.int64),
                [24012, None, 23998, 24100],
                (105, 99, 2**64 + 1, -1),
            ),
            flags=((1, 2, 1 | 4),),
            tz=330,
            multiplier=40,
            read_at=1764001860,
            q={"offset": -3},
        ),
        Block(
            meter="GP1000002",
            device="",
            kind="interval",
            layout=BLOCK_LOAD,
            times=[1763999100, 1764000000, 1763999100],
            columns=([1, 2, 3], [4, 5, 6], [7, 8, 9]),
            occ=((2, 1),),
            tz=330,
            read_at=1764001861,
            q={"at": 1764000000123, "bound": [1763999999, 1764000001], "offset": 0.25},
        ),
    ]


def midnight_blocks() -> list[Block]:
    return [
        Block(
            meter=f"GP100000{i}",
            device=f"1234567{i}",
            kind="midnight",
            layout=DAILY,
            times=[1763922600, 1764009000],
            columns=([1000 * i, 1000 * i + 512], ["0a0b", None]),
            tz=330,
            read_at=1764009300,
        )
        for i in range(3)
    ]


def event_block() -> Block:
    return Block(
        meter="GP1000001",
        device="12345678",
        kind="events-voltage",
        layout=EVENT_LOG,
        times=[1764000000, 1764000000, 1764000777],
        columns=([101, 102, 9], [None, 24010, 20800]),
        occ=((1, 1),),
        flags=((2, 1, 16),),
        tz=330,
        read_at=1764001000,
    )


def describe(meter: str, log: str, code: int) -> events.Meaning:
    return events.Meaning("critical", "3.26.0.85") if code == 101 else events.Meaning()


def gasp(meter: str, at: int) -> Alarm:
    return make_alarm(meter, "last-gasp", at=at, heard=at + 1, authenticated=True)


def envelope(name: str, kind: str, members: list[tuple[str, bytes]], **other: int) -> bytes:
    return message(name, kind=kind, members=members, **(ENVELOPE | other))


def many_blocks() -> list[Block]:
    """Enough to travel compressed."""
    return [
        Block(
            meter=f"GP1{i:06d}",
            device=f"{12000000 + 3 * i}",
            kind="interval",
            layout=BLOCK_LOAD,
            times=[1763999100 + 900 * k for k in range(4)],
            columns=tuple([(i * 37 + k * 11 + c) % 400 for k in range(4)] for c in range(3)),
            tz=330,
            read_at=1764001860 + i,
        )
        for i in range(60)
    ]


def made() -> dict[str, bytes]:
    """File name to message, each from its fixed input."""
    pieces = [reads.piece_of(block) for block in interval_blocks()]
    storm = [gasp(f"GP100000{i}", 1764000000 + i) for i in range(3)]
    tamper = make_alarm(
        "GP1000001",
        "cover-open",
        at=1764000000,
        heard=1764000002,
        authenticated=False,
        phases=("L1", "L3"),
        detail={"event": 251, "level": 1.5},
    )
    reply = {
        "state": "done",
        "layouts": [reads.layout_json(BLOCK_LOAD)],
        "blocks": [reads.block_json(interval_blocks()[0], 0)],
        "registers": [
            {"obis": None, "name": "power_w", "attribute": 2, "value": 5, "scaler": 0, "unit": "W"}
        ],
    }
    return {
        "reads-interval.json": envelope("reads", "interval", reads.members(pieces)),
        "reads-midnight.json": envelope(
            "reads", "midnight", reads.members([reads.piece_of(b) for b in midnight_blocks()])
        ),
        "reads-compressed.json": envelope(
            "reads", "interval", reads.members([reads.piece_of(b) for b in many_blocks()])
        ),
        "alarms-outage.json": envelope(
            "alarms", "outage", alarms.members([alarms.alarm_json(a) for a in storm])
        ),
        "alarms-compact.json": envelope("alarms", "outage", alarms.compact_members(storm)),
        "alarms-tamper.json": envelope(
            "alarms", "tamper", alarms.members([alarms.alarm_json(tamper)])
        ),
        "events.json": envelope(
            "events", "events", events.members(events.rows_json(event_block(), describe))
        ),
        "anomalies.json": envelope(
            "anomalies",
            "anomalies",
            notes.members(
                "anomalies",
                "",
                {
                    "findings": [
                        {
                            "id": "f" * 64,
                            "rev": 1,
                            "meter": "GP1000001",
                            "kind": "flat-profile",
                            "from": 1763400000,
                            "to": 1764000000,
                            "score": 0.875,
                            "threshold": 0.8,
                            "model": "builtin-1",
                            "explain": {"flat": 0.5, "days": 7.0},
                        }
                    ]
                },
            ),
        ),
        "completeness.json": envelope(
            "completeness",
            "completeness",
            notes.members(
                "completeness",
                "",
                {
                    "day": "2025-11-24",
                    "profiles": [
                        {
                            "profile": "interval",
                            "due": 96,
                            "captured": 95,
                            "delivered": 90,
                            "missing": {"meter-power-off": 1},
                            "excused": 0,
                        }
                    ],
                },
            ),
        ),
        "reply.json": envelope("reply", "cmd-0001", notes.members("replies", "cmd-0001", reply)),
        "reply-failed.json": envelope(
            "reply",
            "cmd-0002",
            notes.members(
                "replies",
                "cmd-0002",
                {"state": "failed", "error": {"class": "LineSilent", "message": "no answer"}},
            ),
        ),
        "health.json": envelope(
            "health", "health", notes.members("health", "", {"uptime_s": 12.7, "depth": 3}), n=0
        ),
    }


DOWNWARD = {
    "ack.json": {
        "schema": "opendcu.ack/1",
        "dcu": "dcu-0001",
        "epoch": 1764000000,
        "acked": [[1, 3], [7, 7]],
        "rejected": [[5, "schema-invalid", "reads: no block"]],
        "high": 7,
    },
    "command.json": {
        "schema": "opendcu.command/1",
        "id": "cmd-0001",
        "do": "read",
        "meter": "GP1000001",
        "args": {"what": "interval"},
        "expires": 1764009999,
    },
}
SCHEMA_OF = {name: name.removesuffix(".json").split("-")[0] for name in [*made(), *DOWNWARD]}


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads(schemas.files()[f"{name}.v1.json"])
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", sorted(schemas.files()))
def test_generated_files_are_current(name: str) -> None:
    on_disk = (schemas.DIRECTORY / name).read_text(encoding="utf-8")
    assert on_disk == schemas.files()[name], "run: python -m edge_core.uplink.payloads.schemas"


@pytest.mark.parametrize("name", sorted(made()))
def test_golden_example_is_what_we_make(name: str) -> None:
    golden, ours = (GOLDEN / name).read_bytes(), made()[name]
    if b'"enc"' in golden:  # deflate may differ between zlib builds, what it holds may not
        golden, ours = (json.dumps(plain(octets)).encode() for octets in (golden, ours))
    assert ours == golden, "run: python -m tests.contract.test_payloads"


@pytest.mark.parametrize("name", sorted(SCHEMA_OF))
def test_golden_example_satisfies_schema_and_struct(name: str) -> None:
    octets = (GOLDEN / name).read_bytes()
    validator(SCHEMA_OF[name]).validate(json.loads(octets))
    msgspec.json.decode(octets, type=schemas.MESSAGES[SCHEMA_OF[name]])
    assert "\\u" not in octets.decode("utf-8")


def plain(octets: bytes) -> dict[str, Any]:
    """The message with its content in the open."""
    whole: dict[str, Any] = json.loads(octets)
    if "data" in whole:
        whole |= json.loads(gzip.decompress(base64.b64decode(whole.pop("data"))))
        del whole["enc"]
    return whole


def test_compressed_content_satisfies_its_schema() -> None:
    octets = made()["reads-compressed.json"]
    inner = gzip.decompress(base64.b64decode(json.loads(octets)["data"]))
    validator("reads-content").validate(json.loads(inner))
    content = msgspec.json.decode(octets, type=reads.Reads).content()
    assert [b.meter for b in content.blocks] == [b.meter for b in many_blocks()]
    assert len(content.layouts) == 1
    assert len(octets) < len(inner) / 2


def test_no_message_holds_a_float() -> None:
    def refuse(text: str) -> None:
        raise AssertionError(text)

    for octets in made().values():
        json.loads(octets, parse_float=refuse, parse_constant=refuse)


def broken(name: str) -> list[dict[str, Any]]:
    """Golden examples with one thing wrong each."""
    good = plain((GOLDEN / name).read_bytes())
    out = []
    for wrong in (
        {"schema": "opendcu.reads/2"},
        {"dcu": ""},
        {"epoch": -1},
        {"n": "7"},
        {"sent": 1.5},
        {"kind": 3},
    ):
        out.append(copy.deepcopy(good) | wrong)
    for key in ("schema", "dcu", "epoch", "n", "sent", "kind"):
        without = copy.deepcopy(good)
        del without[key]
        out.append(without)
    return out


@pytest.mark.parametrize("name", sorted(made()))
def test_schema_and_struct_refuse_a_broken_envelope(name: str) -> None:
    for wrong in broken(name):
        with pytest.raises(jsonschema.ValidationError):
            validator(SCHEMA_OF[name]).validate(wrong)
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, schemas.MESSAGES[SCHEMA_OF[name]])


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.pop("t0"),
        lambda b: b.update(t=[1, 2, 3, 4]),
        lambda b: b.update(rows=0),
        lambda b: b.update(values=[]),
        lambda b: b.update(values=[[1.5]]),
        lambda b: b.update(tz=1000),
        lambda b: b.update(meter=""),
        lambda b: b.pop("read_at"),
    ],
)
def test_schema_refuses_a_broken_block(change: Any) -> None:
    good = json.loads((GOLDEN / "reads-interval.json").read_bytes())
    validator("reads").validate(good)
    change(good["blocks"][0])
    with pytest.raises(jsonschema.ValidationError):
        validator("reads").validate(good)


def test_schema_refuses_half_of_each_way() -> None:
    good = json.loads((GOLDEN / "reads-interval.json").read_bytes())
    for wrong in (
        good | {"enc": "gzip+base64", "data": "x"},
        {k: v for k, v in good.items() if k != "layouts"},
        {k: v for k, v in good.items() if k not in ("layouts", "blocks")} | {"data": "x"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validator("reads").validate(wrong)


def test_additional_members_are_allowed_everywhere() -> None:
    for name in sorted(made()):
        whole = json.loads((GOLDEN / name).read_bytes())
        validator(SCHEMA_OF[name]).validate(whole | {"_rx": 1, "later": {"x": 1}})


@pytest.mark.parametrize("data", ["", "!!", base64.b64encode(b"no gzip").decode()])
def test_data_that_is_no_gzip_is_refused(data: str) -> None:
    wrong = json.loads((GOLDEN / "reads-compressed.json").read_bytes()) | {"data": data}
    with pytest.raises(ValueError, match=r"data|padding|base64|cut short"):
        msgspec.convert(wrong, reads.Reads).content()


def test_cut_gzip_is_refused() -> None:
    good = json.loads((GOLDEN / "reads-compressed.json").read_bytes())
    octets = base64.b64decode(good["data"])[:-20]
    with pytest.raises(ValueError, match="cut short"):
        msgspec.convert(good | {"data": base64.b64encode(octets).decode()}, reads.Reads).content()


integers = st.one_of(
    st.none(), st.integers(-(2**70), 2**70), st.integers(0, 500), st.integers(-(2**63), 2**64)
)


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    period = draw(st.sampled_from([0, 60, 900, 86400]))
    cols = tuple(
        Column(f"1.0.{i}.8.0.255", "Wh", draw(st.integers(-6, 6)), draw(st.sampled_from([2, 3])))
        for i in range(draw(st.integers(1, 4)))
    )
    rows = draw(st.integers(1, 30))
    start = draw(st.integers(1_700_000_000, 1_800_000_000))
    if draw(st.booleans()) and period:
        times: Any = [start + i * period for i in range(rows)]
        if draw(st.booleans()):
            times = np.array(times, np.int64)
    else:
        times = sorted(start + draw(st.integers(0, 10_000)) * 60 + i for i in range(rows))
    return Block(
        meter=draw(st.text(min_size=1, max_size=12)),
        device=draw(st.text(max_size=12)),
        kind=draw(st.sampled_from(reads.KINDS)),
        layout=Layout("1.0.99.1.0.255", period, cols),
        times=times,
        columns=tuple(draw(st.lists(integers, min_size=rows, max_size=rows)) for _ in cols),
        tz=draw(st.integers(-720, 840)),
        multiplier=draw(st.sampled_from([1, 1, 40])),
        read_at=draw(st.integers(0, 2**33)),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(blocks(), min_size=1, max_size=8))
def test_what_goes_in_comes_out(sent: list[Block]) -> None:
    octets = envelope("reads", "interval", reads.members([reads.piece_of(b) for b in sent]))
    whole = msgspec.json.decode(octets, type=reads.Reads)
    validator("reads").validate(json.loads(octets))
    content = whole.content()
    assert len(content.layouts) == len({b.layout for b in sent})

    def opened() -> list[tuple[Any, ...]]:
        rows = []
        for b in content.blocks:
            layout = content.layouts[b.layout]
            times = (
                b.t if isinstance(b.t, list) else [b.t0 + i * layout.period for i in range(b.rows)]
            )
            cols = [(c.obis, c.unit, c.scaler, c.attribute) for c in layout.cols]
            rows.append((b.meter, b.device, times, cols, b.values, b.tz, b.multiplier, b.read_at))
        return rows

    expected = [
        (
            b.meter,
            b.device,
            [int(t) for t in b.times],
            [(c.obis, c.unit, c.scaler, c.attribute) for c in b.layout.cols],
            [list(c) for c in b.columns],
            b.tz,
            b.multiplier,
            b.read_at,
        )
        for b in sent
    ]
    assert sorted(map(repr, opened())) == sorted(map(repr, expected))


def test_daily_rows_always_carry_their_times() -> None:
    whole = plain(made()["reads-midnight.json"])
    assert all("t" in block and "t0" not in block for block in whole["blocks"])


def test_long_octets_of_acks_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(ValueError, match="at most"):
        down.decode_ack(b" " * (down.MAX_DOWNWARD + 1))


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"schema":"opendcu.ack/1"}',
        b'{"schema":"opendcu.ack/1","dcu":"d","epoch":1,"acked":[[1]]}',
        b'{"schema":"opendcu.ack/1","dcu":"d","epoch":1,"acked":[[-1,2]]}',
        b'{"schema":"opendcu.ack/1","dcu":"d","epoch":1.5}',
    ],
)
def test_acks_that_are_none_are_refused(octets: bytes) -> None:
    with pytest.raises((msgspec.ValidationError, msgspec.DecodeError)):
        down.decode_ack(octets)


if __name__ == "__main__":
    for file, content in made().items():
        (GOLDEN / file).write_bytes(content)
    for file, document in DOWNWARD.items():
        (GOLDEN / file).write_bytes(msgspec.json.encode(document))
