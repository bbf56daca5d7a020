"""Ways to the cloud: one connection, one publish, one stream of what comes down.

A client serves one connection at a time and never reconnects on its own: the sender's loop does, with back-off. Every
wait is bounded. `publish` returns when the other side has confirmed (PUBACK; for files the fsynced rename).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from edge_core import errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from edge_core.config.schema import Config
    from edge_core.uplink.certificates import Certificates


class Downward(NamedTuple):
    """A message from the cloud."""

    topic: str
    payload: bytes


class NotConnected(errors.BrokerUnreachable):
    """Nothing left this box: there was no connection."""


class Client(Protocol):
    """One way to the cloud."""

    @property
    def confirms(self) -> bool:
        """A returned publish means stored for good: nobody sends acks (files)."""
        ...

    @property
    def receive_maximum(self) -> int:
        """Publishes that the other side takes before it has confirmed one; valid while connected."""
        ...

    @property
    def max_payload(self) -> int | None:
        """Octets of payload that the other side takes, or None when it does not say; valid while connected."""
        ...

    async def connect(self) -> None:
        """Connect and subscribe.

        Raises:
            BrokerUnreachable: with the reason, in words for a field engineer.
        """
        ...

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish at least once and wait for the confirmation.

        Raises:
            NotConnected: nothing was sent.
            BrokerUnreachable: the connection broke before the confirmation.
            PublishRefused: the other side refused this message.
        """
        ...

    def messages(self) -> AsyncIterator[Downward]:
        """What comes down, until the connection ends.

        Raises:
            BrokerUnreachable: the connection broke.
        """
        ...

    async def close(self) -> None:
        """Disconnect; `messages` ends. Never raises."""
        ...


def make_client(
    config: Config,
    subscription: str,
    *,
    also: Sequence[str] = (),
    certificates: Certificates | None = None,
) -> Client:
    """The client that `[uplink] kind` names; what it needs is imported now.

    Args:
        subscription: the topic filter without which nothing works.
        also: further filters (mqtt and aws); one that is refused is told and done without.
        certificates: where the certificate is renewed (aws): which one to show, and whom to tell that it connected.

    Raises:
        ImportError: the extra of that kind is not installed.
        ValueError: the url cannot be understood, or nothing serves that kind.
    """
    uplink, dcu = config.uplink, config.gateway.id
    if uplink.kind == "mqtt":
        from edge_core.uplink.clients.mqtt import MqttClient

        return MqttClient(uplink, client_id=dcu, subscription=subscription, also=also)
    if uplink.kind == "aws":
        from edge_core.uplink.clients.aws import AwsClient

        return AwsClient(
            uplink,
            client_id=dcu,
            subscription=subscription,
            also=also,
            certificates=certificates,
        )
    if uplink.kind == "file":
        from edge_core.uplink.clients.file import FileClient

        return FileClient(uplink.url)
    if uplink.kind == "greengrass":
        from edge_core.uplink.clients.greengrass import GreengrassClient

        return GreengrassClient(subscription)
    raise ValueError(f"[uplink] kind {uplink.kind!r} is served by nothing")
