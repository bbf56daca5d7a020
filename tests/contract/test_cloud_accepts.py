"""The cloud's end of the contract: the golden messages are accepted, and nothing that the schemas do not allow."""

import base64
import copy
import gzip
import json
import sys
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "cloud" / "functions"))
GOLDEN = ROOT / "tests" / "data" / "payloads"

from opendcu_cloud.acks import acks  # noqa: E402
from opendcu_cloud.answers import read_command  # noqa: E402
from opendcu_cloud.envelope import Refused, open_message  # noqa: E402

UPWARD = sorted(p.name for p in GOLDEN.glob("*.json") if p.stem not in ("ack", "command"))


def schema_of(name):
    schema = json.loads((ROOT / "cloud" / "schemas" / f"{name}.v1.json").read_text())
    return jsonschema.Draft202012Validator(schema)


VALIDATORS = {
    name: schema_of(name)
    for name in (
        "reads",
        "reads-content",
        "alarms",
        "events",
        "anomalies",
        "completeness",
        "health",
        "reply",
    )
}


def topic_of(document):
    name = document["schema"].removeprefix("opendcu.").removesuffix("/1")
    group = "replies" if name == "reply" else name
    sub = "" if document["kind"] == group else f"/{document['kind']}"
    return f"dcu/{document['dcu']}/{group}{sub}"


def allowed(document):
    """What the schemas say, of compressed contents too."""
    name = str(document.get("schema")).removeprefix("opendcu.").removesuffix("/1")
    if name == "health":
        document = {
            "epoch": 0,
            "n": 0,
        } | document  # it carries no number: the cloud does not ask for one
    if name not in VALIDATORS or not VALIDATORS[name].is_valid(document):
        return False
    if "data" not in document:
        return True
    inner = json.loads(gzip.decompress(base64.b64decode(document["data"])))
    return VALIDATORS["reads-content"].is_valid(inner)


@pytest.mark.parametrize("name", UPWARD)
def test_golden_messages_are_accepted(name):
    octets = (GOLDEN / name).read_bytes()
    document = json.loads(octets)
    message = open_message(topic_of(document), octets)
    assert message.sent == document["sent"]
    for block, expected in zip(message.blocks, document.get("blocks", []), strict=False):
        assert block.values == expected["values"]
    if document["schema"].startswith("opendcu.alarms") and isinstance(document["alarms"], dict):
        assert [a.id for a in message.alarms] == document["alarms"]["ids"]


def places(value, path=()):
    """Every place in a JSON tree."""
    if path:
        yield path
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in pairs:
        yield from places(inner, (*path, key))


VALUES = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        -1,
        2**70,
        1.0,
        0.5,
        "",
        "x",
        "1.0.1.8.0.255",
        "ff",
        [],
        [1],
        [[1]],
        {},
        {"a": 1},
    ]
)


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_what_the_cloud_accepts_the_schemas_allow(data):
    document = copy.deepcopy(DOCUMENTS[data.draw(st.sampled_from(UPWARD))])
    topic = topic_of(document)
    path = data.draw(st.sampled_from(list(places(document))))
    place = document
    for step in path[:-1]:
        place = place[step]
    if data.draw(st.booleans()):
        place[path[-1]] = data.draw(VALUES)
    else:
        del place[path[-1]]
    try:
        open_message(topic, json.dumps(document).encode())
    except Refused:
        return
    assert allowed(document), path


DOCUMENTS = {name: json.loads((GOLDEN / name).read_text()) for name in UPWARD}


def test_what_the_cloud_says_the_schemas_allow():
    for payload in acks("dcu-0001", 1, [1, 2, 5], [(3, "schema-invalid", "why")], 5):
        schema_of("ack").validate(json.loads(payload))
    schema_of("command").validate(
        read_command("c1", "GP1", {"what": "interval", "from": "1764000000"}, 1_764_000_000)
    )
