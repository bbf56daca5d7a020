"""One UTC day of raw envelopes becomes one Parquet file a kind, and the billing files. As often as you like.

A message that was resent later keeps the day on which it was first sent, so the last three days are made again every
night; `{"days": ["2026-06-18"]}` makes any other.
"""

from __future__ import annotations

import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import duckdb
from aws_lambda_powertools import Logger
from ingest.stores import Table
from opendcu_cloud import flat, keys
from opendcu_cloud.envelope import READS, Refused, open_message
from opendcu_cloud.rows import meter_key

from curate.tables import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opendcu_cloud.envelope import Message

log = Logger(service="opendcu-curate")
NIGHTS = 3


class Curator:
    """Makes the curated files of a bucket.

    Args:
        s3: a boto3 client.
        table: the table, for the meter masters.
    """

    def __init__(self, s3: Any, bucket: str, table: Table) -> None:
        self._s3, self._bucket, self._table = s3, bucket, table
        self._masters: dict[str, int | None] = {}

    def curate(self, day: str) -> dict[str, int]:
        """Make the files of one day; returns readings by kind."""
        counts = {}
        billing: list[dict[str, Any]] = []
        for kind in READS:
            with tempfile.TemporaryDirectory() as folder:
                arrived, parquet = Path(folder, "arrived.json"), Path(folder, "readings.parquet")
                with arrived.open("wb") as out:
                    for message in self._messages(kind, day):
                        out.writelines(
                            flat.lines(flat.flat_rows(message, self._masters_of(message)))
                        )
                if not arrived.stat().st_size:
                    continue
                with duckdb.connect() as db:
                    load(db, arrived)
                    order = "ORDER BY meter, captured_at, occurrence, obis, attribute"
                    db.execute(f"CREATE TABLE readings AS {flat.CURRENT} {order}")
                    db.execute(f"COPY readings TO '{parquet}' (FORMAT parquet, COMPRESSION zstd)")
                    counts[kind] = db.execute("SELECT count(*) FROM readings").fetchall()[0][0]
                    if kind in flat.BILLING_KINDS:
                        found = db.execute("SELECT * FROM readings")
                        names = [column[0] for column in found.description or ()]
                        billing += [dict(zip(names, row, strict=True)) for row in found.fetchall()]
                self._s3.put_object(
                    Bucket=self._bucket, Key=flat.curated_key(kind, day), Body=parquet.read_bytes()
                )
        for key, octets in flat.billing_files(day, billing):
            self._s3.put_object(Bucket=self._bucket, Key=key, Body=octets)
        return counts

    def _messages(self, kind: str, day: str) -> Iterator[Message]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=f"{kind}/day={day}/"
        )
        for page in pages:
            for found in page.get("Contents", []):
                payload = self._s3.get_object(Bucket=self._bucket, Key=found["Key"])["Body"].read()
                try:
                    yield open_message(keys.topic_of(found["Key"], payload), payload)
                except Refused as refused:
                    # was valid when it was stored: the contract has been narrowed
                    log.warning("a stored message is refused", key=found["Key"], why=refused.why)

    def _masters_of(self, message: Message) -> dict[str, int | None]:
        unknown = {meter_key(b.meter) for b in message.blocks} - self._masters.keys()
        if unknown:
            found = self._table.masters(unknown)
            self._masters.update((pk, found.get(pk)) for pk in unknown)
        return self._masters


def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Entry point: the schedule, or `{"days": [...]}`."""
    today = datetime.fromtimestamp(time.time(), UTC).date().isoformat()  # noqa: TID251 a function has no other clock
    table = Table(boto3.client("dynamodb"), os.environ["TABLE"])
    curator = Curator(boto3.client("s3"), os.environ["LAKE_BUCKET"], table)
    return {day: curator.curate(day) for day in event.get("days") or flat.days_back(today, NIGHTS)}
