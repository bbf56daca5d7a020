"""The IoT services of a gateway: what they measure, what they may change, whom they tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_core.uplink.certificates import Certificates
from edge_core.uplink.services import Services

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from edge_core.gateway.root import Gateway

REFUSALS = ("association-refused", "key-rejected")
KINDS = ("aws", "mqtt")


def make_services(
    gateway: Gateway,
    publish: Callable[[str, bytes], Awaitable[None]],
    reconnect: Callable[[], Awaitable[None]],
) -> Services | None:
    """The services that the configuration asks for; None if it asks for none.

    Args:
        publish, reconnect: through the sender.
    """
    uplink = gateway.config.uplink
    if uplink.kind not in KINDS:
        return None
    certificates: Certificates | None = None
    if uplink.kind == "aws" and uplink.cert_file:
        found = Certificates(uplink.cert_file, uplink.key_file)
        certificates = found if found.ours else None
    if certificates is None and not uplink.defender_every and uplink.configured_by == "off":
        return None
    return Services(
        gateway.config,
        gateway.clock,
        publish=publish,
        metrics=lambda: figures(gateway),
        configure=gateway.configure,
        changed=gateway.configured,
        certificates=certificates,
        reconnect=reconnect,
        expiring=lambda left_s: gateway.alarm("certificate", {"ends_in_s": round(left_s)}),
    )


def figures(gateway: Gateway) -> dict[str, int]:
    """Device Defender's figures, as far as this process has them."""
    out: dict[str, Any] = {"journal_depth": gateway.journal.status().segments_waiting}
    if gateway.poller.meters:
        counts = gateway.poller.counts
        out["failed_associations"] = sum(counts[cause] for cause in REFUSALS)
    if gateway.listener is not None:
        out["unknown_senders"] = gateway.listener.counts["unknown-sender"]
    return out
