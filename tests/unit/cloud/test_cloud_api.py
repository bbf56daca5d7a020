"""The REST API on moto, called as API Gateway calls it."""

import importlib
import json

import pytest

boto3 = pytest.importorskip("boto3")
from moto import mock_aws  # noqa: E402

DAY0 = 1_763_942_400  # 2025-11-24T00:00:00Z


class Context:
    function_name = "api"
    memory_limit_in_mb = 512
    invoked_function_arn = "arn:aws:lambda:us-east-1:000000000000:function:api"
    aws_request_id = "1"


class Ear:
    def __init__(self):
        self.heard = []

    def publish(self, topic, qos, payload):
        self.heard.append((topic, json.loads(payload)))


@pytest.fixture
def api(monkeypatch, envelope):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("TABLE", "table")
    monkeypatch.setenv("TOPIC_PREFIX", "dcu")
    with mock_aws():
        sqs = boto3.client("sqs")
        monkeypatch.setenv("COMMAND_QUEUE", sqs.create_queue(QueueName="commands")["QueueUrl"])
        dynamodb = boto3.client("dynamodb")
        dynamodb.create_table(
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
        import api.app
        from api.store import Courier
        from ingest.stores import Table
        from opendcu_cloud import notices, rows
        from opendcu_cloud.envelope import open_message

        app = importlib.reload(api.app)  # its clients belong to this test's AWS
        ear = Ear()
        monkeypatch.setattr(
            app,
            "courier",
            lambda: Courier(app.store, ear, sqs, "dcu", app.os.environ["COMMAND_QUEUE"]),
        )
        monkeypatch.setattr(app, "now", lambda: World.at)

        class World:
            at = 1_764_003_600
            heard = ear.heard
            courier = staticmethod(app.courier)

            @staticmethod
            def call(method, path, query=None, body=None):
                event = {
                    "httpMethod": method, "path": path, "resource": path, "queryStringParameters": query,
                    "multiValueQueryStringParameters": None, "headers": {}, "multiValueHeaders": {},
                    "body": body if body is None else json.dumps(body), "isBase64Encoded": False,
                    "requestContext": {"stage": "v1", "requestId": "1", "identity": {}}, "pathParameters": None,
                }  # fmt: skip
                reply = app.handler(event, Context())
                return reply["statusCode"], json.loads(reply["body"])

            @staticmethod
            def store(document):
                table = Table(dynamodb, "table")
                message = open_message(
                    f"dcu/dcu-0001/reads/{document['kind']}", json.dumps(document).encode()
                )
                table.add(rows.merge(rows.hour_items(message, 45, 400)))
                table.write(
                    notices.served_by(f"M#{b.meter}", message.dcu, 1 << 33) for b in message.blocks
                )

        World.store(envelope)
        yield World


def test_reads_of_a_span(api):
    status, body = api.call(
        "GET", "/meters/GP1000001/reads", {"from": "1764000000", "to": "1764000900"}
    )
    assert status == 200
    assert [(s["obis"], s["unit"], s["scaler"], s["rows"]) for s in body["series"]] == [
        ("1.0.1.29.0.255", "Wh", 0, [[1764000000, 2, 0], [1764000900, 3, 0]]),
        ("1.0.12.27.0.255", "V", -1, [[1764000900, 2303, 0]]),
    ]


def test_one_register_and_times_with_a_zone(api):
    status, body = api.call(
        "GET",
        "/meters/GP1000001/reads",
        {"from": "2025-11-24T21:30:00+05:30", "register": "1.0.1.29.0.255"},
    )
    assert status == 200
    assert body["from"] == 1_764_000_000
    assert [len(s["rows"]) for s in body["series"]] == [3]


@pytest.mark.parametrize(
    "query",
    [
        {"from": "yesterday"},
        {"from": "2025-11-24T21:30:00"},
        {"from": "1764000000", "to": "1763000000"},
        {"from": "0", "to": "1764000000"},
        {"kind": "hourly"},
    ],
)
def test_questions_that_cannot_be_answered(api, query):
    status, body = api.call("GET", "/meters/GP1000001/reads", query)
    assert status == 400
    assert body["message"]


def test_what_has_outlived_its_time_is_not_there(api):
    api.at = 1_764_000_000 + 46 * 86_400
    status, body = api.call(
        "GET", "/meters/GP1000001/reads", {"from": "1763999000", "to": "1764003600"}
    )
    assert (status, body["series"]) == (200, [])


def test_latest(api, envelope):
    status, body = api.call("GET", "/meters/GP1000001/latest")
    assert status == 200
    assert [s["rows"] for s in body["series"]] == [[[1764001800, 4, 0]], [[1764001800, 2304, 0]]]
    assert api.call("GET", "/meters/other/latest")[0] == 404


def test_only_the_master_scales(api, envelope):
    assert not api.call("GET", "/meters/GP1000001/latest")[1]["series"][0]["scaled"]
    assert api.call("PUT", "/meters/GP1000001", body={"multiplier": 40})[0] == 200
    assert not api.call("GET", "/meters/GP1000001/latest")[1]["series"][0]["scaled"]
    assert api.call("PUT", "/meters/GP1000001", body={"multiplier": 1})[0] == 200
    assert api.call("GET", "/meters/GP1000001/latest")[1]["series"][0]["scaled"]
    assert api.call("PUT", "/meters/GP1000001", body={"multiplier": 0.5})[0] == 400


def test_an_on_demand_read_goes_to_the_gateway_that_serves_the_meter(api):
    status, body = api.call("POST", "/meters/GP1000001/read", body={"what": "instantaneous"})
    assert status == 202
    ((topic, command),) = api.heard
    assert topic == f"dcu/dcu-0001/down/commands/{body['request']}"
    assert (command["do"], command["meter"], command["args"]) == (
        "read",
        "GP1000001",
        {"what": "instantaneous"},
    )
    assert command["expires"] > api.at
    assert api.call("GET", f"/requests/{body['request']}")[1]["state"] == "sent"
    api.at = command["expires"]
    assert api.call("GET", f"/requests/{body['request']}")[1]["state"] == "expired"


def test_a_command_is_repeated_until_it_is_answered(api):
    request = api.call("POST", "/meters/GP1000001/read", body={})[1]["request"]
    courier = api.courier()
    assert courier.repeat(request, api.at + 30)
    assert api.heard[0] == api.heard[1]
    assert not courier.repeat(request, api.at + 3600)
    courier._store.put(f"R#{request}", "R", 1 << 33, doc='{"state":"accepted"}')
    assert not courier.repeat(request, api.at + 60)
    assert api.call("GET", f"/requests/{request}")[1]["state"] == "accepted"


def test_no_gateway_no_read(api):
    assert api.call("POST", "/meters/nobody/read", body={})[0] == 404
    assert api.call("POST", "/meters/GP1000001/read", body={"what": "everything"})[0] == 400
    assert api.call("GET", "/requests/none")[0] == 404
    assert api.call("GET", "/gateways/dcu-0001")[0] == 404
