"""The ingest function on moto: what is acknowledged is in the lake, and the table follows."""

import base64
import json

import pytest
from botocore.exceptions import ClientError

boto3 = pytest.importorskip("boto3")
from moto import mock_aws  # noqa: E402

TOPIC = "dcu/dcu-0001/reads/interval"
KEY = "interval/day=2025-11-24/dcu=dcu-0001/1764000000-1234.json"


class Ear:
    """In place of the MQTT broker, which moto has not: keeps what was published."""

    def __init__(self):
        self.heard = []

    def publish(self, topic, qos, payload):
        assert qos == 1
        assert len(payload) <= 1000
        self.heard.append((topic, json.loads(payload)))


@pytest.fixture
def aws(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        yield


class World:
    """One ingest function with its stores."""

    def __init__(self):
        from ingest.app import Ingest
        from ingest.stores import Downlink, Lake, Table

        self.s3, self.dynamodb, self.sqs = (boto3.client(s) for s in ("s3", "dynamodb", "sqs"))
        self.s3.create_bucket(Bucket="lake")
        self.dynamodb.create_table(
            TableName="table",
            KeySchema=[
                {"AttributeName": "pk", "KeyType": "HASH"},
                {"AttributeName": "sk", "KeyType": "RANGE"},
            ],
            AttributeDefinitions=[
                {"AttributeName": "pk", "AttributeType": "S"},
                {"AttributeName": "sk", "AttributeType": "S"},
            ],
            BillingMode="PAY_PER_REQUEST",
        )
        self.queue = self.sqs.create_queue(QueueName="maintenance")["QueueUrl"]
        self.ear = Ear()
        self.ingest = Ingest(
            Lake(self.s3, "lake"),
            Table(self.dynamodb, "table"),
            Downlink(self.ear, self.sqs, "dcu", self.queue),
            prefix="dcu",
            interval_days=45,
            long_days=400,
        )

    def send(self, *messages):
        """A batch of (topic, octets or document); returns the records that SQS must bring again."""
        records = []
        for i, (topic, body) in enumerate(messages):
            octets = body if isinstance(body, bytes) else json.dumps(body).encode()
            selected = {
                "raw": base64.b64encode(octets).decode(),
                "topic": topic,
                "received": 1_764_001_240_000,
            }
            records.append({"messageId": str(i), "body": json.dumps(selected)})
        return self.ingest.batch(records)

    def acks(self):
        heard, self.ear.heard = self.ear.heard, []
        return heard

    def objects(self):
        found = self.s3.list_objects_v2(Bucket="lake").get("Contents", [])
        return {
            o["Key"]: self.s3.get_object(Bucket="lake", Key=o["Key"])["Body"].read() for o in found
        }

    def items(self):
        return {
            (i["pk"]["S"], i["sk"]["S"]): {k: v.get("S", v.get("N")) for k, v in i.items()}
            for i in self.dynamodb.scan(TableName="table")["Items"]
        }

    def alarms(self):
        found = self.sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get(
            "Messages", []
        )
        return [json.loads(m["Body"])["alarms"][0] for m in found]


@pytest.fixture
def world(aws):
    return World()


def test_stored_acknowledged_projected(world, envelope):
    assert world.send((TOPIC, envelope)) == []
    assert json.loads(world.objects()[KEY]) == envelope
    assert world.acks() == [
        (
            "dcu/dcu-0001/down/acks",
            {
                "schema": "opendcu.ack/1", "dcu": "dcu-0001", "epoch": 1764000000, "acked": [[1234, 1234]],
                "rejected": [], "high": 1234,
            },
        )
    ]  # fmt: skip
    items = world.items()
    hours = [sk for pk, sk in items if pk == "M#GP1000001" and sk.startswith("interval#")]
    assert hours == ["interval#2025-11-24T21#1.0.99.1.0.255"]
    assert ("M#GP1000001", "AT") in items


def test_one_message_per_batch_and_gateway(world, envelope):
    messages = [(TOPIC, envelope | {"n": n}) for n in (5, 6, 7, 9)]
    other = envelope | {"dcu": "dcu-0002", "n": 3}
    world.send(*messages, ("dcu/dcu-0002/reads/interval", other))
    heard = dict(world.acks())
    assert heard["dcu/dcu-0001/down/acks"]["acked"] == [[5, 7], [9, 9]]
    assert heard["dcu/dcu-0002/down/acks"]["acked"] == [[3, 3]]


def test_high_is_the_highest_number_ever_stored_of_an_epoch(world, envelope):
    for n, high in ((7, 7), (3, 7), (9, 9)):
        world.send((TOPIC, envelope | {"n": n}))
        assert world.acks()[0][1]["high"] == high
    world.send((TOPIC, envelope | {"n": 1, "epoch": 1_764_000_001}))
    assert world.acks()[0][1]["high"] == 1


def test_a_resend_is_acknowledged_again_and_changes_nothing(world, envelope):
    world.send((TOPIC, envelope))
    before = world.objects(), world.items()
    world.acks()
    world.send((TOPIC, envelope), (TOPIC, envelope))
    assert (world.objects(), world.items()) == before
    assert world.acks()[0][1]["acked"] == [[1234, 1234]]
    assert world.alarms() == []


def test_other_octets_under_one_number_are_kept_beside_and_alarmed(world, envelope):
    world.send((TOPIC, envelope))
    other = envelope | {"sent": envelope["sent"] + 1}
    world.send((TOPIC, other))
    objects = world.objects()
    assert json.loads(objects[KEY]) == envelope
    beside = [k for k in objects if k != KEY]
    assert len(beside) == 1
    assert beside[0].startswith(KEY.removesuffix(".json") + ".")
    assert json.loads(objects[beside[0]]) == other
    assert [a["code"] for a in world.alarms()] == ["message-conflict"]
    world.send((TOPIC, other))
    assert world.objects() == objects


def test_a_conflicting_value_is_alarmed_and_the_later_read_holds(world, envelope):
    from opendcu_cloud import rows

    world.send((TOPIC, envelope))
    envelope["blocks"][0]["values"][0][2] = 33
    envelope["blocks"][0]["read_at"] += 60
    world.send((TOPIC, envelope | {"n": 1235}))
    (alarm,) = world.alarms()
    assert (alarm["code"], alarm["class"], alarm["meter"]) == (
        "value-conflict",
        "meter",
        "GP1000001",
    )
    assert alarm["detail"]["stored"][0] == 3
    assert alarm["detail"]["arrived"][0] == 33
    hour = world.items()["M#GP1000001", "interval#2025-11-24T21#1.0.99.1.0.255"]
    assert sorted(r.value for r in rows.readings(hour).values() if r.unit == "Wh") == [1, 2, 4, 33]
    events = [sk for pk, sk in world.items() if pk == "M#GP1000001" and sk.startswith("E#")]
    assert len(events) == 1


def test_what_is_invalid_is_refused_kept_and_not_brought_again(world, envelope):
    broken = envelope | {"kind": "midnight"}
    assert world.send((TOPIC, broken), (TOPIC, b"\xff\x00"), (TOPIC, envelope | {"n": 1})) == []
    ((_, ack),) = world.acks()
    assert ack["acked"] == [[1, 1]]
    assert [r[:2] for r in ack["rejected"]] == [[1234, "schema-invalid"]]
    refused = [k for k in world.objects() if k.startswith("refused/day=2025-11-24/dcu=dcu-0001/")]
    assert len(refused) == 2


def test_a_gateway_cannot_speak_for_another(world, envelope):
    world.send(("dcu/dcu-0002/reads/interval", envelope))
    ((topic, ack),) = world.acks()
    assert topic == "dcu/dcu-0002/down/acks"
    assert ack["acked"] == []
    assert ack["rejected"][0][:2] == [1234, "dcu-mismatch"]
    assert KEY not in world.objects()


def test_a_record_that_no_rule_made_is_set_aside(world):
    assert world.ingest.batch([{"messageId": "x", "body": "hello"}]) == []
    assert [k.split("/")[0] for k in world.objects()] == ["refused"]
    assert world.acks() == []


class Broken:
    """A client of which one method fails."""

    def __init__(self, client, method):
        self._client, self._method = client, method

    def __getattr__(self, name):
        if name == self._method:
            return self._fail
        return getattr(self._client, name)

    @staticmethod
    def _fail(**_):
        raise ClientError(
            {"Error": {"Code": "503"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "x"
        )


def test_what_is_not_stored_is_not_acknowledged_and_comes_again(world, envelope):
    from ingest.stores import Lake

    world.ingest._lake = Lake(Broken(world.s3, "put_object"), "lake")
    assert world.send((TOPIC, envelope)) == ["0"]
    assert world.acks() == []
    assert world.items() == {}


def test_the_table_never_holds_an_acknowledgement_back(world, envelope):
    from ingest.stores import Table

    good = world.ingest._table
    world.ingest._table = Table(Broken(world.dynamodb, "update_item"), "table")
    assert world.send((TOPIC, envelope)) == ["0"]
    assert world.acks()[0][1]["acked"] == [[1234, 1234]]
    world.ingest._table = good
    assert world.send((TOPIC, envelope)) == []
    assert len([sk for _, sk in world.items() if sk.startswith("interval#")]) == 1


def test_alarms_events_findings_health_and_replies_find_their_place(world):
    head = {"dcu": "dcu-0001", "epoch": 1, "sent": 1_764_001_234}
    storm = {
        "code": "last-gasp", "at": [1_764_000_000, 1_764_000_000], "meters": ["A", "B"],
        "ids": ["0123456789abcdef", "fedcba9876543210"],
    }  # fmt: skip
    finding = {
        "id": "f1",
        "meter": "A",
        "kind": "bypass",
        "from": 1,
        "to": 2,
        "score": 900,
        "threshold": 800,
        "model": "1",
    }
    health = {
        "version": "1", "uptime_s": 5, "depth": 0, "meters": {}, "clock": {}, "uplink": {}, "memory_mb": 70,
    }  # fmt: skip
    world.send(
        ("dcu/dcu-0001/alarms/outage", head | {"schema": "opendcu.alarms/1", "n": 1, "kind": "outage", "alarms": storm}),
        (
            "dcu/dcu-0001/events",
            head
            | {
                "schema": "opendcu.events/1", "n": 2, "kind": "events",
                "events": [{"meter": "A", "log": "0.0.99.98.1.255", "code": 51, "at": 1_763_999_000, "k": 0}],
            },
        ),
        (
            "dcu/dcu-0001/anomalies",
            head | {"schema": "opendcu.anomalies/1", "n": 3, "kind": "anomalies", "findings": [finding | {"rev": 2}]},
        ),
        (
            "dcu/dcu-0001/anomalies",
            head | {"schema": "opendcu.anomalies/1", "n": 4, "kind": "anomalies", "findings": [finding | {"rev": 1}]},
        ),
        ("dcu/dcu-0001/health", head | {"schema": "opendcu.health/1", "n": 0, "kind": "health"} | health),
        (
            "dcu/dcu-0001/replies/c1",
            head | {"schema": "opendcu.reply/1", "n": 5, "kind": "c1", "id": "c1", "state": "done"},
        ),
        (
            "dcu/dcu-0001/replies/c1",
            head | {"schema": "opendcu.reply/1", "n": 6, "kind": "c1", "id": "c1", "state": "accepted"},
        ),
        (
            "dcu/dcu-0001/completeness",
            head | {"schema": "opendcu.completeness/1", "n": 7, "kind": "completeness", "day": "2025-11-23"},
        ),
    )  # fmt: skip
    items = world.items()
    assert ("M#A", "E#01764000000#0123456789abcdef") in items
    assert ("M#B", "E#01764000000#fedcba9876543210") in items
    assert [sk for pk, sk in items if pk == "M#A" and sk.startswith("E#01763999000#")]
    assert json.loads(items["M#A", "A#00000000001#f1"]["doc"])["rev"] == 2
    assert json.loads(items["R#c1", "R"]["doc"])["state"] == "done"
    assert json.loads(items["G#dcu-0001", "HEALTH"]["doc"])["memory_mb"] == 70
    assert ("G#dcu-0001", "C#2025-11-23") in items
    assert world.acks()[0][1]["acked"] == [[1, 7]]
    kinds = {k.split("/")[0] for k in world.objects()}
    assert kinds == {"outage", "events", "anomalies", "replies", "completeness"}


def history(envelope, n, values, read_at):
    """Two days of quarter hours."""
    block = envelope["blocks"][0] | {
        "rows": 192,
        "values": [values, [2300] * 192],
        "read_at": read_at,
    }
    return envelope | {"n": n, "blocks": [block]}


def test_history_is_put_at_once_and_again_without_harm(world, envelope):
    from opendcu_cloud import rows

    def stored():
        return {
            identity.at: reading.value
            for (_, sk), item in world.items().items()
            if sk.startswith("interval#")
            for identity, reading in rows.readings(item).items()
            if reading.unit == "Wh"
        }

    t0 = envelope["blocks"][0]["t0"]
    early = list(range(192))
    # somebody was there before, in the middle of it, with one value that differs and is older
    one = envelope["blocks"][0] | {
        "t0": t0 + 90_000,
        "values": [[5, 101, 102, 103], [1, 1, 1, 1]],
        "read_at": 1,
    }
    world.send((TOPIC, envelope | {"n": 1, "blocks": [one]}))
    assert world.send((TOPIC, history(envelope, 2, early, 1_764_001_200))) == []
    assert list(stored().values()) == early
    assert {a["code"] for a in world.alarms()} == {"value-conflict"}
    before = world.items()
    assert world.send((TOPIC, history(envelope, 2, early, 1_764_001_200))) == []
    assert world.items().keys() == before.keys()
    assert list(stored().values()) == early
    late = [v + 1 for v in early]
    world.send((TOPIC, history(envelope, 3, late, 1_764_001_300)))
    assert list(stored().values()) == late
    world.send((TOPIC, history(envelope, 4, early, 1_764_001_250)))
    assert list(stored().values()) == late


def test_another_multiplier_than_the_masters_is_alarmed_once(world, envelope):
    from ingest import app

    def master(multiplier):
        item = {
            "pk": {"S": "M#GP1000001"},
            "sk": {"S": "META"},
            "doc": {"S": json.dumps({"multiplier": multiplier})},
        }
        world.dynamodb.put_item(TableName="table", Item=item)

    master(40)
    for n in (1, 2):
        world.send((TOPIC, envelope | {"n": n}))
    (alarm,) = world.alarms()
    assert (alarm["code"], alarm["meter"]) == ("multiplier-mismatch", "GP1000001")
    assert (alarm["detail"]["carried"], alarm["detail"]["master"]) == (1, 40)
    master(1)
    world.ingest._masters_until = 0.0
    world.send((TOPIC, envelope | {"n": 3}))
    assert world.alarms() == []
    assert app.MASTERS_S <= 600


def test_more_documents_than_a_batch_takes(world):
    storm = {
        "code": "last-gasp", "at": [1_764_000_000] * 60, "meters": [f"m{i}" for i in range(60)],
        "ids": [f"{i:016x}" for i in range(60)],
    }  # fmt: skip
    head = {
        "schema": "opendcu.alarms/1",
        "dcu": "dcu-0001",
        "epoch": 1,
        "n": 1,
        "sent": 1_764_001_234,
        "kind": "outage",
    }
    assert world.send(("dcu/dcu-0001/alarms/outage", head | {"alarms": storm})) == []
    assert len([sk for _, sk in world.items() if sk.startswith("E#")]) == 60
