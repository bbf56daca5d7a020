"""The three places that the ingest function writes to: lake (S3), table (DynamoDB), the gateways and queues.

Each method does one thing in as few calls as AWS allows and raises botocore's errors: what they mean is decided in
`app`, which knows the order of things.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError
from opendcu_cloud import notices, rows
from opendcu_cloud.keys import beside_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from opendcu_cloud.rows import Conflict, HourItem

THREADS = 8
TRANSACTION = 100  # items that DynamoDB takes in one
NUMBERS = "N"  # sort key prefix of the highest number of an epoch


class Lake:
    """Raw envelopes, each written once."""

    def __init__(self, s3: Any, bucket: str) -> None:
        self._s3, self._bucket = s3, bucket

    def keep(self, key: str, payload: bytes) -> str:
        """Store `payload` under `key`, or beside it when other octets are there. Returns the key that holds it."""
        if self._write_once(key, payload):
            return key
        there = self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        if there == payload:
            return key
        beside = beside_key(key, payload)
        self._write_once(
            beside, payload
        )  # its name is its content: a copy that is there is this one
        return beside

    def _write_once(self, key: str, payload: bytes) -> bool:
        try:
            self._s3.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=payload,
                IfNoneMatch="*",
                ContentType="application/json",
            )
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 412:
                return False
            raise
        return True


class Table:
    """The projection: written after the lake, rebuilt from it, never waited for by an acknowledgement."""

    def __init__(self, dynamodb: Any, name: str) -> None:
        self._dynamodb, self._name = dynamodb, name
        self._pool = ThreadPoolExecutor(THREADS)

    def add(self, items: Sequence[HourItem]) -> list[tuple[HourItem, list[Conflict]]]:
        """Add rows to their hours; duplicates change nothing. Returns the items with conflicting readings.

        Hours that nobody should know yet, the inner ones of a long block, are put a hundred at a time, each on the
        condition that it is not there: twice the price of an update and a tenth of its time, for history and backlog.
        """
        fresh, others = rows.inner_hours(items)
        for start in range(0, len(fresh), TRANSACTION):
            others += self._put_new(fresh[start : start + TRANSACTION])
        done = self._pool.map(self._add, others)
        return [(item, found) for item, found in zip(others, done, strict=True) if found]

    def _put_new(self, items: list[HourItem]) -> list[HourItem]:
        """Put items that are not there; returns those that need a look at what is there."""
        known: list[HourItem] = []
        while items:
            try:
                self._dynamodb.transact_write_items(
                    TransactItems=[self._put(item) for item in items]
                )
            except ClientError as error:
                if error.response["Error"]["Code"] != "TransactionCanceledException":
                    raise
                reasons = [
                    reason["Code"] for reason in error.response.get("CancellationReasons", [])
                ]
                hindered = [
                    item for item, code in zip(items, reasons, strict=False) if code != "None"
                ]
                known += hindered or items
                items = [item for item in items if item not in hindered] if hindered else []
            else:
                return known
        return known

    def _put(self, item: HourItem) -> dict[str, Any]:
        texts = {name: {"S": text} for name, text in rows.attributes(item).items()}
        key = {"pk": {"S": item.pk}, "sk": {"S": item.sk}, "ttl": {"N": str(item.ttl)}}
        return {
            "Put": {
                "TableName": self._name,
                "Item": key | texts,
                "ConditionExpression": "attribute_not_exists(pk)",
            }
        }

    def _add(self, item: HourItem) -> list[Conflict]:
        old = self._set_missing(item.pk, item.sk, item.ttl, rows.attributes(item))
        if not old:
            return []
        further, conflicts = rows.compare(item, old)
        if further:
            self._set_missing(item.pk, item.sk, item.ttl, further)
        return conflicts

    def _set_missing(self, pk: str, sk: str, ttl: int, texts: dict[str, str]) -> dict[str, str]:
        """Set the attributes that are not there yet; returns those that were there before, texts only."""
        names: dict[str, str] = {"#t": "ttl"}
        values: dict[str, Any] = {":t": {"N": str(ttl)}}
        parts = ["#t=:t"]
        for i, (name, text) in enumerate(texts.items()):
            names[f"#{i}"] = name
            values[f":{i}"] = {"S": text}
            parts.append(f"#{i}=if_not_exists(#{i},:{i})")
        reply = self._dynamodb.update_item(
            TableName=self._name,
            Key={"pk": {"S": pk}, "sk": {"S": sk}},
            UpdateExpression="SET " + ",".join(parts),
            ExpressionAttributeNames=names,
            ExpressionAttributeValues=values,
            ReturnValues="ALL_OLD",
        )
        return {
            name: value["S"] for name, value in reply.get("Attributes", {}).items() if "S" in value
        }

    def masters(self, pks: Iterable[str]) -> dict[str, int]:
        """Multiplier of the meter master by partition, as far as masters are known."""
        keys = [{"pk": {"S": pk}, "sk": {"S": notices.MASTER}} for pk in pks]
        found: dict[str, int] = {}
        while keys:
            some, keys = keys[:100], keys[100:]
            reply = self._dynamodb.batch_get_item(RequestItems={self._name: {"Keys": some}})
            for item in reply["Responses"][self._name]:
                found[item["pk"]["S"]] = notices.multiplier_of(item["doc"]["S"])
            keys += reply.get("UnprocessedKeys", {}).get(self._name, {}).get("Keys", [])
        return found

    def write(self, documents: Iterable[notices.Document]) -> None:
        """Write documents: those without a rank in batches, the others unless a higher rank is there."""
        plain = {}
        for document in documents:
            if document.rank is None:
                plain[document.pk, document.sk] = document
            else:
                self._write_ranked(document)
        requests = [{"PutRequest": {"Item": _item(document)}} for document in plain.values()]
        while requests:
            some, requests = requests[:25], requests[25:]
            reply = self._dynamodb.batch_write_item(RequestItems={self._name: some})
            left = reply.get("UnprocessedItems", {}).get(self._name, [])
            if len(left) == len(some):
                raise RuntimeError("the table takes nothing now")  # SQS tries the message again
            requests += left

    def _write_ranked(self, document: notices.Document) -> None:
        try:
            self._dynamodb.put_item(
                TableName=self._name,
                Item=_item(document),
                ConditionExpression="attribute_not_exists(pk) OR #r <= :r",
                ExpressionAttributeNames={"#r": "rank"},
                ExpressionAttributeValues={":r": {"N": str(document.rank)}},
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise

    def raise_high(self, dcu: str, epoch: int, n: int, ttl: int) -> int:
        """Note that number `n` of an epoch is stored; returns the highest one stored."""
        try:
            self._dynamodb.update_item(
                TableName=self._name,
                Key={"pk": {"S": notices.gateway_key(dcu)}, "sk": {"S": f"{NUMBERS}#{epoch}"}},
                UpdateExpression="SET high=:n, #t=:t",
                ConditionExpression="attribute_not_exists(high) OR high < :n",
                ExpressionAttributeNames={"#t": "ttl"},
                ExpressionAttributeValues={":n": {"N": str(n)}, ":t": {"N": str(ttl)}},
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise
            return max(n, int(error.response.get("Item", {}).get("high", {"N": n})["N"]))
        return n


class Downlink:
    """What the cloud says: acknowledgements to gateways, its own alarms to the maintenance queue."""

    def __init__(self, iot: Any, sqs: Any, prefix: str, maintenance_queue: str) -> None:
        self._iot, self._sqs, self._prefix, self._queue = iot, sqs, prefix, maintenance_queue

    def acknowledge(self, dcu: str, payload: bytes) -> None:
        """Publish one acknowledgement."""
        self._iot.publish(topic=f"{self._prefix}/{dcu}/down/acks", qos=1, payload=payload)

    def alarm(self, alarm: dict[str, Any], dcu: str) -> None:
        """Put an alarm of the cloud's own into the queue of field service."""
        self._sqs.send_message(QueueUrl=self._queue, MessageBody=notices.alarm_envelope(alarm, dcu))


def _item(document: notices.Document) -> dict[str, Any]:
    item = {
        "pk": {"S": document.pk},
        "sk": {"S": document.sk},
        "ttl": {"N": str(document.ttl)},
        "doc": {"S": document.text},
    }
    if document.rank is not None:
        item["rank"] = {"N": str(document.rank)}
    return item
