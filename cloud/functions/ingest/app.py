"""One batch of the ingest queue: validate, store, acknowledge, project; in this order, whatever fails.

An acknowledgement says that a message is valid and that its octets are in the lake, and nothing about the table. What
could not be stored is neither acknowledged nor deleted: SQS brings it again. What could not be projected is brought
again too; storing and acknowledging it a second time changes nothing.
"""

from __future__ import annotations

import base64
import binascii
import os
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import boto3
import msgspec
from aws_lambda_powertools import Logger
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from opendcu_cloud import acks, keys, notices, rows
from opendcu_cloud.envelope import Message, Refused, open_message

from ingest.stores import THREADS, Downlink, Lake, Table

log = Logger(service="opendcu-ingest")

MASTERS_S = 300.0  # a changed meter master is seen after so long at the latest
AwsError = (ClientError, BotoCoreError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One record of the queue: what a rule selected."""

    record: str
    topic: str
    payload: bytes
    received: int


@dataclass(slots=True)
class Told:
    """What one gateway is to be told about one epoch."""

    stored: list[int] = field(default_factory=list)
    refused: list[tuple[int, str, str]] = field(default_factory=list)
    sent: int = 0


class Ingest:
    """The work on a batch, with its stores given."""

    def __init__(
        self,
        lake: Lake,
        table: Table,
        downlink: Downlink,
        *,
        prefix: str,
        interval_days: int,
        long_days: int,
    ) -> None:
        self._lake, self._table, self._downlink = lake, table, downlink
        self._prefix, self._interval_days, self._long_days = prefix, interval_days, long_days
        self._pool = ThreadPoolExecutor(THREADS)
        self._served_by: dict[str, str] = {}
        self._masters: dict[str, int | None] = {}
        self._masters_until = 0.0
        self._told_mismatch: dict[str, tuple[int, int]] = {}

    def batch(self, records: list[dict[str, Any]]) -> list[str]:
        """Work on a batch; returns the ids of the records that SQS must bring again."""
        begun = time.monotonic()
        again: list[str] = []
        told: defaultdict[tuple[str, int], Told] = defaultdict(Told)
        stored: list[tuple[Arrival, Message]] = []
        for arrival, outcome in self._pool.map(
            self._store, [_arrival(record) for record in records]
        ):
            if isinstance(outcome, Message):
                stored.append((arrival, outcome))
                if outcome.numbered:
                    entry = told[outcome.dcu, outcome.epoch]
                    entry.stored.append(outcome.n)
                    entry.sent = max(entry.sent, outcome.sent)
            elif isinstance(outcome, Refused):
                log.warning(
                    "refused", topic=arrival.topic, code=outcome.code, why=outcome.why, n=outcome.n
                )
                dcu = (arrival.topic.split("/") + ["", ""])[1]
                if outcome.epoch is not None and outcome.n is not None and dcu:
                    told[dcu, outcome.epoch].refused.append((outcome.n, outcome.code, outcome.why))
            else:
                log.error("not stored", topic=arrival.topic, error=str(outcome))
                again.append(arrival.record)
        self._acknowledge(told)
        acked_s = time.monotonic() - begun
        again += self._project(stored)
        log.info(
            "batch",
            records=len(records),
            stored=len(stored),
            again=len(again),
            acked_ms=round(acked_s * 1000),
            total_ms=round((time.monotonic() - begun) * 1000),
        )
        return again

    def _store(self, arrival: Arrival) -> tuple[Arrival, Message | Refused | Exception]:
        try:
            try:
                message = open_message(arrival.topic, arrival.payload, self._prefix)
            except Refused as refused:
                self._lake.keep(
                    keys.refused_key(arrival.topic, arrival.payload, arrival.received),
                    arrival.payload,
                )
                return arrival, refused
            if message.numbered:
                key = keys.object_key(message)
                held = self._lake.keep(key, arrival.payload)
                if held != key:
                    log.error("another message under one number", key=key, beside=held)
                    self._downlink.alarm(notices.octets_alarm(message, key, held), message.dcu)
        except AwsError as error:
            return arrival, error
        return arrival, message

    def _acknowledge(self, told: dict[tuple[str, int], Told]) -> None:
        """Tell the gateways. A lost acknowledgement is harmless: the gateway sends again."""
        for (dcu, epoch), entry in told.items():
            high = max(entry.stored, default=0)
            try:
                if entry.stored:
                    high = self._table.raise_high(
                        dcu, epoch, high, entry.sent + self._long_days * rows.DAY_S
                    )
            except AwsError as error:
                log.warning(
                    "the highest number is not noted", dcu=dcu, epoch=epoch, error=str(error)
                )
            for payload in acks.acks(dcu, epoch, entry.stored, entry.refused, high):
                try:
                    self._downlink.acknowledge(dcu, payload)
                except AwsError as error:
                    log.warning("not acknowledged", dcu=dcu, epoch=epoch, error=str(error))

    def _project(self, stored: list[tuple[Arrival, Message]]) -> list[str]:
        try:
            self.project([message for _, message in stored])
        except AwsError as error:
            log.warning("not projected", error=str(error))
            return [arrival.record for arrival, _ in stored]
        return []

    def project(self, messages: list[Message]) -> None:
        """Bring messages into the table; as often as you like.

        Raises:
            ClientError, BotoCoreError, RuntimeError: the table did not take everything.
        """
        by_dcu: defaultdict[str, list[rows.HourItem]] = defaultdict(list)
        documents: list[notices.Document] = []
        heard: dict[str, int] = {}
        for message in messages:
            by_dcu[message.dcu] += rows.hour_items(message, self._interval_days, self._long_days)
            documents += notices.documents(message, self._long_days)
            heard[message.dcu] = message.sent
        for dcu, items in by_dcu.items():
            keep_until = heard[dcu] + self._long_days * rows.DAY_S
            for pk in {item.pk for item in items if self._served_by.get(item.pk) != dcu}:
                documents.append(notices.served_by(pk, dcu, keep_until))
            alarms = self._mismatches(dcu, items, heard[dcu])
            for item, conflicts in self._table.add(rows.merge(items)):
                profile, meter = item.sk.rsplit("#", 1)[-1], rows.meter_of(item.pk)
                alarms.append(notices.conflict_alarm(dcu, meter, profile, conflicts, heard[dcu]))
            for alarm in alarms:
                self._downlink.alarm(alarm, dcu)
                documents.append(notices.alarm_document(alarm, dcu, keep_until))
        self._table.write(documents)
        self._served_by.update((item.pk, dcu) for dcu, items in by_dcu.items() for item in items)

    def _mismatches(self, dcu: str, items: list[rows.HourItem], heard: int) -> list[dict[str, Any]]:
        """Alarms for meters whose blocks carry another multiplier than the meter master; once per environment."""
        carried = {item.pk: row.multiplier for item in items for row in item.rows}
        if time.monotonic() > self._masters_until:
            self._masters, self._masters_until = {}, time.monotonic() + MASTERS_S
        if unknown := [pk for pk in carried if pk not in self._masters]:
            found = self._table.masters(unknown)
            self._masters.update((pk, found.get(pk)) for pk in unknown)
        alarms = []
        for pk, multiplier in carried.items():
            master = self._masters[pk]
            if master not in (None, multiplier) and self._told_mismatch.get(pk) != (
                multiplier,
                master,
            ):
                self._told_mismatch[pk] = multiplier, master
                alarms.append(
                    notices.mismatch_alarm(dcu, rows.meter_of(pk), multiplier, master, heard)
                )
        return alarms


def _arrival(record: dict[str, Any]) -> Arrival:
    """A record of the queue; one that no rule made has no topic and is refused like any other nonsense."""
    try:
        body = msgspec.json.decode(record["body"], type=_Selected)
        payload = base64.b64decode(body.raw, validate=True)
    except (msgspec.MsgspecError, binascii.Error, ValueError):
        return Arrival(record["messageId"], "", record["body"].encode(), 0)
    return Arrival(record["messageId"], body.topic, payload, body.received // 1000)


class _Selected(msgspec.Struct):
    raw: str
    topic: str
    received: int


def _clients() -> Ingest:
    environment = os.environ
    config = Config(
        max_pool_connections=2 * THREADS, retries={"mode": "standard", "max_attempts": 4}
    )
    prefix = environment["TOPIC_PREFIX"]
    return Ingest(
        Lake(boto3.client("s3", config=config), environment["LAKE_BUCKET"]),
        Table(boto3.client("dynamodb", config=config), environment["TABLE"]),
        Downlink(
            boto3.client("iot-data", config=config),
            boto3.client("sqs", config=config),
            prefix,
            environment["MAINTENANCE_QUEUE"],
        ),
        prefix=prefix,
        interval_days=int(environment["INTERVAL_RETENTION_DAYS"]),
        long_days=int(environment["LONG_RETENTION_DAYS"]),
    )


@lru_cache(1)
def ingest() -> Ingest:
    """The work of this environment, made with the first batch and kept for the next ones."""
    return _clients()


def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Entry point: an SQS event; partial failures."""
    again = ingest().batch(event["Records"])
    return {"batchItemFailures": [{"itemIdentifier": record} for record in again]}
