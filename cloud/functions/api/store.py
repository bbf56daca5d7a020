"""Questions to the table. What has outlived its `ttl` is not there, whenever DynamoDB gets round to deleting it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opendcu_cloud import answers, notices, rows

if TYPE_CHECKING:
    from collections.abc import Iterator

Texts = dict[str, str]


class Store:
    """The table as the API sees it.

    Args:
        dynamodb: a boto3 client.
    """

    def __init__(self, dynamodb: Any, table: str) -> None:
        self._dynamodb, self._table = dynamodb, table

    def between(
        self, pk: str, low: str, high: str, now: int, *, newest_first: bool = False
    ) -> Iterator[tuple[str, Texts]]:
        """Sort key and texts of the items between two sort keys, page by page."""
        question: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "pk=:p AND sk BETWEEN :a AND :b",
            "FilterExpression": "#t > :now",
            "ExpressionAttributeNames": {"#t": "ttl"},
            "ExpressionAttributeValues": {
                ":p": {"S": pk},
                ":a": {"S": low},
                ":b": {"S": high},
                ":now": {"N": str(now)},
            },
            "ScanIndexForward": not newest_first,
        }
        while True:
            page = self._dynamodb.query(**question)
            for item in page["Items"]:
                yield item["sk"]["S"], _texts(item)
            if "LastEvaluatedKey" not in page:
                return
            question["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def document(self, pk: str, sk: str, now: int) -> Texts | None:
        """One item, or None."""
        key = {"pk": {"S": pk}, "sk": {"S": sk}}
        item = self._dynamodb.get_item(TableName=self._table, Key=key).get("Item")
        return _texts(item) if item and int(item["ttl"]["N"]) > now else None

    def put(self, pk: str, sk: str, ttl: int, **texts: str) -> None:
        """Write one item."""
        item = {"pk": {"S": pk}, "sk": {"S": sk}, "ttl": {"N": str(ttl)}}
        self._dynamodb.put_item(
            TableName=self._table, Item=item | {name: {"S": text} for name, text in texts.items()}
        )


class Courier:
    """Sends commands, and sees to it that they are sent again.

    Args:
        iot, sqs: boto3 clients.
    """

    def __init__(self, store: Store, iot: Any, sqs: Any, prefix: str, queue: str) -> None:
        self._store, self._iot, self._sqs = store, iot, sqs
        self._prefix, self._queue = prefix, queue

    def order(self, dcu: str, command: dict[str, Any]) -> None:
        """Note a command and send it for the first time."""
        ttl = command["expires"] + rows.DAY_S
        pk = notices.request_key(command["id"])
        self._store.put(
            pk, "C", ttl, dcu=dcu, doc=answers.encode(command), expires=str(command["expires"])
        )
        self._send(dcu, command["id"], answers.encode(command))

    def repeat(self, request: str, now: int) -> bool:
        """Send a command again, unless it is answered or expired. Says whether it was sent."""
        pk = notices.request_key(request)
        order = self._store.document(pk, "C", now)
        if order is None or now >= int(order["expires"]) or self._store.document(pk, "R", now):
            return False
        self._send(order["dcu"], request, order["doc"])
        return True

    def _send(self, dcu: str, request: str, text: str) -> None:
        self._iot.publish(
            topic=answers.down_topic(self._prefix, dcu, request), qos=1, payload=text.encode()
        )
        self._sqs.send_message(
            QueueUrl=self._queue, MessageBody=request, DelaySeconds=answers.REPEAT_S
        )


def _texts(item: dict[str, Any]) -> Texts:
    return {
        name: value["S"]
        for name, value in item.items()
        if "S" in value and name not in ("pk", "sk")
    }
