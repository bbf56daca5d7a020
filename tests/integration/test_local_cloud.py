"""The template in MiniStack with Local=true, reached as a gateway reaches AWS: MQTT 5 over mutual TLS with awsiotsdk."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest

pytest.importorskip("ministack")
mqtt5 = pytest.importorskip("awscrt.mqtt5")
from awsiot import mqtt5_client_builder  # noqa: E402
from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from cryptography.x509.oid import NameOID  # noqa: E402

from edge_core.clock import SystemClock  # noqa: E402
from simulators.cloud import LocalCloud, template_text  # noqa: E402

pytestmark = pytest.mark.integration

NOW = int(SystemClock().now())
GOLDEN = Path(__file__).parents[1] / "data" / "payloads"
SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/execute-api/aws4_request, SignedHeaders=host, Signature=0"
}


def until(condition, within_s=20.0):
    end = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {within_s} s"
        time.sleep(0.01)
    return value


class Gateway:
    """A connection as the product makes it; remembers what it was told."""

    def __init__(self, uplink, dcu="dcu-0001", client_id=None):
        self.dcu, self.heard, self.refused = dcu, [], None
        up = threading.Event()
        host, _, port = uplink.url.partition(":")

        def failed(data):
            self.refused = data
            up.set()

        self.client = mqtt5_client_builder.mtls_from_path(
            endpoint=host,
            port=int(port),
            cert_filepath=uplink.cert_file,
            pri_key_filepath=uplink.key_file,
            ca_filepath=uplink.ca_file,
            client_id=client_id or dcu,
            on_lifecycle_connection_success=lambda _: up.set(),
            on_lifecycle_connection_failure=failed,
            on_lifecycle_stopped=lambda _: self.stopped(),
            on_publish_received=lambda d: self.heard.append(
                (d.publish_packet.topic, json.loads(d.publish_packet.payload))
            ),
        )
        self.client.start()
        assert up.wait(10)

    def subscribe(self, topic):
        packet = mqtt5.SubscribePacket(
            subscriptions=[mqtt5.Subscription(topic, mqtt5.QoS.AT_MOST_ONCE)]
        )
        return self.client.subscribe(packet).result(10).reason_codes[0]

    def publish(self, rest, document, dcu=None):
        octets = document if isinstance(document, bytes) else json.dumps(document).encode()
        packet = mqtt5.PublishPacket(
            topic=f"dcu/{dcu or self.dcu}/{rest}" if not rest.startswith("$") else rest,
            payload=octets,
            qos=mqtt5.QoS.AT_LEAST_ONCE,
        )
        return self.client.publish(packet).result(10).puback.reason_code

    def acked(self, epoch):
        return {
            n
            for topic, ack in self.heard
            if topic.endswith("/down/acks") and ack["epoch"] == epoch
            for first, last in ack["acked"]
            for n in range(first, last + 1)
        }

    def rejected(self, epoch):
        return {
            r[0]: r[1]
            for topic, ack in self.heard
            if topic.endswith("/acks") and ack["epoch"] == epoch
            for r in ack["rejected"]
        }

    def stop(self):
        stopped = threading.Event()
        self.stopped = stopped.set
        self.client.stop()
        assert stopped.wait(10)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    with LocalCloud(tmp_path_factory.mktemp("cloud")) as running:
        yield running


@pytest.fixture
def connect():
    """Connections that are closed at the end, also when the test fails: an id left behind would evict the next one."""
    clients = []

    def make(*args, **more):
        clients.append(Gateway(*args, **more))
        return clients[-1]

    yield make
    for client in clients:
        client.stop()


@pytest.fixture
def gateway(cloud, connect):
    client = connect(cloud.uplink)
    assert client.subscribe("dcu/dcu-0001/down/#") == 0
    return client


@pytest.fixture
def epoch(request):
    """An epoch of its own for every test: one cloud serves all of them."""
    return 1_764_100_000 + list(request.session.items).index(request.node)


def reads(epoch, n, meter, values, t0=1_764_000_000, read_at=1_764_009_000, **more):
    return {
        "schema": "opendcu.reads/1", "dcu": "dcu-0001", "epoch": epoch, "n": n, "sent": NOW, "kind": "interval",
        "layouts": [{"profile": "1.0.99.1.0.255", "period": 900, "cols": [["1.0.1.29.0.255", "Wh", 0]]}],
        "blocks": [
            {
                "meter": meter, "device": "d", "layout": 0, "t0": t0, "rows": len(values), "values": [values], "tz": 330,
                "read_at": read_at,
            }
        ],
    } | more  # fmt: skip


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def values_of(cloud, meter, kind="interval"):
    """Values of a meter, oldest first."""
    found = sorted(
        (i, v.value) for i, v in cloud.stored_readings(kind).readings.items() if i.meter == meter
    )
    return [value for _, value in found]


def objects_of(cloud, epoch, n):
    found = cloud.bucket.glob(f"interval/day=*/dcu=*/{epoch}-{n}.*json")
    return [p for p in found if not p.name.endswith(".meta.json")]


def settled(cloud):
    """Everything published has been stored and projected."""
    until(lambda: cloud.waiting() == 0)


def call(cloud, method, path, body=None, headers=SIGNED):
    octets = json.dumps(body).encode() if body is not None else None
    question = urllib.request.Request(cloud.api + path, octets, headers, method=method)
    try:
        with urllib.request.urlopen(question, timeout=20) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_golden_messages_come_back_acknowledged_and_lie_in_the_lake(cloud, gateway):
    expected, octets = {}, {}
    for n, name in enumerate(sorted(p.stem for p in GOLDEN.glob("*.json")), 1):
        document = golden(name)
        kind = document["schema"].removeprefix("opendcu.").removesuffix("/1")
        if kind in ("ack", "command", "health"):
            continue
        document["n"] = n
        group = "replies" if kind == "reply" else kind
        rest = group if document["kind"] == group else f"{group}/{document['kind']}"
        folder = document["kind"] if kind in ("reads", "alarms") else group
        octets[n] = json.dumps(
            document, indent=1
        ).encode()  # white space and order of keys must survive
        expected[n] = f"{folder}/day=2025-11-24/dcu=dcu-0001/{document['epoch']}-{n}.json"
        assert gateway.publish(rest, octets[n]) == 0
    until(lambda: gateway.acked(golden("ack")["epoch"]) == set(expected))
    for n, key in expected.items():
        body = (
            cloud.client("s3")
            .get_object(Bucket=cloud.outputs["LakeBucket"], Key=key)["Body"]
            .read()
        )
        assert body == octets[n], key
    settled(cloud)
    for kind in ("interval", "midnight"):
        assert len(cloud.stored_readings(kind).readings) > 0
        assert cloud.check_dynamodb(kind) == {"missing": 0, "foreign": 0, "different": 0}


def test_every_resource_of_the_template_is_there(cloud):
    wanted, resource = {}, None
    for line in template_text().split("\nResources:\n")[1].split("\nOutputs:\n")[0].splitlines():
        if name := re.fullmatch(r"  (\w+):", line):
            resource = name[1]
        elif (kind := re.match(r"    (Type|Condition): (\S+)", line)) and resource:
            wanted.setdefault(resource, {})[kind[1]] = kind[2]
    names = {name for name, r in wanted.items() if "Condition" not in r}
    assert len(names) > 35
    found = cloud.client("cloudformation").describe_stack_resources(StackName="opendcu")[
        "StackResources"
    ]
    states = {r["LogicalResourceId"]: r["ResourceStatus"] for r in found}
    assert names <= set(states)
    assert set(states.values()) == {"CREATE_COMPLETE"}
    assert not {name for name, r in wanted.items() if "Condition" in r} & set(states)
    rules = cloud.client("iot").list_topic_rules()["rules"]
    assert len(rules) == sum(r["Type"] == "AWS::IoT::TopicRule" for r in wanted.values())
    for name in (r["ruleName"] for r in rules):
        rule = cloud.client("iot").get_topic_rule(ruleName=name)["rule"]
        assert rule["sql"].startswith("SELECT "), name
        assert [list(action) for action in (*rule["actions"], rule["errorAction"])] == [
            ["sqs"],
            ["sqs"],
        ], name
    sources = cloud.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    assert {s["BatchSize"] for s in sources} == {10}
    assert all(s["FunctionResponseTypes"] == ["ReportBatchItemFailures"] for s in sources)


def test_an_acknowledgement_is_small_and_complete(cloud, gateway, epoch):
    for n in range(1, 31):
        gateway.publish("reads/interval", reads(epoch, n, "SMALL", [n], t0=1_764_000_000 + 900 * n))
    until(lambda: gateway.acked(epoch) == set(range(1, 31)))
    acks = [ack for _, ack in gateway.heard if ack.get("epoch") == epoch]
    assert len(acks) < 30
    assert max(ack["high"] for ack in acks) == 30
    assert all(len(json.dumps(ack)) <= 1000 for ack in acks)


def test_duplicates_are_stored_once(cloud, gateway, epoch):
    message = json.dumps(reads(epoch, 1, "TWICE", [1, 2, 3])).encode()
    for _ in range(3):
        gateway.publish("reads/interval", message)
    gateway.publish("reads/interval", reads(epoch, 2, "TWICE", [1, 2, 3]))
    until(lambda: gateway.acked(epoch) == {1, 2})
    settled(cloud)
    assert values_of(cloud, "TWICE") == [1, 2, 3]
    assert len(objects_of(cloud, epoch, 1)) == 1
    assert not [a for a in cloud.queued_alarms().values() if a["meter"] == "TWICE"]


def test_a_later_read_with_another_value_holds_and_is_alarmed(cloud, gateway, epoch):
    gateway.publish("reads/interval", reads(epoch, 2, "CHANGED", [1, 22, 3], read_at=1_764_010_000))
    until(lambda: gateway.acked(epoch) == {2})
    gateway.publish("reads/interval", reads(epoch, 1, "CHANGED", [1, 2, 3], read_at=1_764_009_000))
    until(lambda: gateway.acked(epoch) == {1, 2})
    settled(cloud)
    assert values_of(cloud, "CHANGED") == [1, 22, 3]
    assert cloud.check_dynamodb() == {"missing": 0, "foreign": 0, "different": 0}
    (alarm,) = [a for a in cloud.queued_alarms().values() if a["meter"] == "CHANGED"]
    assert alarm["code"] == "value-conflict"


def test_other_octets_under_one_number_are_kept_beside(cloud, gateway, epoch):
    gateway.publish("reads/interval", reads(epoch, 1, "NUMBER", [1]))
    until(lambda: gateway.acked(epoch) == {1})
    gateway.publish("reads/interval", reads(epoch, 1, "NUMBER", [1, 2]))
    until(lambda: len(values_of(cloud, "NUMBER")) == 2)
    assert len(objects_of(cloud, epoch, 1)) == 2
    until(
        lambda: [
            a for a in cloud.queued_alarms().values() if a.get("detail", {}).get("epoch") == epoch
        ]
    )


def test_invalid_messages_are_rejected_and_the_rest_flows(cloud, gateway, epoch):
    good = reads(epoch, 3, "GOOD", [1])
    gateway.publish("reads/interval", reads(epoch, 1, "BAD", [1.5]))
    gateway.publish("reads/interval", reads(epoch, 2, "BAD", [1], kind="midnight"))
    gateway.publish("reads/interval", b"\xff\xfe no json")
    gateway.publish("reads/interval", good)
    until(lambda: gateway.acked(epoch) == {3} and set(gateway.rejected(epoch)) == {1, 2})
    assert set(gateway.rejected(epoch).values()) == {"schema-invalid"}
    assert values_of(cloud, "BAD") == []
    settled(cloud)
    assert cloud.client("sqs").get_queue_attributes(
        QueueUrl=cloud.outputs["IngestDeadLettersUrl"],
        AttributeNames=["ApproximateNumberOfMessages"],
    )["Attributes"] == {"ApproximateNumberOfMessages": "0"}


def test_a_message_of_another_gateway_is_rejected(cloud, gateway, epoch):
    gateway.publish("reads/interval", reads(epoch, 1, "FOREIGN", [1], dcu="dcu-0002"))
    until(lambda: gateway.rejected(epoch) == {1: "dcu-mismatch"})
    assert values_of(cloud, "FOREIGN") == []


def test_last_gasps_reach_the_queue_of_the_oms(cloud, gateway, epoch):
    ids = {f"{epoch:08x}{i:08x}" for i in range(40)}
    for n, id_ in enumerate(sorted(ids)):
        alarm = golden("alarms-outage")["alarms"][0] | {"id": id_, "meter": f"GASP{n}"}
        document = golden("alarms-outage") | {"epoch": epoch, "n": n, "alarms": [alarm]}
        assert gateway.publish("alarms/outage", document) == 0
    assert ids <= set(cloud.queued_alarms())  # a PUBACK means that the rules have run
    compact = golden("alarms-compact") | {"epoch": epoch, "n": 40}
    gateway.publish("alarms/outage", compact)
    assert set(compact["alarms"]["ids"]) <= set(cloud.queued_alarms())
    until(lambda: gateway.acked(epoch) == set(range(41)))


def test_reads_come_by_basic_ingest(cloud, gateway, epoch):
    topic = "$aws/rules/opendcu_reads/dcu/dcu-0001/reads/interval"
    assert gateway.publish(topic, reads(epoch, 1, "BASIC", [7])) == 0
    until(lambda: gateway.acked(epoch) == {1})
    assert values_of(cloud, "BASIC") == [7]


def test_the_broker_denies_what_the_policy_does_not_allow(cloud, gateway, connect, epoch):
    ack = {
        "schema": "opendcu.ack/1",
        "dcu": "dcu-0001",
        "epoch": epoch,
        "acked": [[0, 9]],
        "rejected": [],
        "high": 9,
    }
    assert gateway.publish("down/acks", ack) == mqtt5.PubackReasonCode.NOT_AUTHORIZED
    assert (
        gateway.publish("reads/interval", b"{}", dcu="dcu-0002")
        == mqtt5.PubackReasonCode.NOT_AUTHORIZED
    )
    assert gateway.subscribe("dcu/dcu-0002/down/#") == mqtt5.SubackReasonCode.NOT_AUTHORIZED
    assert gateway.acked(epoch) == set()
    impostor = connect(cloud.uplink, client_id="dcu-0002")
    assert impostor.refused.connack_packet.reason_code == mqtt5.ConnectReasonCode.NOT_AUTHORIZED


def test_two_gateways_hear_their_own_acknowledgements(cloud, gateway, connect, epoch):
    other = connect(cloud.add_gateway("dcu-0007"), "dcu-0007")
    assert other.subscribe("dcu/dcu-0007/down/#") == 0
    other.publish("reads/interval", reads(epoch, 5, "SEVEN", [1], dcu="dcu-0007"))
    gateway.publish("reads/interval", reads(epoch, 6, "ONE", [1]))
    until(lambda: other.acked(epoch) == {5} and gateway.acked(epoch) == {6})


KILLED = """
import sys, threading
from awscrt import mqtt5
from awsiot import mqtt5_client_builder
port, cert, key, ca, payload = sys.argv[1:]
up = threading.Event()
client = mqtt5_client_builder.mtls_from_path(endpoint="localhost", port=int(port), cert_filepath=cert,
    pri_key_filepath=key, ca_filepath=ca, client_id="dcu-0001", on_lifecycle_connection_success=lambda _: up.set())
client.start()
up.wait(10)
packet = mqtt5.PublishPacket(topic="dcu/dcu-0001/reads/interval", payload=payload.encode(), qos=mqtt5.QoS.AT_LEAST_ONCE)
client.publish(packet).result(10)
print("sent", flush=True)
threading.Event().wait()
"""


def test_a_killed_gateway_is_heard_again_at_once(cloud, connect, epoch):
    uplink = cloud.uplink
    for n in (1, 2):
        payload = json.dumps(reads(epoch, n, "KILLED", [n], t0=1_764_000_000 + n * 900))
        port = uplink.url.split(":")[1]
        killed = subprocess.Popen(
            [
                sys.executable,
                "-c",
                KILLED,
                port,
                uplink.cert_file,
                uplink.key_file,
                uplink.ca_file,
                payload,
            ],
            stdout=subprocess.PIPE,
        )
        assert killed.stdout.readline() == b"sent\n"
        killed.kill()
        killed.wait()
        killed.stdout.close()
    again = connect(uplink)
    assert again.subscribe("dcu/dcu-0001/down/#") == 0
    assert (
        again.publish("reads/interval", reads(epoch, 3, "KILLED", [3], t0=1_764_000_000 + 2700))
        == 0
    )
    until(lambda: 3 in again.acked(epoch))
    until(lambda: values_of(cloud, "KILLED") == [1, 2, 3])


def test_the_api_answers_what_was_published(cloud, gateway, epoch):
    at = NOW // 900 * 900
    gateway.publish("reads/interval", reads(epoch, 1, "ASKED", [5, 6, 7], t0=at - 1800, read_at=at))
    gateway.publish("health", golden("health") | {"sent": at})
    until(lambda: gateway.acked(epoch) == {1})
    settled(cloud)
    assert call(cloud, "GET", "/meters/ASKED/reads", headers={})[0] == 403
    status, body = call(cloud, "GET", "/meters/ASKED/reads?register=1.0.1.29.0.255")
    assert status == 200
    assert [s["rows"] for s in body["series"]] == [
        [[at - 1800, 5, 0], [at - 900, 6, 0], [at, 7, 0]]
    ]
    assert call(cloud, "GET", "/meters/ASKED/latest")[1]["series"][0]["rows"] == [[at, 7, 0]]
    assert call(cloud, "GET", "/gateways/dcu-0001")[1]["health"]["sent"] == at


def test_an_on_demand_read_goes_down_and_its_answer_comes_back(cloud, gateway, epoch):
    gateway.publish("reads/interval", reads(epoch, 1, "DEMAND", [5]))
    until(lambda: gateway.acked(epoch) == {1})
    settled(cloud)
    status, body = call(cloud, "POST", "/meters/DEMAND/read", {"what": "instantaneous"})
    assert status == 202
    topic = f"dcu/dcu-0001/down/commands/{body['request']}"
    command = until(lambda: [d for t, d in gateway.heard if t == topic])[0]
    assert (command["do"], command["meter"], command["args"]["what"]) == (
        "read",
        "DEMAND",
        "instantaneous",
    )
    reply = golden("reply") | {
        "epoch": epoch,
        "n": 2,
        "sent": NOW,
        "kind": command["id"],
        "id": command["id"],
    }
    gateway.publish(f"replies/{command['id']}", reply)
    until(lambda: gateway.acked(epoch) == {1, 2})
    answer = until(
        lambda: [
            b for _, b in [call(cloud, "GET", f"/requests/{command['id']}")] if b["state"] != "sent"
        ]
    )
    assert answer[0]["state"] == "done"
    assert answer[0]["registers"] == reply["registers"]


def signing_request() -> tuple[bytes, bytes]:
    """A private key and its signing request, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dcu-0009")])
    request = builder.subject_name(name).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, request.public_bytes(pem)


def test_a_box_obtains_its_certificate_with_a_claim(cloud, connect):
    iot = cloud.client("iot")
    made = iot.create_keys_and_certificate(setAsActive=True)
    iot.attach_policy(policyName="opendcu-claim", target=made["certificateArn"])
    claim = cloud.write_credentials("claim", made)
    cloud.expect("dcu-0009")
    box = connect(claim, client_id="claim-dcu-0009")
    own = "$aws/certificates/create-from-csr/json"
    provision = "$aws/provisioning-templates/opendcu-fleet/provision/json"
    for topic in (own, provision):
        assert box.subscribe(f"{topic}/accepted") == 0
        assert box.subscribe(f"{topic}/rejected") == 0
    made_there = "$aws/certificates/create/json"
    assert box.subscribe(f"{made_there}/accepted") == mqtt5.SubackReasonCode.NOT_AUTHORIZED
    assert (
        box.publish("reads/interval", b"{}", dcu="dcu-0001")
        == mqtt5.PubackReasonCode.NOT_AUTHORIZED
    )

    private, request = signing_request()
    box.publish(own, {"certificateSigningRequest": request.decode()})
    issued = until(lambda: dict(box.heard).get(f"{own}/accepted"))
    box.publish(
        provision,
        {
            "certificateOwnershipToken": issued["certificateOwnershipToken"],
            "parameters": {"GatewayId": "dcu-0009"},
        },
    )
    assert until(lambda: dict(box.heard).get(f"{provision}/accepted"))["thingName"] == "dcu-0009"
    keys = {
        "certificatePem": issued["certificatePem"],
        "keyPair": {"PrivateKey": private.decode()},
    }
    gateway = connect(cloud.write_credentials("dcu-0009", keys), "dcu-0009")
    assert gateway.subscribe("dcu/dcu-0009/down/#") == 0
    gateway.publish("reads/interval", reads(9, 1, "NINE", [1], dcu="dcu-0009"))
    until(lambda: gateway.acked(9) == {1})


def test_everything_listens_on_loopback_only(cloud):
    ports = {cloud.ministack.port, cloud.ministack.mqtt_port}
    bound = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        address, port = line.split()[1].split(":")
        if line.split()[3] == "0A" and int(port, 16) in ports:
            bound.add(address)
    assert bound == {"0100007F"}
    assert not [
        line
        for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].split(":")[1], 16) in ports
    ]


def test_parquet_and_billing_files_are_made_from_the_lake(cloud, gateway, epoch):
    import hashlib

    import duckdb

    at = NOW // 900 * 900
    assert call(cloud, "PUT", "/meters/CURATED", {"multiplier": 40})[0] == 200
    message = reads(epoch, 1, "CURATED", [5, None, 7], t0=at - 1800, read_at=at)
    message["blocks"][0]["multiplier"] = 40
    gateway.publish("reads/interval", message)
    message = reads(epoch, 2, "CURATED", [55], t0=at - 1800, read_at=at + 60)
    message["blocks"][0]["multiplier"] = 39
    gateway.publish("reads/interval", message)
    daily = reads(epoch, 3, "CURATED", [], kind="midnight")
    daily["layouts"][0] |= {"profile": "1.0.99.2.0.255", "period": 86_400}
    del daily["blocks"][0]["t0"]
    daily["blocks"][0] |= {"t": [at], "rows": 1, "values": [[123_456]], "multiplier": 40}
    gateway.publish("reads/midnight", daily)
    until(lambda: gateway.acked(epoch) == {1, 2, 3})
    day = datetime.fromtimestamp(NOW, UTC).date().isoformat()
    reply = cloud.client("lambda").invoke(
        FunctionName=cloud.outputs["CurateName"], Payload=json.dumps({"days": [day]}).encode()
    )
    counts = json.loads(reply["Payload"].read())
    assert "FunctionError" not in reply, counts
    parquet = cloud.bucket / f"curated/kind=interval/day={day}/readings.parquet"
    with duckdb.connect() as db:
        names = [
            row[0]
            for row in db.execute(
                f"DESCRIBE SELECT * FROM read_parquet('{parquet}', hive_partitioning=false)"
            ).fetchall()
        ]
        assert db.execute(f"SELECT count(*) FROM '{parquet}'").fetchall() == [
            (counts[day]["interval"],)
        ]
        rows = db.execute(
            f"SELECT captured_at, value, scaled FROM '{parquet}' WHERE meter = 'CURATED' ORDER BY 1"
        ).fetchall()
    table = cloud.client("glue").get_table(DatabaseName="opendcu", Name="readings")["Table"]
    assert names == [column["Name"] for column in table["StorageDescriptor"]["Columns"]]
    # read later, under another multiplier than the master's: current, and nobody multiplies
    assert rows == [(at - 1800, 55, None), (at, 7, 280.0)]

    (file,) = cloud.bucket.glob(f"billing/BD_{day}_1_1.csv")
    lines = file.read_text().splitlines()
    assert lines[0].startswith("meter,device,captured_at")
    assert lines[-1] == f"#,{len(lines) - 2}"
    (mine,) = [line for line in lines if line.startswith("CURATED,")]
    assert mine.split(",")[5:8] == ["0", "123456", "4938240.0"]
    digest = file.with_name(file.name + ".sha256").read_text().split()[0]
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_lost_table_is_rebuilt_from_the_lake(cloud, gateway, epoch):
    gateway.publish("reads/interval", reads(epoch, 1, "REBUILT", [1, 2, 3]))
    gateway.publish("reads/interval", reads(epoch, 2, "REBUILT", [1, 9, 3], read_at=1_764_010_000))
    until(lambda: gateway.acked(epoch) == {1, 2})
    settled(cloud)
    dynamodb, table = cloud.client("dynamodb"), cloud.outputs["TableName"]
    mine = {":p": {"S": "M#REBUILT"}}
    keys = [
        {"pk": item["pk"], "sk": item["sk"]}
        for item in dynamodb.query(
            TableName=table, KeyConditionExpression="pk=:p", ExpressionAttributeValues=mine
        )["Items"]
    ]
    assert keys
    for key in keys:
        dynamodb.delete_item(TableName=table, Key=key)
    assert cloud.check_dynamodb()["missing"] >= 3
    day = datetime.fromtimestamp(NOW, UTC).date().isoformat()
    run = subprocess.run(
        [*COMMAND, "rebuild", "--day", day, "--endpoint", cloud.ministack.endpoint, "--json"],
        capture_output=True,
        check=True,
        env=environment(),
    )
    assert json.loads(run.stdout)["messages"]["interval"] >= 2
    assert cloud.check_dynamodb() == {"missing": 0, "foreign": 0, "different": 0}


def test_the_lake_answers_questions(cloud, gateway, epoch):
    gateway.publish("reads/interval", reads(epoch, 1, "QUERY", [1, 2, 3]))
    gateway.publish("reads/interval", reads(epoch, 2, "QUERY", [4], read_at=1_764_010_000))
    until(lambda: gateway.acked(epoch) == {1, 2})
    sql = "SELECT count(*) AS n, sum(value)::INT AS total FROM {} WHERE meter = 'QUERY'"
    for view, n, total in (("readings", 3, 9), ("arrived", 4, 10)):
        run = subprocess.run(
            [*COMMAND, "query", "--lake", cloud.bucket, sql.format(view), "--json"],
            capture_output=True,
            check=True,
            env=environment(),
        )
        assert json.loads(run.stdout) == [{"n": n, "total": total}]
    wrong = subprocess.run(
        [*COMMAND, "query", "--lake", cloud.bucket, "SELECT nothing"],
        capture_output=True,
        check=False,
        env=environment(),
    )
    assert wrong.returncode == 1
    assert b"nothing" in wrong.stderr


# --- the command

COMMAND = (sys.executable, "-m", "edge_core.cli.main", "cloud")


def environment():
    return {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}


def test_the_command_prints_where_everything_is_and_ends_on_sigterm(tmp_path):
    command = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "edge_core.cli.main",
            "cloud",
            "local",
            "--json",
            "--dir",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        env=environment(),
    )
    where = json.loads(command.stdout.readline())
    assert where["uplink"]["kind"] == "aws"
    assert all(Path(where["uplink"][f"{name}_file"]).is_file() for name in ("ca", "cert", "key"))
    assert Path(where["uplink"]["key_file"]).stat().st_mode & 0o077 == 0
    with urllib.request.urlopen(f"{where['endpoint']}/_ministack/health", timeout=5) as reply:
        assert reply.status == 200
    command.send_signal(signal.SIGTERM)
    assert command.wait(10) == 0
    command.stdout.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{where['endpoint']}/_ministack/health", timeout=5)


def test_nothing_survives_a_killed_command(tmp_path):
    command = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "edge_core.cli.main",
            "cloud",
            "local",
            "--json",
            "--dir",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        env=environment(),
    )
    where = json.loads(command.stdout.readline())
    command.kill()
    command.wait()
    command.stdout.close()

    def silent():
        try:
            with urllib.request.urlopen(f"{where['endpoint']}/_ministack/health", timeout=5):
                return False
        except OSError:
            return True

    until(silent)


def test_the_template_is_printed_as_it_is():
    printed = subprocess.run(
        [*COMMAND, "template"],
        capture_output=True,
        check=True,
    ).stdout
    assert printed == (Path(__file__).parents[2] / "cloud" / "template.yaml").read_bytes()
    assert re.search(rb"^Transform: AWS::Serverless", printed, re.M)
