"""The local cloud as one object: start, credentials for a gateway, counting, stop.

Everything that AWS would do is done by MiniStack from cloud/template.yaml with `Local=true`; here are only the steps
that a person does once: deploy the stack, make a thing with a certificate, look into the queues and the lake.
"""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from simulators.cloud import lake
from simulators.cloud.assets import CloudError, functions_zip, template_text
from simulators.cloud.ministack import REGION, MiniStack
from simulators.cloud.work import function_module

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

STACK = "opendcu"
ARTEFACTS = "opendcu-artefacts"
CLAIM_POLICY = "opendcu-claim"
DEPLOY_S = 30.0
_UPLOADED = re.compile(r"\b(CodeUri|ContentUri): \S+")  # what `sam package` does
ALARM_QUEUES = ("Outage", "Voltage", "Tamper", "Maintenance")


@dataclass(frozen=True, slots=True)
class Uplink:
    """What `[uplink]` of a gateway needs to reach this cloud."""

    url: str
    ca_file: str
    cert_file: str
    key_file: str

    def toml(self) -> str:
        """The table, ready to paste."""
        return (
            "[uplink]\n"
            'kind = "aws"\n'
            f"url = {json.dumps(self.url)}\n"
            f"ca_file = {json.dumps(self.ca_file)}\n"
            f"cert_file = {json.dumps(self.cert_file)}\n"
            f"key_file = {json.dumps(self.key_file)}\n"
        )


class LocalCloud:
    """The head end in a folder.

    Args:
        folder: certificates, objects and logs; made if it is not there.
        dcu: id of the gateway that gets the first certificate.
        prefix: first level of the topics.
        certificate_life_s: of certificates that gateways ask for; 0 = as AWS, to the end of 2049.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dcu: str = "dcu-0001",
        prefix: str = "dcu",
        certificate_life_s: float = 0,
    ) -> None:
        self.folder = folder.resolve()
        self.dcu, self.prefix = dcu, prefix
        self.ministack = MiniStack(self.folder, certificate_life_s=certificate_life_s)
        self.outputs: dict[str, str] = {}
        self.uplink: Uplink | None = None
        self._alarms: dict[str, dict[str, Any]] = {}
        self._session: Any = None

    def start(self) -> Self:
        """Start MiniStack, deploy the template, make the first gateway's certificate.

        Raises:
            CloudError: MiniStack is not installed or does not start, or the stack is not created.
        """
        self._session = session(local=True)
        self.ministack.start()
        try:
            self._deploy()
            self.uplink = self.add_gateway(self.dcu)
        except BaseException:
            self.stop()
            raise
        # A first empty batch makes the function import what it needs, while the caller does something else.
        threading.Thread(target=self._warm_up, name="cloud-warm-up", daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop everything; the folder stays."""
        self.ministack.stop()

    def client(self, service: str) -> Any:
        """A boto3 client for one service of this cloud."""
        return self._session.client(service, endpoint_url=self.ministack.endpoint)

    @property
    def api(self) -> str:
        """Base address of the REST API."""
        return f"{self.ministack.endpoint}/_aws/execute-api/{self.outputs['ApiId']}/v1"

    @property
    def bucket(self) -> Path:
        """Folder of the lake's objects."""
        return self.ministack.objects / self.outputs["LakeBucket"]

    def add_gateway(self, dcu: str) -> Uplink:
        """A thing, its certificate and the policy of all gateways."""
        iot = self.client("iot")
        made = iot.create_keys_and_certificate(setAsActive=True)
        iot.create_thing(thingName=dcu)
        iot.attach_policy(
            policyName=self.outputs["GatewayPolicyName"], target=made["certificateArn"]
        )
        iot.attach_thing_principal(thingName=dcu, principal=made["certificateArn"])
        return self.write_credentials(dcu, made)

    def make_claim(self, name: str = "claim") -> Uplink:
        """A claim certificate, as the factory puts one into every box of a batch."""
        iot = self.client("iot")
        made = iot.create_keys_and_certificate(setAsActive=True)
        iot.attach_policy(policyName=CLAIM_POLICY, target=made["certificateArn"])
        return self.write_credentials(name, made)

    def expect(self, dcu: str) -> None:
        """Make the thing of a gateway that will claim its certificate."""
        self.client("iot").create_thing(thingName=dcu)

    def write_credentials(self, name: str, made: dict[str, Any]) -> Uplink:
        """`ca.pem`, `<name>.crt` and `<name>.key` from an answer of CreateKeysAndCertificate, mode 0600."""
        files = {
            "ca.pem": self.ministack.ca(),
            f"{name}.crt": made["certificatePem"].encode(),
            f"{name}.key": made["keyPair"]["PrivateKey"].encode(),
        }
        for file, octets in files.items():
            path = self.folder / file
            path.touch(mode=0o600)
            path.write_bytes(octets)
        ca, certificate, key = (str(self.folder / file) for file in files)
        return Uplink(f"localhost:{self.ministack.mqtt_port}", ca, certificate, key)

    def _deploy(self) -> None:
        s3, cloudformation = self.client("s3"), self.client("cloudformation")
        s3.create_bucket(Bucket=ARTEFACTS)
        s3.put_object(Bucket=ARTEFACTS, Key="functions.zip", Body=functions_zip())
        cloudformation.create_stack(
            StackName=STACK,
            TemplateBody=_UPLOADED.sub(rf"\1: s3://{ARTEFACTS}/functions.zip", template_text()),
            Parameters=[
                {"ParameterKey": "Local", "ParameterValue": "true"},
                {"ParameterKey": "TopicPrefix", "ParameterValue": self.prefix},
            ],
            Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"],
        )
        deadline = time.monotonic() + DEPLOY_S
        while True:
            stack = cloudformation.describe_stacks(StackName=STACK)["Stacks"][0]
            if stack["StackStatus"] == "CREATE_COMPLETE":
                break
            if stack["StackStatus"] != "CREATE_IN_PROGRESS" or time.monotonic() > deadline:
                events = cloudformation.describe_stack_events(StackName=STACK)["StackEvents"]
                failed = [e for e in events if "FAILED" in e["ResourceStatus"]]
                why = "; ".join(
                    f"{e['LogicalResourceId']}: {e.get('ResourceStatusReason', '')}" for e in failed
                )
                raise CloudError(
                    f"the stack is {stack['StackStatus']}: {why or stack.get('StackStatusReason', '')}"
                )
            time.sleep(0.05)
        self.outputs = {o["OutputKey"]: o["OutputValue"] for o in stack.get("Outputs", [])}

    def _warm_up(self) -> None:
        try:
            self.client("lambda").invoke(
                FunctionName=self.outputs["IngestName"], Payload=b'{"Records": []}'
            )
        except Exception:  # noqa: BLE001 only a head start: what is wrong shows with the first message
            return

    def stored_readings(self, kind: str = "interval") -> lake.Stored:
        """What the lake holds of one kind of reads."""
        return lake.stored(self.bucket, kind)

    def waiting(self) -> int:
        """Messages that are published and not yet worked on."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        reply = self.client("sqs").get_queue_attributes(
            QueueUrl=self.outputs["IngestQueueUrl"], AttributeNames=names
        )
        return sum(int(reply["Attributes"].get(name, 0)) for name in names)

    def queued_alarms(self) -> dict[str, dict[str, Any]]:
        """Every alarm that reached a consumer's queue so far, by its id.

        Acts as the consumers do: takes the messages out, de-duplicates by id.
        """
        sqs = self.client("sqs")
        for name in ALARM_QUEUES:
            url = self.outputs[f"{name}QueueUrl"]
            while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get(
                "Messages"
            ):
                for message in messages:
                    for alarm in alarms_of(json.loads(message["Body"])):
                        self._alarms.setdefault(alarm["id"], alarm)
                entries = [
                    {"Id": str(i), "ReceiptHandle": m["ReceiptHandle"]}
                    for i, m in enumerate(messages)
                ]
                sqs.delete_message_batch(QueueUrl=url, Entries=entries)
        return dict(self._alarms)

    def projected_readings(self, kind: str = "interval") -> dict[lake.Identity, lake.Value]:
        """What the table says, read as the API reads it."""
        rows = function_module("opendcu_cloud.rows")
        out: dict[lake.Identity, lake.Value] = {}
        pages = (
            self.client("dynamodb")
            .get_paginator("scan")
            .paginate(TableName=self.outputs["TableName"])
        )
        for page in pages:
            for item in page["Items"]:
                of_kind, _, rest = item["sk"]["S"].partition("#")
                if of_kind != kind or not item["pk"]["S"].startswith("M#"):
                    continue
                meter, profile = item["pk"]["S"][2:], rest.partition("#")[2]
                texts = {name: value["S"] for name, value in item.items() if "S" in value}
                for identity, reading in rows.readings(texts).items():
                    key = lake.Identity(
                        meter, identity.device, profile, identity.at, identity.occurrence, identity.obis,
                        identity.attribute,
                    )  # fmt: skip
                    out[key] = lake.Value(*reading.says)
        return out

    def check_dynamodb(
        self, kind: str = "interval", stored: lake.Stored | None = None
    ) -> dict[str, int]:
        """The table against the lake: `{"missing", "foreign", "different"}`, all 0 when they agree."""
        truth = (stored or self.stored_readings(kind)).readings
        table = self.projected_readings(kind)
        return {
            "missing": len(truth.keys() - table.keys()),
            "foreign": len(table.keys() - truth.keys()),
            "different": sum(1 for k, v in table.items() if k in truth and truth[k] != v),
        }

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def session(*, local: bool) -> Any:
    """A boto3 session: for a local cloud, or with what the environment has for AWS.

    Raises:
        CloudError: boto3 is not installed.
    """
    try:
        import boto3
    except ImportError:
        raise CloudError("the cloud needs boto3: pip install 'opendcu[cloud]'") from None
    if not local:
        return boto3.session.Session()
    return boto3.session.Session(
        aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION
    )


def alarms_of(envelope: dict[str, Any]) -> list[dict[str, Any]]:
    """The alarms of an envelope, compact columns spread out."""
    alarms = envelope["alarms"]
    if isinstance(alarms, list):
        return alarms
    columns = zip(alarms["ids"], alarms["meters"], alarms["at"], strict=True)
    return [
        {"id": i, "meter": m, "at": at, "code": alarms["code"], "class": envelope["kind"]}
        for i, m, at in columns
    ]
