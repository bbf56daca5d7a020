"""cloud/template.yaml: what its rules may say, what a gateway may do, and that nothing goes nowhere."""

import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest

CLOUD = Path(__file__).resolve().parents[2] / "cloud"
PREFIX = "dcu"


class Tag:
    """A CloudFormation function in YAML's short form."""

    def __init__(self, name, value):
        self.name, self.value = name, value


def load(path):
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def tagged(loader, suffix, node):
        make = {
            yaml.ScalarNode: loader.construct_scalar,
            yaml.SequenceNode: lambda n: loader.construct_sequence(n, deep=True),
            yaml.MappingNode: lambda n: loader.construct_mapping(n, deep=True),
        }[type(node)]
        return Tag(suffix, make(node))

    Loader.add_multi_constructor("!", tagged)
    return yaml.load(path.read_text(), Loader)


@pytest.fixture(scope="module")
def template():
    return load(CLOUD / "template.yaml")


def of_type(template, kind):
    return {name: r["Properties"] for name, r in template["Resources"].items() if r["Type"] == kind}


def text(value):
    """A text with its parameters filled in."""
    if isinstance(value, Tag):
        assert value.name == "Sub", value.name
        value = value.value
    for name, filled in (
        ("TopicPrefix", PREFIX),
        ("AWS::Partition", "aws"),
        ("AWS::Region", "r"),
        ("AWS::AccountId", "1"),
    ):
        value = value.replace("${" + name + "}", filled)
    return re.sub(r"\$\{!([^}]*)\}", r"${\1}", value)


def rules(template):
    return {
        p["RuleName"]: p["TopicRulePayload"]
        for p in of_type(template, "AWS::IoT::TopicRule").values()
    }


# --- the subset of IoT SQL that emulators and AWS agree on: facts/cloud.md section 2

ITEM = r"(\*|(encode\(\*, 'base64'\)|topic\(\d?\)|timestamp\(\)|clientid\(\)|newuuid\(\)|[a-z_]+(\.[a-z_]+)*) AS _?[a-z]+)"
STATEMENT = re.compile(rf"SELECT (?P<items>{ITEM}(, {ITEM})*) FROM '(?P<filter>[^'#]+)'")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM 'dcu/+/reads/+' WHERE kind = 'interval'",
        "SELECT VALUE alarms FROM 'dcu/+/alarms/+'",
        "SELECT CASE a WHEN 1 THEN 2 END AS b FROM 'dcu/+/events'",
        "SELECT get(alarms, 0) AS a FROM 'dcu/+/events'",
        "SELECT *, cast(a AS Int) AS b FROM 'dcu/+/events'",
        "SELECT a.b FROM 'dcu/+/events'",
        "SELECT * FROM 'dcu/#'",
    ],
)
def test_the_subset_leaves_out_what_emulators_and_aws_see_differently(sql):
    assert not STATEMENT.fullmatch(sql)


def test_rules_keep_to_the_subset_and_route_by_topic_only(template):
    assert len(rules(template)) == 12
    for name, payload in rules(template).items():
        sql = text(payload["Sql"])
        assert STATEMENT.fullmatch(sql), f"{name}: {sql}"
        assert payload["AwsIotSqlVersion"] == "2016-03-23", name


def test_the_octets_of_every_ingested_message_are_kept_as_they_are(template):
    for name, payload in rules(template).items():
        sql = text(payload["Sql"])
        whole = sql.startswith("SELECT * FROM") or "encode(*, 'base64') AS raw" in sql
        assert whole, f"{name}: {sql}"


def test_every_rule_has_an_error_action_and_only_sqs_actions(template):
    for name, payload in rules(template).items():
        assert set(payload["ErrorAction"]) == {"Sqs"}, name
        assert payload["Actions"], name
        assert all(set(action) == {"Sqs"} for action in payload["Actions"]), name


UPWARD = {
    "reads/interval", "reads/midnight", "reads/billing", "reads/instantaneous", "alarms/outage", "alarms/voltage",
    "alarms/tamper", "alarms/meter", "alarms/gateway", "events", "anomalies", "health", "completeness", "replies/c1",
}  # fmt: skip
DOWNWARD = {"down/acks", "down/commands/c1"}


def matches(topic_filter, topic):
    levels, of_filter = topic.split("/"), topic_filter.split("/")
    return len(levels) == len(of_filter) and all(
        f in ("+", t) for f, t in zip(of_filter, levels, strict=True)
    )


def queues_of(template, topic):
    found = []
    for payload in rules(template).values():
        if matches(STATEMENT.fullmatch(text(payload["Sql"]))["filter"], topic):
            found += [action["Sqs"]["QueueUrl"].value for action in payload["Actions"]]
    return sorted(found)


@pytest.mark.parametrize("rest", sorted(UPWARD))
def test_everything_upward_reaches_the_ingest_queue_once_and_alarms_their_consumer(template, rest):
    consumers = {"outage": "OutageQueue", "voltage": "VoltageQueue", "tamper": "TamperQueue"}
    expected = ["IngestQueue"]
    if rest.startswith("alarms/"):
        expected.append(consumers.get(rest.split("/")[1], "MaintenanceQueue"))
    assert queues_of(template, f"{PREFIX}/dcu-0001/{rest}") == sorted(expected)


@pytest.mark.parametrize("rest", sorted(DOWNWARD))
def test_nothing_downward_comes_back(template, rest):
    assert queues_of(template, f"{PREFIX}/dcu-0001/{rest}") == []


def test_queues_with_a_consumer_have_dead_letters(template):
    queues = of_type(template, "AWS::SQS::Queue")
    ends = {"IngestDeadLetters", "AlarmDeadLetters", "RuleErrors"}
    for name, properties in queues.items():
        assert ("RedrivePolicy" in properties) == (name not in ends), name


def test_basic_ingest_names_the_rule_of_reads(template):
    assert "opendcu_reads" in rules(template)


# --- what a gateway may do


def allowed(template, policy, action, resource, thing="dcu-0001"):
    """Does a policy document allow `action` on `resource` for the certificate of `thing`?"""
    document = of_type(template, "AWS::IoT::Policy")[policy]["PolicyDocument"]
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow"
        actions = (
            statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        )
        resources = (
            statement["Resource"]
            if isinstance(statement["Resource"], list)
            else [statement["Resource"]]
        )
        for pattern in resources:
            pattern = text(pattern).replace("${iot:Connection.Thing.ThingName}", thing)
            assert "${" not in pattern
            if action in actions and fnmatch.fnmatchcase(f"arn:aws:iot:r:1:{resource}", pattern):
                return True
    return False


@pytest.mark.parametrize("rest", sorted(UPWARD))
def test_a_gateway_publishes_its_own_topics(template, rest):
    assert allowed(template, "GatewayPolicy", "iot:Publish", f"topic/{PREFIX}/dcu-0001/{rest}")
    assert not allowed(template, "GatewayPolicy", "iot:Publish", f"topic/{PREFIX}/dcu-0002/{rest}")


@pytest.mark.parametrize("rest", sorted(DOWNWARD))
def test_a_gateway_never_publishes_below_down(template, rest):
    assert not allowed(template, "GatewayPolicy", "iot:Publish", f"topic/{PREFIX}/dcu-0001/{rest}")
    assert not allowed(
        template,
        "GatewayPolicy",
        "iot:Publish",
        f"topic/$aws/rules/opendcu_reads/{PREFIX}/dcu-0001/{rest}",
    )


def test_a_gateway_hears_its_own_orders_only(template):
    for action, what in (("iot:Subscribe", "topicfilter"), ("iot:Receive", "topic")):
        assert allowed(template, "GatewayPolicy", action, f"{what}/{PREFIX}/dcu-0001/down/#")
        assert not allowed(template, "GatewayPolicy", action, f"{what}/{PREFIX}/dcu-0002/down/#")
        assert not allowed(template, "GatewayPolicy", action, f"{what}/{PREFIX}/#")


def test_basic_ingest_is_for_reads_only(template):
    topic = f"topic/$aws/rules/opendcu_reads/{PREFIX}/dcu-0001"
    assert allowed(template, "GatewayPolicy", "iot:Publish", f"{topic}/reads/interval")
    assert not allowed(template, "GatewayPolicy", "iot:Publish", f"{topic}/alarms/outage")


def test_a_gateway_connects_under_its_own_name(template):
    assert allowed(template, "GatewayPolicy", "iot:Connect", "client/dcu-0001")
    assert not allowed(template, "GatewayPolicy", "iot:Connect", "client/dcu-0002")


@pytest.mark.parametrize(
    "rest",
    ["jobs/$next/get", "jobs/1/update", "shadow/name/opendcu/update", "defender/metrics/json"],
)
def test_a_gateway_has_its_own_jobs_shadow_and_metrics(template, rest):
    assert allowed(template, "GatewayPolicy", "iot:Publish", f"topic/$aws/things/dcu-0001/{rest}")
    assert not allowed(
        template, "GatewayPolicy", "iot:Publish", f"topic/$aws/things/dcu-0002/{rest}"
    )
    other = "topic/$aws/things/dcu-0001/shadow/update"
    assert not allowed(template, "GatewayPolicy", "iot:Publish", other)


def test_a_gateway_renews_and_claims_nothing(template):
    base = "topic/$aws/provisioning-templates"
    assert allowed(
        template, "GatewayPolicy", "iot:Publish", f"{base}/opendcu-renewal/provision/json"
    )
    assert not allowed(
        template, "GatewayPolicy", "iot:Publish", f"{base}/opendcu-fleet/provision/json"
    )


def test_both_templates_ask_who_may(template):
    for found in of_type(template, "AWS::IoT::ProvisioningTemplate").values():
        asked = found["PreProvisioningHook"]["TargetArn"]
        assert (asked.name, asked.value) == ("GetAtt", "ProvisioningHook.Arn")


def test_a_claim_obtains_a_certificate_and_nothing_else(template):
    assert allowed(
        template,
        "ClaimPolicy",
        "iot:Publish",
        "topic/$aws/provisioning-templates/opendcu-fleet/provision/json",
    )
    signing = "topic/$aws/certificates/create-from-csr/json"
    assert allowed(template, "ClaimPolicy", "iot:Publish", signing)
    assert not allowed(  # AWS would make the key and send it
        template, "ClaimPolicy", "iot:Publish", "topic/$aws/certificates/create/json"
    )
    assert not allowed(
        template,
        "ClaimPolicy",
        "iot:Publish",
        "topic/$aws/provisioning-templates/opendcu-renewal/provision/json",
    )
    for rest in UPWARD | DOWNWARD:
        assert not allowed(
            template, "ClaimPolicy", "iot:Publish", f"topic/{PREFIX}/dcu-0001/{rest}"
        )


def test_only_what_ministack_refuses_is_left_out_locally(template):
    conditional = {
        r["Type"] for r in template["Resources"].values() if r.get("Condition") == "OnAws"
    }
    assert conditional <= {
        "AWS::IAM::Role", "AWS::IoT::RoleAlias", "AWS::S3::Bucket", "AWS::Transfer::Server", "AWS::Transfer::User",
        "AWS::Athena::NamedQuery", "AWS::Serverless::LayerVersion",
    }  # fmt: skip


@pytest.mark.timeout(180)  # it reads the specification of every resource type of AWS
@pytest.mark.parametrize("name", ["template.yaml", "defender.yaml"])
def test_cfn_lint_finds_nothing(name):
    lint = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), CLOUD / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert lint.returncode == 0, lint.stdout + lint.stderr
