"""Work on a lake by hand: rebuild the table from it, ask it questions with DuckDB.

Both run the functions' own code here, so that what is rebuilt or answered is what the cloud would have made.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulators.cloud.assets import CloudError, cloud_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("interval", "midnight", "billing", "instantaneous", "outage", "voltage", "tamper", "meter", "gateway",
         "events", "anomalies", "completeness", "replies")  # fmt: skip
BATCH = 50


def function_module(name: str) -> Any:
    """A module of cloud/functions, which is no installed package."""
    folder = str(cloud_folder() / "functions")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def rebuild(session: Any, stack: str, day: str, endpoint: str | None = None) -> dict[str, int]:
    """Bring every stored message of one day (UTC, when it was sent) into the table again.

    Args:
        session: a boto3 session.
        endpoint: of a local cloud; None = AWS.

    Returns:
        Messages by kind. What is in the table already does not change.

    Raises:
        CloudError: no such stack.
    """
    ingest, stores = function_module("ingest.app"), function_module("ingest.stores")
    keys, envelope = (
        function_module("opendcu_cloud.keys"),
        function_module("opendcu_cloud.envelope"),
    )

    def client(service: str) -> Any:
        return session.client(service, endpoint_url=endpoint)

    try:
        found = client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]
    except client("cloudformation").exceptions.ClientError as error:
        raise CloudError(f"stack {stack}: {error}") from None
    outputs = {o["OutputKey"]: o["OutputValue"] for o in found["Outputs"]}
    parameters = {p["ParameterKey"]: p["ParameterValue"] for p in found["Parameters"]}
    prefix, bucket, s3 = parameters["TopicPrefix"], outputs["LakeBucket"], client("s3")
    work = ingest.Ingest(
        stores.Lake(s3, bucket),
        stores.Table(client("dynamodb"), outputs["TableName"]),
        stores.Downlink(client("iot-data"), client("sqs"), prefix, outputs["MaintenanceQueueUrl"]),
        prefix=prefix,
        interval_days=int(parameters["IntervalRetentionDays"]),
        long_days=int(parameters["LongRetentionDays"]),
    )

    def messages(kind: str) -> Iterator[Any]:
        pages = s3.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=f"{kind}/day={day}/"
        )
        for page in pages:
            for entry in page.get("Contents", []):
                payload = s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
                yield envelope.open_message(
                    keys.topic_of(entry["Key"], payload, prefix), payload, prefix
                )

    counts = {}
    for kind in KINDS:
        batch: list[Any] = []
        number = 0
        for message in messages(kind):
            batch.append(message)
            number += 1
            if len(batch) == BATCH:
                work.project(batch)
                batch = []
        work.project(batch)
        if number:
            counts[kind] = number
    return counts


def ask(bucket: Path, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Answer a DuckDB statement over a lake's folder; names of the columns, and the rows.

    The views are `readings` (current ones, one row each, all kinds) and `arrived` (every one that was sent).

    Raises:
        CloudError: DuckDB is not installed, or it does not take the statement.
    """
    try:
        duckdb = importlib.import_module("duckdb")
    except ImportError:
        raise CloudError(
            "questions to the lake need DuckDB: pip install 'opendcu[cloud]'"
        ) from None
    flat, curate = function_module("opendcu_cloud.flat"), function_module("curate.tables")
    envelope, keys = (
        function_module("opendcu_cloud.envelope"),
        function_module("opendcu_cloud.keys"),
    )
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as db:
        arrived = Path(folder, "arrived.json")
        with arrived.open("wb") as out:
            for kind in envelope.READS:
                for path in sorted(bucket.glob(f"{kind}/day=*/dcu=*/*.json")):
                    if not path.name.endswith(".meta.json"):
                        payload = path.read_bytes()
                        topic = keys.topic_of(path.relative_to(bucket).as_posix(), payload)
                        out.writelines(
                            flat.lines(flat.flat_rows(envelope.open_message(topic, payload), {}))
                        )
        curate.load(db, arrived)
        db.execute(f"CREATE VIEW readings AS {flat.CURRENT}")
        try:
            answer = db.execute(sql)
            return [column[0] for column in answer.description or ()], answer.fetchall()
        except duckdb.Error as error:
            raise CloudError(str(error)) from None
