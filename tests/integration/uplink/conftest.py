"""A cloud that misbehaves on request, a gateway's uplink on a real journal and a real broker, and blocks to send."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import json
import random
import threading
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_core.clock import SystemClock
from edge_core.config.schema import Alarms, Config, Gateway, Uplink
from edge_core.domain import Block, Column, Layout
from edge_core.journal import Journal
from edge_core.uplink.clients import make_client
from edge_core.uplink.payloads import schemas
from edge_core.uplink.sender import Hooks, Sender
from edge_core.uplink.topics import Topics
from tests.conftest import Mosquitto, eventually_sync

DCU = "dcu-0001"
LAYOUT = Layout(
    "1.0.99.1.0.255",
    900,
    tuple(
        Column(f"1.0.{code}.0.255", unit, 0)
        for code, unit in (("1.29", "Wh"), ("2.29", "Wh"), ("3.29", "varh"), ("12.27", "V"))
    ),
)
STRUCTS = {"replies": "reply"}
T0 = 1763999100


def block(
    meter: int, t0: int = T0, rows: int = 4, kind: str = "interval", layout: Layout = LAYOUT
) -> Block:
    """A block whose values follow from meter, time and column."""
    times = [t0 + layout.period * i for i in range(rows)]
    return Block(
        meter=f"GP{1_000_000 + meter}",
        device=f"{12_000_000 + 3 * meter}",
        kind=kind,
        layout=layout,
        times=times,
        columns=tuple([value(meter, t, c) for t in times] for c in range(len(layout.cols))),
        tz=330,
        read_at=t0 + layout.period * rows + 60,
    )


def value(meter: int, at: int, column: int) -> int:
    """As random as the cells of a real meter: two or three octets after compression."""
    return zlib.crc32(b"%d %d %d" % (meter, at, column)) % 99_991


def cells(*blocks: Block) -> dict[tuple[Any, ...], Any]:
    """Identity of every cell to its value (DESIGN section 6)."""
    out = {}
    for b in blocks:
        occurrence = dict(b.occ)
        for i, t in enumerate(b.times):
            for c, column in zip(b.layout.cols, b.columns, strict=True):
                if column[i] is not None:
                    key = (
                        b.meter,
                        b.device,
                        b.layout.profile,
                        int(t),
                        occurrence.get(i, 0),
                        c.obis,
                    )
                    out[key, c.attribute] = column[i]
    return out


class Cloud:
    """Subscribes, proves every message, stores cells by identity, acks. `misbehave` maps a way to its probability.

    late: acked some messages later, in any order; lost: no ack this time; doubled: every ack twice; foreign: an ack of
    other epochs that claims everything; reject: refused, and acked later; forget: neither stored nor acked this time.
    """

    def __init__(self, port: int, *, prefix: str = "dcu", dcu: str = DCU, version: int = 5) -> None:
        self.base, self.dcu = f"{prefix}/{dcu}/", dcu
        self.misbehave: dict[str, float] = {}
        self.silent = False
        self.max_bytes = 100_000
        self.rng = random.Random(0)
        self.lock = threading.RLock()
        self.cells: dict[tuple[Any, ...], Any] = {}
        self.alarms: Counter[str] = Counter()
        self.topics: Counter[str] = Counter()
        self.arrived: list[tuple[str, int, int]] = []  # topic, epoch, n
        self.documents: list[tuple[str, dict[str, Any]]] = []
        self.invalid: list[str] = []
        self.conflicts: list[tuple[Any, ...]] = []
        self.digests: dict[tuple[int, int], bytes] = {}
        self.acked: set[tuple[int, int]] = set()
        self.refused: dict[tuple[int, int], bytes] = {}
        self.held: list[tuple[int, int]] = []
        self.delayed: list[tuple[int, int]] = []
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=f"cloud-{dcu}", protocol=version
        )
        self.client.on_connect = self._connected
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_message = self._received
        self.client.reconnect_delay_set(1, 1)
        self.ready = threading.Event()
        self.client.connect_async("127.0.0.1", port, keepalive=30)
        self.client.loop_start()
        assert self.ready.wait(10)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def _connected(self, client: mqtt.Client, *_: Any) -> None:
        if client.protocol == mqtt.MQTTv5:
            client.subscribe(self.base + "#", options=SubscribeOptions(qos=1, noLocal=True))
        else:
            client.subscribe(self.base + "#", qos=1)

    def _received(self, client: mqtt.Client, userdata: Any, packet: mqtt.MQTTMessage) -> None:
        with self.lock:
            try:
                self._take(packet.topic.removeprefix(self.base), bytes(packet.payload))
            except Exception as error:
                self.invalid.append(f"{packet.topic}: {type(error).__name__}: {error}")

    def _take(self, topic: str, payload: bytes) -> None:
        if topic.startswith("down/"):
            assert self.client.protocol != mqtt.MQTTv5, "the gateway published below down/"
            return  # 3.1.1 brings our own acks back
        assert len(payload) <= self.max_bytes, len(payload)
        kind, _, sub = topic.partition("/")
        document = json.loads(payload)
        msgspec.convert(document, schemas.MESSAGES[STRUCTS.get(kind, kind)])
        assert document["dcu"] == self.dcu
        assert document["kind"] == (sub or kind)
        key = document["epoch"], document["n"]
        self.topics[topic] += 1
        self.arrived.append((topic, *key))
        self.documents.append((topic, document))
        if kind == "health":
            return
        digest = hashlib.sha256(payload).digest()
        assert self.digests.setdefault(key, digest) == digest, f"{key} with other octets"
        first = key not in self.acked and key not in self.refused
        if self.silent:
            return
        if first and self._chance("forget") and key not in self.held:
            self.held.append(key)
            return
        if first and self._chance("reject"):
            self.refused[key] = payload
            self.send_ack(key[0], rejected=[[key[1], "schema-invalid", "on purpose"]])
            return
        if key in self.refused:
            return
        self._store(key, kind, document)
        if self._chance("lost"):
            return
        if self._chance("late"):
            self.delayed.append(key)
            if len(self.delayed) > 3:
                self.flush()
            return
        for _ in range(2 if self._chance("doubled") else 1):
            self.send_ack(key[0], acked=[[key[1], key[1]]])
        if self._chance("foreign"):
            for epoch in (key[0] - 1, key[0] + 1):
                self.send_ack(epoch, acked=[[0, 1 << 40]], high=1 << 40)

    def _store(self, key: tuple[int, int], kind: str, document: dict[str, Any]) -> None:
        self.acked.add(key)
        if kind == "alarms":
            self.alarms.update(a["id"] for a in document["alarms"])
        if kind == "reads":
            if "data" in document:
                document |= json.loads(gzip.decompress(base64.b64decode(document["data"])))
            for b in document["blocks"]:
                layout = document["layouts"][b["layout"]]
                times = b.get("t") or [b["t0"] + i * layout["period"] for i in range(b["rows"])]
                occurrence = dict(b.get("occ", []))
                for (obis, _, _, *attribute), column in zip(
                    layout["cols"], b["values"], strict=True
                ):
                    for i, cell in enumerate(column):
                        identity = (
                            b["meter"], b["device"], layout["profile"], times[i], occurrence.get(i, 0), obis,
                        )  # fmt: skip
                        place = identity, *(attribute or [2])
                        if cell is not None and self.cells.setdefault(place, cell) != cell:
                            self.conflicts.append(place)

    def _chance(self, what: str) -> bool:
        return self.rng.random() < self.misbehave.get(what, 0.0)

    def flush(self) -> None:
        """Late acks, in any order."""
        with self.lock:
            self.rng.shuffle(self.delayed)
            for epoch, n in self.delayed:
                self.send_ack(epoch, acked=[[n, n]])
            self.delayed.clear()

    def redrive(self) -> None:
        """What was refused is stored after all."""
        with self.lock:
            for key, payload in list(self.refused.items()):
                topic = next(t for t, *k in self.arrived if tuple(k) == key)
                del self.refused[key]
                self._store(key, topic.partition("/")[0], json.loads(payload))
                self.send_ack(key[0], acked=[[key[1], key[1]]])

    def send_ack(
        self, epoch: int, *, acked: Any = (), rejected: Any = (), high: int | None = None
    ) -> None:
        numbers = [n for e, n in self.acked if e == epoch]
        self.send(
            "down/acks",
            {
                "schema": "opendcu.ack/1",
                "dcu": self.dcu,
                "epoch": epoch,
                "acked": acked,
                "rejected": rejected,
                "high": max(numbers, default=0) if high is None else high,
            },
        )

    def send(self, topic: str, document: Any) -> None:
        payload = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.client.publish(self.base + topic, payload, qos=1)


class Uplinked:
    """Journal, client and sender of one gateway in this process."""

    def __init__(self, folder: Path, url: str, **options: Any) -> None:
        sender_options = {
            name: options.pop(name)
            for name in ("linger_s", "no_acks_s", "describe")
            if name in options
        }
        batch_ms = options.pop("batch_ms", 100)
        clock = options.pop("clock", None)
        self.folder = folder
        self.config = Config(
            gateway=Gateway(id=DCU, data_dir=str(folder / "data"), timezone="Asia/Kolkata"),
            uplink=Uplink(url=url, **options),
            alarms=Alarms(batch_ms=batch_ms),
        )
        self.clock = clock or SystemClock()
        self.journal = Journal.open(folder / "data" / "journal.db", clock=self.clock)
        self.aside: list[tuple[int, str, str]] = []
        self.commands: list[tuple[str, bytes]] = []
        self.no_acks: list[float] = []
        self.epochs: list[tuple[int, str]] = []
        topics = Topics(
            self.config.uplink.topic_prefix, DCU, basic_ingest=self.config.uplink.basic_ingest
        )
        self.client = make_client(self.config, topics.subscription)
        self.sender = Sender(
            self.config,
            self.journal,
            self.client,
            self.clock,
            hooks=Hooks(
                on_command=lambda id_, payload: self.commands.append((id_, payload)),
                on_no_acks=self.no_acks.append,
                on_new_epoch=lambda epoch, why: self.epochs.append((epoch, why)),
                on_aside=lambda n, cause, why: self.aside.append((n, cause, why)),
            ),
            rng=random.Random(1),
            **({"linger_s": 0.0} | sender_options),
        )
        self.task: asyncio.Task[None] | None = None

    def start(self) -> Uplinked:
        self.task = asyncio.create_task(self.sender.run())
        return self

    async def stop(self) -> None:
        if self.task is not None:
            self.sender.stop()
            async with asyncio.timeout(4):
                await self.task
        self.journal.close()

    @property
    def drained(self) -> bool:
        """Nothing waits but what stands aside."""
        waiting = [("s", s.id) for s in self.journal.segments(0)]
        waiting += [("a", a.id) for a in self.journal.alarms_waiting()]
        waiting += [("n", n.id) for n in self.journal.notes_waiting()]
        return not self.sender.status().unacked and all(
            self.sender._deliveries.covered(item) is None for item in waiting
        )

    @property
    def connected(self) -> bool:
        return self.sender.status().state == "connected"

    def append(self, *blocks: Block, lane: Any = "live") -> None:
        """Blocks in one segment per call, durable."""
        waiting = [self.journal.append(b, durable="lazy", lane=lane) for b in blocks]
        self.journal.flush().result(10)
        for future in waiting:
            future.result(10)


@pytest.fixture
def cloud(mosquitto: Mosquitto) -> Iterator[Cloud]:
    cloud = Cloud(mosquitto.port)
    yield cloud
    cloud.close()
    assert cloud.invalid == []
    assert cloud.conflicts == []


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[Callable[[str], Mosquitto]]:
    """Makes brokers with further configuration; all are killed at the end."""
    made: list[Mosquitto] = []

    def make(extra: str) -> Mosquitto:
        folder = tmp_path / f"broker-{len(made)}"
        folder.mkdir()
        made.append(Mosquitto(folder, f"user root\n{extra}"))
        return made[-1]

    yield make
    for broker in made:
        broker.kill()


@pytest.fixture
async def uplink(tmp_path: Path, mosquitto: Mosquitto) -> AsyncIterator[Callable[..., Uplinked]]:
    """Makes gateways on the broker; all are stopped at the end."""
    made: list[Uplinked] = []

    def make(**options: Any) -> Uplinked:
        url = options.pop("url", mosquitto.url)
        folder = options.pop("folder", tmp_path / "gateway")
        made.append(Uplinked(folder, url, **options))
        return made[-1]

    yield make
    for one in made:
        with contextlib.suppress(asyncio.CancelledError):
            await one.stop()


__all__ = ["Cloud", "Uplinked", "block", "cells", "eventually_sync"]
