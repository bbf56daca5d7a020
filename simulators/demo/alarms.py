"""The outage system's side: takes alarms from the queues as they come and notes when each arrived there."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

from simulators.cloud.local import ALARM_QUEUES, alarms_of

if TYPE_CHECKING:
    from simulators.cloud import LocalCloud


class AlarmConsumer:
    """A consumer thread on every alarm queue.

    Attributes:
        arrived: alarm id -> (alarm, epoch seconds at which the queue took it).
    """

    def __init__(self, cloud: LocalCloud) -> None:
        self._cloud = cloud
        self._stop = threading.Event()
        self.arrived: dict[str, tuple[dict[str, Any], float]] = {}
        self._thread = threading.Thread(target=self._run, name="alarm consumer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        sqs = self._cloud.client("sqs")
        urls = [self._cloud.outputs[f"{name}QueueUrl"] for name in ALARM_QUEUES]
        while not self._stop.is_set():
            if not any(self._take(sqs, url) for url in urls):  # every queue each time
                self._stop.wait(0.2)

    def _take(self, sqs: Any, url: str) -> bool:
        try:
            messages = sqs.receive_message(
                QueueUrl=url, MaxNumberOfMessages=10, AttributeNames=["SentTimestamp"]
            ).get("Messages", [])
        except Exception:  # noqa: BLE001 the cloud stops before the consumer does
            self._stop.wait(0.2)
            return False
        for message in messages:
            at = int(message["Attributes"]["SentTimestamp"]) / 1000
            for alarm in alarms_of(json.loads(message["Body"])):
                self.arrived.setdefault(alarm["id"], (alarm, at))
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return bool(messages)

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(5)
