import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_core.domain import Block, Column, Layout, as_list
from edge_core.errors import JournalDamaged, JournalError
from edge_core.journal import codec

ENERGY = Column("1.0.1.8.0.255", "Wh", 0)
TEXT = Column("0.0.96.1.0.255", "hex", 0)
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)


def one(times, columns, *, period=900, cols=None, **fields):
    layout = Layout("1.0.99.1.0.255", period, tuple(cols or [ENERGY] * len(columns)))
    return Block(
        meter="m",
        device="d",
        kind="interval",
        layout=layout,
        times=times,
        columns=tuple(columns),
        **fields,
    )


def round_trip(blocks, watermarks=()):
    layouts = []
    for b in blocks:
        if b.layout not in layouts:
            layouts.append(b.layout)
    names = [(b.meter, b.device) for b in blocks]
    for b in blocks:
        codec.check(b)
    body = codec.encode(
        blocks, list(range(len(blocks))), [layouts.index(b.layout) for b in blocks], watermarks
    )
    return body, codec.decode(body, names.__getitem__, layouts.__getitem__)


def plain(b):
    return msgspec.structs.replace(
        b, times=as_list(b.times), columns=tuple(as_list(c) for c in b.columns)
    )


@st.composite
def columns_of(draw, rows):
    kind = draw(st.sampled_from(["rising", "wild", "array", "holes", "big", "text"]))
    if kind == "rising":
        steps = draw(st.lists(st.integers(0, 5000), min_size=rows, max_size=rows))
        start = draw(st.integers(0, 1 << 40))
        return [start + sum(steps[: i + 1]) for i in range(rows)]
    if kind == "array":
        return np.array(draw(st.lists(INT64, min_size=rows, max_size=rows)), np.int64)
    cell = {
        "wild": INT64,
        "holes": st.one_of(st.none(), st.integers(-10, 10)),
        "big": st.one_of(st.integers(-(1 << 90), 1 << 90), st.none()),
        "text": st.one_of(st.text("0123456789abcdef", max_size=128), st.none()),
    }[kind]
    return draw(st.lists(cell, min_size=rows, max_size=rows))


@st.composite
def block_of(draw):
    width = draw(st.integers(0, 4))
    rows = draw(st.one_of(st.integers(0, 6), st.integers(30, 100)))
    period = draw(st.sampled_from([0, 900, 86_400]))
    start = draw(st.integers(0, 1 << 33))
    if period and draw(st.booleans()):
        times = [start + i * period for i in range(rows)]
    else:
        times = draw(st.lists(st.integers(0, 1 << 33), min_size=rows, max_size=rows))
    if draw(st.booleans()):
        times = np.array(times, np.int64)
    q = draw(st.one_of(st.none(), st.just({}), st.just({"offset": -1.5, "bound": [1, 2]})))
    row = st.integers(0, max(0, rows - 1))
    return one(
        times,
        [draw(columns_of(rows)) for _ in range(width)],
        period=period,
        occ=tuple(draw(st.lists(st.tuples(row, st.integers(1, 9)), max_size=3))),
        flags=tuple(
            draw(st.lists(st.tuples(row, st.integers(1, 5), st.integers(1, 4095)), max_size=3))
        ),
        tz=draw(st.integers(-720, 840)),
        multiplier=draw(st.integers(1, 1 << 40)),
        read_at=draw(st.integers(0, 1 << 33)),
        proven_at=draw(st.integers(0, 1 << 33)),
        q=q,
    )


@settings(max_examples=80, deadline=None)
@given(st.lists(block_of(), min_size=1, max_size=6))
def test_every_block_comes_back_as_it_was(blocks):
    _, (back, _) = round_trip(blocks)
    assert [plain(b) for b in back] == [plain(b) for b in blocks]


def test_watermarks_come_back():
    b = one([900, 1800], [[1, 2]])
    _, (_, marks) = round_trip([b, b], [(1, 5)])
    assert marks == [(1, 5)]


def test_values_are_python_integers_in_short_blocks_and_arrays_in_long_ones():
    _, (back, _) = round_trip(
        [one([900, 1800], [np.array([1, 2])]), one(range(0, 90_000, 900), [range(100)])]
    )
    assert type(back[0].columns[0][0]) is int
    assert back[1].columns[0].dtype == np.int64
    assert back[1].times.dtype == np.int64


def test_realistic_hourly_blocks_take_two_octets_a_reading():
    import random

    rng = random.Random(7)
    blocks = []
    for m in range(62):
        columns = [[], [], [], []]
        values = [rng.randrange(60_000_000) for _ in range(4)]
        for _ in range(4):
            for c in range(4):
                values[c] += rng.randrange(300)
                columns[c].append(values[c])
        blocks.append(
            one(range(1_764_000_000, 1_764_003_600, 900), columns, read_at=1_764_004_000 + m // 9)
        )
    body, _ = round_trip(blocks)
    assert len(body) < 2.2 * 62 * 16


@pytest.mark.parametrize(
    ("times", "columns", "error"),
    [
        ([900, 1800], [[1]], ValueError),
        ([900], [[1.5]], TypeError),
        ([900], [np.array([1.5])], TypeError),
        ([900.0], [[1]], TypeError),
        ([900], [[b"x"]], TypeError),
    ],
)
def test_what_cannot_be_given_back_is_refused_beforehand(times, columns, error):
    with pytest.raises(error):
        codec.check(one(times, columns))


def test_a_column_too_few_is_refused():
    b = msgspec.structs.replace(one([900], [[1], [2]]), columns=([1],))
    with pytest.raises(ValueError, match="columns"):
        codec.check(b)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_body_is_named_and_nothing_else_happens(data):
    b = one(range(0, 900 * 40, 900), [[i * i for i in range(40)], [None] * 40], q={"offset": 1})
    sound = round_trip([b])[0]
    body = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(1, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    body = bytes(body[: data.draw(st.integers(0, len(body)))])
    assume(body != sound)  # two changes of one octet may undo each other
    with pytest.raises(JournalDamaged):
        codec.decode(body, lambda _: ("m", "d"), lambda _: b.layout)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_payload_behind_a_right_checksum_decodes_or_is_damaged(payload):
    import zlib

    packed = zlib.compressobj(6, zlib.DEFLATED, -15)
    rest = packed.compress(payload) + packed.flush()
    body = b"\x01" + zlib.crc32(rest).to_bytes(4, "big") + rest
    with pytest.raises(JournalDamaged):
        codec.decode(body, lambda _: ("m", "d"), lambda _: Layout("1.0.99.1.0.255", 900, (ENERGY,)))


def test_a_newer_codec_is_left_alone():
    with pytest.raises(JournalError, match="newer"):
        codec.decode(b"\x02anything", lambda _: ("m", "d"), lambda _: None)


def test_names_that_do_not_exist_are_damage():
    body, _ = round_trip([one([900], [[1]])])
    with pytest.raises(JournalDamaged):
        codec.decode(body, {}.__getitem__, {}.__getitem__)
