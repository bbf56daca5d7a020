"""A Greengrass nucleus as far as its IPC goes, in a process of its own: the wire format, and the ways it misbehaves.

Frame: total length u32, headers' length u32, CRC32 of these, headers, payload, CRC32 of everything before; big endian.
Header: length of the name u8, name, type u8 (4 = int32, 7 = string with a u16 length), value.
Observed behaviours as switches: classic or lite; a token that is refused; frames above 10,000 octets that close the
connection; ten packets or 15,000 octets unacknowledged; subscriptions lost in silence; hung operations; a link that is
away: classic spools in memory (2,621,440 octets, then an error), sends it later or drops it without a word, and gets
what came down meanwhile; lite swallows ten packets, loses them at the reconnect, and what came down meanwhile with them.

    python fake_nucleus.py SOCKET classic|lite [BROKER]

One JSON order a line on standard input, one answer a line on standard output. With a broker, publishes go to it, and
what it has for a subscription comes down. BROKER is a port of 127.0.0.1, or JSON: host, port, ca, cert, key, client_id.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import sys
import zlib
from collections import Counter, deque
from typing import Any

MESSAGE, ERROR, PING, PING_REPLY, CONNECT, CONNECT_ACK = range(6)
ACCEPTED, TERMINATE = 1, 2
MOST_FRAME, MOST_PACKETS, MOST_OCTETS, MOST_INBOUND = 10_000, 10, 15_000, 4_980
MOST_SPOOLED = 2_621_440  # payloads only, as classic counts
ONLY_CLASSIC = {"SubscribeToComponentUpdates", "DeferComponentUpdate", "GetSecretValue"}


def encode(headers: dict[str, int | str], payload: bytes = b"") -> bytes:
    octets = b""
    for name, value in headers.items():
        octets += bytes([len(name)]) + name.encode()
        if isinstance(value, int):
            octets += b"\x04" + struct.pack(">i", value)
        else:
            octets += b"\x07" + struct.pack(">H", len(value)) + value.encode()
    prelude = struct.pack(">II", 16 + len(octets) + len(payload), len(octets))
    body = prelude + struct.pack(">I", zlib.crc32(prelude)) + octets + payload
    return body + struct.pack(">I", zlib.crc32(body))


def decode(frame: bytes) -> tuple[dict[str, Any], bytes]:
    size, prelude_crc = struct.unpack_from(">II", frame, 4)
    assert zlib.crc32(frame[:8]) == prelude_crc
    assert zlib.crc32(frame[:-4]) == struct.unpack(">I", frame[-4:])[0]
    headers, at, end = {}, 12, 12 + size
    while at < end:
        length = frame[at]
        name = frame[at + 1 : at + 1 + length].decode()
        at += 1 + length
        kind, at = frame[at], at + 1
        if kind == 4:
            headers[name], at = struct.unpack_from(">i", frame, at)[0], at + 4
        elif kind == 7:
            length = struct.unpack_from(">H", frame, at)[0]
            headers[name], at = frame[at + 2 : at + 2 + length].decode(), at + 2 + length
        else:
            raise ValueError(f"header {name} of type {kind}")
    return headers, frame[end:-4]


def matches(topic_filter: str, topic: str) -> bool:
    wanted, have = topic_filter.split("/"), topic.split("/")
    for i, level in enumerate(wanted):
        if level == "#":
            return True
        if i >= len(have) or level not in ("+", have[i]):
            return False
    return len(wanted) == len(have)


class Nucleus:
    def __init__(self, kind: str, broker: Any = 0) -> None:
        self.kind = kind
        self.token_valid = self.name_valid = True
        self.connections: dict[asyncio.StreamWriter, str] = {}
        self.streams: dict[tuple[asyncio.StreamWriter, int], tuple[str, str]] = {}
        self.counts: Counter[str] = Counter()
        self.published: list[tuple[str, str]] = []
        self.states: list[str] = []
        self.deferrals: list[dict[str, Any]] = []
        self.configuration: dict[str, Any] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.failures: dict[str, list[Any]] = {}
        self.hung: set[str] = set()
        self.broker_answers = True
        self.unacked: deque[int] = deque()  # lite: swallowed while the broker does not answer
        self.spool: deque[tuple[str, bytes]] = deque()  # classic: kept meanwhile, in memory
        self.waiting_down: deque[tuple[str, bytes]] = deque()
        self.in_flight: dict[int, int] = {}  # octets by packet id, until the broker's PUBACK
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.mqtt = self._bridge(broker) if broker else None

    # --- the broker behind it

    def _bridge(self, broker: Any) -> Any:
        import paho.mqtt.client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        where = broker if isinstance(broker, dict) else {"port": broker}
        loop = asyncio.get_running_loop()
        name = where.get("client_id", "nucleus")
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
        if "ca" in where:
            client.tls_set(where["ca"], where["cert"], where["key"])
        client.on_message = lambda c, u, m: loop.call_soon_threadsafe(
            self.deliver, m.topic, bytes(m.payload)
        )
        client.on_publish = lambda c, u, mid, *_: loop.call_soon_threadsafe(
            self.in_flight.pop, mid, None
        )
        client.max_inflight_messages_set(100)
        client.on_connect = lambda c, *_: [
            c.subscribe(f, qos=1) for _, f in list(self.streams.values()) if f
        ]
        client.connect(where.get("host", "127.0.0.1"), where["port"])
        client.loop_start()
        return client

    def deliver(self, topic: str, payload: bytes) -> None:
        if self.kind == "lite" and len(payload) > MOST_INBOUND:
            return
        if not self.broker_answers:
            if self.kind == "classic":  # its session lasts as long as its run
                self.waiting_down.append((topic, payload))
            return
        message = {"topicName": topic, "payload": base64.b64encode(payload).decode()}
        self.tell("SubscribeToIoTCore", "IoTCoreMessage", {"message": message}, topic)

    def tell(self, operation: str, shape: str, event: dict[str, Any], topic: str = "") -> None:
        for (writer, stream), (name, topic_filter) in list(self.streams.items()):
            if name == operation and (not topic_filter or matches(topic_filter, topic)):
                self.answer(writer, stream, shape, event)

    # --- the wire

    def answer(
        self, writer: asyncio.StreamWriter, stream: int, shape: str, body: dict[str, Any],
        kind: int = MESSAGE, flags: int = 0,
    ) -> None:  # fmt: skip
        headers = {
            ":message-type": kind, ":message-flags": flags, ":stream-id": stream,
            ":content-type": "application/json", "service-model-type": f"aws.greengrass#{shape}",
        }  # fmt: skip
        writer.write(encode(headers, json.dumps(body).encode()))

    def error(self, writer: asyncio.StreamWriter, stream: int, shape: str) -> None:
        body = {} if self.kind == "lite" else {"message": "on purpose"}
        self.answer(writer, stream, shape, body, ERROR, TERMINATE)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts["sockets"] += 1
        try:
            while True:
                await self.thawed.wait()
                head = await reader.readexactly(8)
                total = struct.unpack_from(">I", head)[0]
                if self.kind == "lite" and total - 12 > MOST_FRAME:
                    self.counts["too large"] += 1
                    return
                headers, payload = decode(head + await reader.readexactly(total - 8))
                await self.thawed.wait()
                if headers[":message-type"] == CONNECT:
                    if not self.connect(writer, json.loads(payload)):
                        return
                elif headers[":message-flags"] & TERMINATE:
                    self.streams.pop((writer, headers[":stream-id"]), None)
                elif headers[":message-type"] == MESSAGE:
                    body = json.loads(payload)
                    await self.request(writer, headers[":stream-id"], headers["operation"], body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connections.pop(writer, None)
            self.streams = {k: v for k, v in self.streams.items() if k[0] is not writer}
            writer.close()

    def connect(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
        by_token = "authToken" in body
        good = self.token_valid and body.get("authToken") == "the-token"
        if not by_token:
            good = self.kind == "lite" and self.name_valid and bool(body.get("componentName"))
        self.counts["connects" if good else "refused"] += 1
        if not good and self.kind == "lite":
            return False  # it closes the socket
        flags = ACCEPTED if good else 0
        headers = {":message-type": CONNECT_ACK, ":message-flags": flags, ":stream-id": 0}
        writer.write(encode(headers))
        self.connections[writer] = "token" if by_token else "name"
        return good

    async def request(
        self, writer: asyncio.StreamWriter, stream: int, operation: str, body: dict[str, Any]
    ) -> None:
        name = operation.removeprefix("aws.greengrass#")
        self.counts[name] += 1
        if name in self.hung:
            return
        failure = self.failures.get(name)
        if failure and failure[1] > 0 and str(body.get("topicName", "")).endswith(failure[2]):
            failure[1] -= 1
            self.error(writer, stream, failure[0])
            return
        handler = getattr(self, f"on_{name}", None)
        if handler is None or (self.kind == "lite" and name in ONLY_CLASSIC):
            self.error(writer, stream, "ServiceError")
            return
        answer = handler(writer, stream, body)
        if answer is None:
            self.error(writer, stream, "ServiceError")
            return
        lasting = name.startswith("SubscribeTo")
        self.answer(writer, stream, f"{name}Response", answer, flags=0 if lasting else TERMINATE)

    # --- operations

    def on_PublishToIoTCore(self, writer: Any, stream: int, body: dict[str, Any]) -> Any:
        payload = base64.b64decode(body.get("payload") or "")
        waiting = [*self.unacked, *self.in_flight.values()]
        if self.kind == "lite" and (
            len(waiting) >= MOST_PACKETS or sum(waiting) + len(payload) > MOST_OCTETS
        ):
            self.counts["full"] += 1
            return None
        if self.kind == "lite" and not self.broker_answers:
            self.unacked.append(len(payload))
            return {}  # into the void
        if not self.broker_answers:
            if sum(len(p) for _, p in self.spool) + len(payload) > MOST_SPOOLED:
                self.counts["spool full"] += 1
                return None
            self.spool.append((body["topicName"], payload))
            return {}
        self.send(body["topicName"], payload)
        return {}

    def send(self, topic: str, payload: bytes) -> None:
        self.published.append((topic, base64.b64encode(payload).decode()))
        if self.mqtt is not None:
            self.in_flight[self.mqtt.publish(topic, payload, qos=1).mid] = len(payload)

    def on_SubscribeToIoTCore(self, writer: Any, stream: int, body: dict[str, Any]) -> Any:
        self.streams[writer, stream] = ("SubscribeToIoTCore", body["topicName"])
        if self.mqtt is not None:
            self.mqtt.subscribe(body["topicName"], qos=1)
        return {}

    def on_GetConfiguration(self, writer: Any, stream: int, body: dict[str, Any]) -> Any:
        return {"componentName": "io.opendcu.Gateway", "value": self.configuration}

    def on_GetSecretValue(self, writer: Any, stream: int, body: dict[str, Any]) -> Any:
        if body["secretId"] not in self.secrets:
            return None  # classic has a ResourceNotFoundError of its own, see `fail`
        value = self.secrets[body["secretId"]]
        return {
            "secretId": body["secretId"],
            "versionId": "1",
            "versionStage": [],
            "secretValue": value,
        }

    def on_SubscribeToConfigurationUpdate(self, writer: Any, stream: int, body: Any) -> Any:
        self.streams[writer, stream] = ("SubscribeToConfigurationUpdate", "")
        return {}

    def on_SubscribeToComponentUpdates(self, writer: Any, stream: int, body: Any) -> Any:
        self.streams[writer, stream] = ("SubscribeToComponentUpdates", "")
        return {}

    def on_DeferComponentUpdate(self, writer: Any, stream: int, body: dict[str, Any]) -> Any:
        self.deferrals.append(body)
        return {}

    def on_UpdateState(self, writer: Any, stream: int, body: dict[str, Any]) -> Any:
        self.states.append(body["state"])
        return {}

    # --- orders

    def order(self, do: str, what: dict[str, Any]) -> Any:
        match do:
            case "status":
                return {
                    "counts": self.counts, "published": self.published, "states": self.states,
                    "deferrals": self.deferrals, "connections": sorted(self.connections.values()),
                    "subscriptions": sorted(self.streams.values()),
                }  # fmt: skip
            case "deliver":
                self.deliver(what["topic"], base64.b64decode(what["payload"]))
            case "fail":
                self.failures[what["operation"]] = [what["error"], what["times"], what["topic"]]
            case "hang":
                self.hung = set(what["operations"])
            case "freeze":
                self.thawed.clear()
            case "thaw":
                self.thawed.set()
            case "drop":
                for writer in list(self.connections):
                    writer.close()
            case "accept":
                self.token_valid, self.name_valid = what["token"], what["name"]
            case "lose-subscriptions":
                self.streams = {}
            case "broker":
                self.broker_answers = what["answers"]
                self.unacked.clear()  # lite: a clean session
                if what.get("drop"):  # classic: its process restarts, or it tried a hundred times
                    self.counts["dropped"] += len(self.spool)
                    self.spool.clear()
                while self.broker_answers and self.spool:
                    self.send(*self.spool.popleft())
                while self.broker_answers and self.waiting_down:
                    self.deliver(*self.waiting_down.popleft())
            case "secret":
                self.secrets[what["id"]] = what["value"]
            case "configure":
                self.configuration = what["value"]
                event = {"componentName": "io.opendcu.Gateway", "keyPath": []}
                event = {"configurationUpdateEvent": event}
                self.tell("SubscribeToConfigurationUpdate", "ConfigurationUpdateEvents", event)
            case "notice":
                event = {"deploymentId": what["deployment"], "isGgcRestarting": False}
                event = {"preUpdateEvent": event}
                self.tell("SubscribeToComponentUpdates", "ComponentUpdatePolicyEvents", event)
            case "updated":
                event = {"postUpdateEvent": {"deploymentId": what["deployment"]}}
                self.tell("SubscribeToComponentUpdates", "ComponentUpdatePolicyEvents", event)
            case _:
                return {"error": f"no order {do}"}
        return {"done": do}


async def main(path: str, kind: str, broker: Any = 0) -> None:
    nucleus = Nucleus(kind, broker)
    server = await asyncio.start_unix_server(nucleus.serve, path)
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    print(json.dumps({"ready": True}), flush=True)
    async with server:
        while line := await orders.readline():
            what = json.loads(line)
            print(json.dumps(nucleus.order(what.pop("do"), what)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])))
