"""One suite that every way to the cloud passes: plain MQTT 5 and 3.1.1, mutual TLS, IoT Core's SDK, a directory."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from paho.mqtt.enums import CallbackAPIVersion

from edge_core import errors
from edge_core.clock import SystemClock
from edge_core.config.schema import Config, Gateway, Uplink
from edge_core.uplink.clients import Client, NotConnected, make_client
from tests.conftest import Mosquitto, eventually, free_port, program

pytestmark = [pytest.mark.integration, pytest.mark.peer]
DOWN = "dcu/dcu-0001/down/#"
UP = "dcu/dcu-0001/reads/interval"
BROKERS = ("mqtt5", "mqtt311", "mtls", "aws")


def payload(n: int, size: int = 0) -> bytes:
    return json.dumps({"epoch": 1764000000, "n": n, "fill": "x" * size}).encode()


def certificates(folder: Path) -> None:
    """A CA, a server certificate for localhost, a client certificate, as PEM files."""
    now = datetime.datetime.fromtimestamp(SystemClock().now(), datetime.UTC)

    def make(name: str, issuer: tuple[Any, Any] | None) -> tuple[Any, Any]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer[0].subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), True)
        )
        if issuer:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        certificate = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return certificate, key

    ca = make("ca", None)
    make("localhost", ca)
    make("dcu-0001", ca)


class Place:
    """A broker (or none), the client that goes there, and a foreign client on the other side."""

    def __init__(self, kind: str, folder: Path, extra: str = "") -> None:
        self.kind, self.folder = kind, folder
        self.broker: Any = None
        options: dict[str, Any] = {"kind": "mqtt"}
        if kind == "file":
            options = {"kind": "file", "url": str(folder / "out")}
        elif kind == "mqtt311":
            from iotcore import Broker

            self.broker = Broker(port=free_port(), listen="127.0.0.1", max_payload_size=200_000)
            self.broker.start()
            options["url"] = f"mqtt://127.0.0.1:{self.broker.port}"
        else:
            extra = f"user root\n{extra}"
            if kind != "mqtt5":
                certificates(folder)
                extra += (
                    f"cafile {folder}/ca.pem\ncertfile {folder}/localhost.pem\n"
                    f"keyfile {folder}/localhost.key\nrequire_certificate true\n"
                )
                options |= {
                    "ca_file": f"{folder}/ca.pem",
                    "cert_file": f"{folder}/dcu-0001.pem",
                    "key_file": f"{folder}/dcu-0001.key",
                }
            self.broker = Mosquitto(folder, extra)
            scheme = {"mqtt5": "mqtt://", "mtls": "mqtts://", "aws": ""}[kind]
            options["url"] = f"{scheme}localhost:{self.broker.port}"
            options["kind"] = "aws" if kind == "aws" else "mqtt"
        self.options = options

    @property
    def port(self) -> int:
        return int(self.broker.port)

    def rewrite(self, old: str, new: str) -> None:
        """Start mosquitto anew with another configuration."""
        self.broker.kill()
        text = self.broker.config.read_text()
        assert old in text
        self.broker.config.write_text(text.replace(old, new))
        self.broker.start()

    def client(self, **changes: Any) -> Client:
        config = Config(gateway=Gateway(id="dcu-0001"), uplink=Uplink(**(self.options | changes)))
        return make_client(config, DOWN)

    def other_side(self) -> mqtt.Client:
        """A paho client of its own, subscribed to everything upward; `heard` collects it."""
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        if self.kind in ("mtls", "aws"):
            context = ssl.create_default_context(cafile=f"{self.folder}/ca.pem")
            context.load_cert_chain(f"{self.folder}/dcu-0001.pem", f"{self.folder}/dcu-0001.key")
            client.tls_set_context(context)
        heard: list[tuple[str, bytes]] = []
        ready = threading.Event()
        client.on_subscribe = lambda *_: ready.set()
        client.on_message = lambda c, u, m: heard.append((m.topic, bytes(m.payload)))
        client.connect("localhost", self.port)
        client.subscribe("dcu/+/reads/#", qos=1)
        client.loop_start()
        assert ready.wait(5)
        client.user_data_set(heard)
        return client

    def close(self) -> None:
        if self.broker is not None:
            (self.broker.kill if isinstance(self.broker, Mosquitto) else self.broker.stop)()


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Callable[..., Place]]:
    """Makes places; their brokers are stopped at the end."""
    made: list[Place] = []

    def make(kind: str, extra: str = "") -> Place:
        made.append(Place(kind, tmp_path, extra))
        return made[-1]

    yield make
    for place in made:
        place.close()


@pytest.fixture(params=[*BROKERS, "file"])
def place(request: pytest.FixtureRequest, places: Callable[..., Place]) -> Place:
    return places(request.param)


@pytest.fixture
async def client(place: Place) -> AsyncIterator[Client]:
    client = place.client()
    yield client
    await client.close()


def received(place: Place, other: Any) -> list[tuple[str, bytes]]:
    if place.kind == "file":
        root = place.folder / "out"
        return [
            (str(f.parent.relative_to(root)), f.read_bytes()) for f in sorted(root.rglob("*.json"))
        ]
    heard: list[tuple[str, bytes]] = other.user_data_get()
    return heard


async def test_what_is_published_is_there(place: Place, client: Client) -> None:
    other = None if place.kind == "file" else await asyncio.to_thread(place.other_side)
    await client.connect()
    assert client.receive_maximum >= 10
    sent = [payload(n, size) for n, size in enumerate((0, 10, 99_000, 1_000), start=1)]
    for octets in sent:
        await client.publish(UP, octets)
    await eventually(lambda: received(place, other) == [(UP, octets) for octets in sent])
    await asyncio.gather(*(client.publish(UP, payload(n)) for n in range(10, 30)))
    await eventually(lambda: len(received(place, other)) == 24)
    if other:
        other.disconnect()
        other.loop_stop()


async def test_nothing_leaves_without_a_connection(client: Client, place: Place) -> None:
    if place.kind != "file":  # a directory is always there
        with pytest.raises(NotConnected):
            await client.publish(UP, payload(1))
        with pytest.raises(errors.BrokerUnreachable):
            await anext(client.messages())


async def test_close_ends_the_messages_quietly(client: Client) -> None:
    await client.connect()

    async def listen() -> int:
        return len([message async for message in client.messages()])

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0)
    await client.close()
    async with asyncio.timeout(5):
        assert await listening == 0
    await client.close()


async def test_it_connects_again(client: Client) -> None:
    for n in range(1, 4):
        await client.connect()
        await client.publish(UP, payload(n))
        await client.close()


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest, places: Callable[..., Place]) -> Place:
    return places(request.param)


async def test_what_comes_down_arrives(broker: Place) -> None:
    client = broker.client()
    other = await asyncio.to_thread(broker.other_side)
    await client.connect()
    messages = client.messages()
    for topic, octets in (("acks", b'{"a":1}'), ("commands/x", b""), ("acks", b"\xff" * 4_800)):
        other.publish(f"dcu/dcu-0001/down/{topic}", octets, qos=1)
        async with asyncio.timeout(5):
            message = await anext(messages)
        assert message == (f"dcu/dcu-0001/down/{topic}", octets)
    other.publish("dcu/dcu-0002/down/acks", b"{}", qos=1)
    other.publish("dcu/dcu-0001/down/acks", b"last", qos=1)
    async with asyncio.timeout(5):
        assert (await anext(messages)).payload == b"last"
    await client.close()
    other.disconnect()
    other.loop_stop()


async def test_a_broker_that_dies_ends_everything_that_waits(broker: Place) -> None:
    client = broker.client()
    await client.connect()
    broker.close()
    with pytest.raises(errors.BrokerUnreachable):
        await asyncio.wait_for(anext(client.messages()), 10)
    with pytest.raises(errors.BrokerUnreachable):
        await client.publish(UP, payload(1))
    with pytest.raises(errors.BrokerUnreachable):
        await client.connect()
    await client.close()


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["mqtt5", "mtls", "aws"])
async def test_a_frozen_broker_is_a_bounded_wait(places: Callable[..., Place], kind: str) -> None:
    place = places(kind)
    client = place.client()
    await client.connect()
    place.broker.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(errors.BrokerUnreachable, match=r"no answer|no PUBACK"):
            await client.publish(UP, payload(1))
        assert 5 < time.monotonic() - began < 14
        with pytest.raises(errors.BrokerUnreachable):
            await asyncio.wait_for(client.connect(), 16)
    finally:
        place.broker.signal(signal.SIGCONT)
    await client.connect()
    await client.publish(UP, payload(1))
    await client.close()


@pytest.mark.parametrize("kind", ["mqtt5", "aws"])
async def test_the_brokers_no_is_a_refusal_of_this_message_only(
    tmp_path: Path, places: Callable[..., Place], kind: str
) -> None:
    acl = tmp_path / "acl"
    acl.write_text("pattern readwrite dcu/dcu-0001/reads/#\npattern read dcu/dcu-0001/down/#\n")
    place = places(kind, f"acl_file {acl}\n")
    client = place.client()
    await client.connect()
    with pytest.raises(errors.PublishRefused) as caught:
        await client.publish("dcu/dcu-0001/events", payload(1))
    assert caught.value.code == 0x87
    await client.publish(UP, payload(2))
    with pytest.raises(errors.PublishRefused):
        await client.publish("dcu/dcu-0001/down/acks", payload(3))
    await client.close()


async def test_limits_of_the_broker_are_known(places: Callable[..., Place]) -> None:
    place = places("mqtt5", "max_packet_size 9000\n")
    place.rewrite("messages 100\n", "messages 7\n")
    client = place.client()
    await client.connect()
    assert client.receive_maximum == 7
    assert client.max_payload is not None
    assert 8_500 < client.max_payload < 9_000
    await client.publish(UP, payload(1, client.max_payload - len(payload(1))))
    await client.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ca_file": "/nonexistent/ca.pem"}, "nonexistent|Invalid|IO"),
        ({"cert_file": "/nonexistent/c.pem"}, "nonexistent"),
        ({"ca_file": ""}, "certificate|CERTIFICATE|TLS"),
    ],
)
@pytest.mark.parametrize("kind", ["mtls", "aws"])
async def test_wrong_certificates_name_themselves(
    places: Callable[..., Place], kind: str, change: dict[str, Any], says: str
) -> None:
    place = places(kind)
    client = place.client(**change)
    with pytest.raises(errors.BrokerUnreachable, match=says):
        await client.connect()


async def test_password_from_a_private_file(tmp_path: Path, places: Callable[..., Place]) -> None:
    secret = tmp_path / "password"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    users = tmp_path / "users"
    tool = program("mosquitto_passwd", "mosquitto")
    subprocess.run([tool, "-b", "-c", users, "dcu", "s3cret"], check=True)
    place = places("mqtt5", f"password_file {users}\n")
    place.rewrite("allow_anonymous true", "allow_anonymous false")
    client = place.client
    good = client(username="dcu", password=f"file:{secret}")
    await good.connect()
    await good.close()
    for wrong in (client(), client(username="dcu", password=f"file:{users}")):
        with pytest.raises(errors.BrokerUnreachable) as caught:
            await wrong.connect()
        assert "s3cret" not in str(caught.value)
    secret.chmod(0o644)
    with pytest.raises(errors.BrokerUnreachable, match="credentials"):
        await client(username="dcu", password=f"file:{secret}").connect()


class Proxy(threading.Thread):
    """An HTTP proxy that knows CONNECT, once."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        super().__init__(daemon=True)
        self.answer, self.asked = answer, b""
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.start()

    def run(self) -> None:
        near, _ = self.server.accept()
        self.server.close()
        while not self.asked.endswith(b"\r\n\r\n"):
            self.asked += near.recv(1000)
        near.sendall(self.answer)
        if b"200" not in self.answer:
            near.close()
            return
        host, port = self.asked.split()[1].split(b":")
        far = socket.create_connection((host.decode(), int(port)))

        def pump(a: socket.socket, b: socket.socket) -> None:
            with contextlib.suppress(OSError):  # either side may hang up as it likes
                while octets := a.recv(65_536):
                    b.sendall(octets)
                b.shutdown(socket.SHUT_WR)

        back = threading.Thread(target=pump, args=(far, near), daemon=True)
        back.start()
        pump(near, far)
        back.join(5)
        near.close()
        far.close()


@pytest.mark.parametrize("kind", ["mqtt5", "mtls", "aws"])
async def test_through_an_http_proxy(places: Callable[..., Place], kind: str) -> None:
    place, proxy = places(kind), Proxy()
    client = place.client(proxy=f"http://127.0.0.1:{proxy.port}")
    await client.connect()
    await client.publish(UP, payload(1))
    assert proxy.asked.startswith(f"CONNECT localhost:{place.port} ".encode())
    await client.close()
    await asyncio.to_thread(proxy.join, 5)
    refusing = Proxy(b"HTTP/1.1 403 Forbidden\r\n\r\n")
    client = place.client(proxy=f"http://127.0.0.1:{refusing.port}")
    with pytest.raises(errors.BrokerUnreachable):
        await client.connect()
    await client.close()


@pytest.mark.parametrize(("kind", "url"), [("mqtt", "http://x"), ("mqtt", "mqtt://"), ("aws", "")])
def test_urls_that_are_none(kind: str, url: str) -> None:
    config = Config(gateway=Gateway(id="d"), uplink=Uplink(kind=kind, url=url))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected"):
        make_client(config, DOWN)


async def test_a_directory_keeps_one_document_a_message(tmp_path: Path) -> None:
    place = Place("file", tmp_path)
    client = place.client()
    assert client.confirms
    await client.connect()
    await client.publish(UP, payload(7))
    await client.publish(UP, payload(7))
    await client.publish("dcu/dcu-0001/health", payload(0))
    await client.publish("dcu/dcu-0001/health", payload(0, 1))
    names = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    assert names == [
        "dcu/dcu-0001/health/latest.json",
        "dcu/dcu-0001/reads/interval/1764000000-000000000007.json",
    ]
    for topic, octets in (("../x", payload(1)), ("a//b", payload(1)), (UP, b"no json")):
        with pytest.raises(errors.PublishRefused):
            await client.publish(topic, octets)
    await client.close()


async def test_a_directory_that_cannot_be_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    client = Place("file", tmp_path).client()
    with pytest.raises(errors.BrokerUnreachable):
        await client.connect()
