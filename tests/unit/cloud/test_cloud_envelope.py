"""What is a message and what is not: DESIGN section 6, checked before anything is stored."""

import base64
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opendcu_cloud.envelope import MAX_INFLATED, MAX_PAYLOAD, Refused, open_message, split_topic

TOPIC = "dcu/dcu-0001/reads/interval"


def octets(document):
    return json.dumps(document, separators=(",", ":")).encode()


def refusal(topic, payload):
    with pytest.raises(Refused) as caught:
        open_message(topic, payload)
    return caught.value


def test_plain_reads_are_opened(envelope):
    message = open_message(TOPIC, octets(envelope))
    assert (message.dcu, message.epoch, message.n) == ("dcu-0001", 1_764_000_000, 1234)
    block = message.blocks[0]
    assert block.times(900) == [1_763_999_100, 1_764_000_000, 1_764_000_900, 1_764_001_800]
    assert block.values[1] == [2301, None, 2303, 2304]


def test_compressed_reads_say_the_same(envelope):
    inner = {"layouts": envelope.pop("layouts"), "blocks": envelope.pop("blocks")}
    plain = open_message(TOPIC, octets(envelope | inner))
    packed = base64.b64encode(gzip.compress(octets(inner))).decode()
    message = open_message(TOPIC, octets(envelope | {"enc": "gzip+base64", "data": packed}))
    assert message.blocks == plain.blocks
    assert message.layouts == plain.layouts


def test_integers_of_any_size(envelope):
    envelope["blocks"][0]["values"][0] = [2**53 + 1, 10**30, -(2**70), 0]
    assert open_message(TOPIC, octets(envelope)).blocks[0].values[0][1] == 10**30


def test_unknown_fields_are_ignored(envelope):
    envelope["new"] = {"a": 1.5}
    envelope["blocks"][0]["newer"] = [1]
    assert open_message(TOPIC, octets(envelope)).n == 1234


def change(path, value):
    def apply(envelope):
        place = envelope
        for step in path[:-1]:
            place = place[step]
        if value is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return apply


BLOCK = ("blocks", 0)
WRONG = {
    "another schema": change(("schema",), "opendcu.reads/2"),
    "no number": change(("n",), ...),
    "negative number": change(("n",), -1),
    "no epoch": change(("epoch",), ...),
    "kind of another topic": change(("kind",), "midnight"),
    "no block": change(("blocks",), []),
    "no meter": change((*BLOCK, "meter"), ""),
    "no device": change((*BLOCK, "device"), ...),
    "a float": change((*BLOCK, "values"), [[1, 2, 3.0, 4], [1, 2, 3, 4]]),
    "a truth value": change((*BLOCK, "values"), [[1, 2, True, 4], [1, 2, 3, 4]]),
    "text in a number column": change((*BLOCK, "values"), [["1", 2, 3, 4], [1, 2, 3, 4]]),
    "short column": change((*BLOCK, "values"), [[1, 2, 3], [1, 2, 3, 4]]),
    "missing column": change((*BLOCK, "values"), [[1, 2, 3, 4]]),
    "no rows": change((*BLOCK, "rows"), 0),
    "absurd rows": change((*BLOCK, "rows"), 10**9),
    "layout out of range": change((*BLOCK, "layout"), 1),
    "both times": change((*BLOCK, "t"), [1, 2, 3, 4]),
    "no time": change((*BLOCK, "t0"), ...),
    "occurrence 0": change((*BLOCK, "occ"), [[1, 0]]),
    "occurrence of no row": change((*BLOCK, "occ"), [[4, 1]]),
    "flags beyond the rows": change((*BLOCK, "flags"), [[3, 2, 1]]),
    "time zone": change((*BLOCK, "tz"), 901),
    "obis": change(("layouts", 0, "profile"), "1.0.99.1.0"),
    "unit": change(("layouts", 0, "cols", 0, 1), "kWh"),
    "no columns": change(("layouts", 0, "cols"), []),
    "period 0 with t0": change(("layouts", 0, "period"), 0),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_and_named(envelope, name):
    WRONG[name](envelope)
    refused = refusal(TOPIC, octets(envelope))
    assert refused.code == "schema-invalid"
    assert refused.why
    if name not in ("no number", "negative number", "no epoch"):
        assert (refused.epoch, refused.n) == (1_764_000_000, 1234)


def test_two_rows_of_one_time_need_an_occurrence(envelope):
    block = envelope["blocks"][0]
    del block["t0"]
    block["t"] = [100, 200, 200, 300]
    assert "one time" in refusal(TOPIC, octets(envelope)).why
    block["occ"] = [[2, 1]]
    assert open_message(TOPIC, octets(envelope)).blocks[0].occurrences() == [0, 0, 1, 0]


def test_daily_rows_carry_their_times(envelope):
    envelope["kind"] = "midnight"
    assert "carry t" in refusal("dcu/dcu-0001/reads/midnight", octets(envelope)).why


def test_another_gateways_message_is_refused(envelope):
    refused = refusal("dcu/dcu-0002/reads/interval", octets(envelope))
    assert refused.code == "dcu-mismatch"
    assert (refused.epoch, refused.n) == (1_764_000_000, 1234)


def test_too_large(envelope):
    envelope["blocks"][0]["meter"] = "x"
    envelope["pad"] = "x" * MAX_PAYLOAD
    assert refusal(TOPIC, octets(envelope)).code == "too-large"


def test_a_bomb_is_not_inflated(envelope):
    del envelope["layouts"], envelope["blocks"]
    bomb = gzip.compress(b" " * (MAX_INFLATED + 1))
    envelope |= {"enc": "gzip+base64", "data": base64.b64encode(bomb).decode()}
    assert len(octets(envelope)) < MAX_PAYLOAD
    assert refusal(TOPIC, octets(envelope)).code == "too-large"


@pytest.mark.parametrize(
    "data", ["", "!", "AAAA", base64.b64encode(gzip.compress(b"{}", mtime=0)[:-1]).decode()]
)
def test_broken_compression(envelope, data):
    del envelope["layouts"], envelope["blocks"]
    assert (
        refusal(TOPIC, octets(envelope | {"enc": "gzip+base64", "data": data})).code
        == "schema-invalid"
    )


@given(st.binary(max_size=300))
def test_any_octets_are_opened_or_refused(payload):
    with pytest.raises(Refused):
        open_message(TOPIC, payload)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(
    key=st.sampled_from(
        ["schema", "dcu", "epoch", "n", "sent", "kind", "layouts", "blocks", "enc", "data"]
    ),
    value=JSON,
)
def test_any_value_in_any_field_is_opened_or_refused(key, value):
    from copy import deepcopy

    document = deepcopy(GOOD)
    document[key] = value
    try:
        message = open_message(TOPIC, octets(document))
    except Refused:
        return
    assert message.dcu == "dcu-0001"
    assert document["schema"] == "opendcu.reads/1"


GOOD = {
    "schema": "opendcu.reads/1",
    "dcu": "dcu-0001",
    "epoch": 1,
    "n": 1,
    "sent": 1,
    "kind": "interval",
    "layouts": [
        {"profile": "1.0.99.1.0.255", "period": 900, "cols": [["1.0.1.29.0.255", "Wh", 0]]}
    ],
    "blocks": [
        {
            "meter": "m",
            "device": "d",
            "layout": 0,
            "t0": 900,
            "rows": 1,
            "values": [[1]],
            "tz": 0,
            "read_at": 1,
        }
    ],
}


ALARM = {
    "id": "0123456789abcdef",
    "meter": "GP1",
    "class": "outage",
    "code": "last-gasp",
    "at": 1_764_000_000,
    "heard": 1_764_000_001,
    "authenticated": True,
    "inferred": False,
}


def alarms(body, kind="outage"):
    return octets(
        {
            "schema": "opendcu.alarms/1",
            "dcu": "dcu-0001",
            "epoch": 1,
            "n": 2,
            "sent": 3,
            "kind": kind,
            "alarms": body,
        }
    )


def test_alarms_one_by_one_and_in_columns_are_the_same():
    listed = open_message("dcu/dcu-0001/alarms/outage", alarms([ALARM | {"heard": ALARM["at"]}]))
    compact = {"code": "last-gasp", "at": [ALARM["at"]], "meters": ["GP1"], "ids": [ALARM["id"]]}
    assert open_message("dcu/dcu-0001/alarms/outage", alarms(compact)).alarms == listed.alarms


@pytest.mark.parametrize(
    "body",
    [
        [],
        [ALARM | {"class": "tamper"}],
        [ALARM | {"id": "0123"}],
        [ALARM | {"phases": ["L4"]}],
        {"code": "last-gasp", "at": [1, 2], "meters": ["a"], "ids": [ALARM["id"]]},
        {"code": "last-gasp", "at": [], "meters": [], "ids": []},
    ],
)
def test_wrong_alarms(body):
    assert refusal("dcu/dcu-0001/alarms/outage", alarms(body)).code == "schema-invalid"


@pytest.mark.parametrize(
    "topic",
    [
        "dcu/x/reads",
        "dcu/x/reads/hourly",
        "dcu//reads/interval",
        "other/x/reads/interval",
        "dcu/x/alarms/fire",
        "dcu/x/down/acks",
        "dcu/x/reads/interval/more",
        "dcu/x/replies/",
        "",
    ],
)
def test_topics_that_carry_nothing(topic):
    with pytest.raises(Refused):
        split_topic(topic, "dcu")
