"""The courier: a command is sent every 30 s until the gateway has accepted it or it has expired.

The waiting is SQS's: each sending leaves the request's id in the queue with a delay.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache
from typing import Any

import boto3
from aws_lambda_powertools import Logger
from botocore.exceptions import BotoCoreError, ClientError

from api.store import Courier, Store

log = Logger(service="opendcu-commands")


@lru_cache(1)
def courier() -> Courier:
    """The courier of this environment."""
    store = Store(boto3.client("dynamodb"), os.environ["TABLE"])
    clients = boto3.client("iot-data"), boto3.client("sqs")
    return Courier(store, *clients, os.environ["TOPIC_PREFIX"], os.environ["COMMAND_QUEUE"])


def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Entry point: an SQS event; partial failures."""
    again = []
    for record in event["Records"]:
        try:
            sent = courier().repeat(record["body"], int(time.time()))  # noqa: TID251 a function has no other clock
            log.info("command", request=record["body"], sent_again=sent)
        except (ClientError, BotoCoreError) as error:
            log.warning("command not sent", request=record["body"], error=str(error))
            again.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": again}
