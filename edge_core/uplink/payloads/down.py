"""What comes down: acknowledgements and commands. Everything here is bounded before it is believed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from edge_core.uplink.payloads.envelope import Natural

MAX_DOWNWARD = 8_192  # octets; the contract allows 4,800


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """What one batch of the cloud stored.

    Attributes:
        acked: ranges of n, both ends included.
        rejected: [n, code, why]; set aside here, freed by a later ack.
        high: the highest n stored for this epoch.
    """

    schema: Literal["opendcu.ack/1"]
    dcu: str
    epoch: Natural
    acked: list[tuple[Natural, Natural]] = []
    rejected: list[tuple[Natural, str, str]] = []
    high: Natural = 0


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """An order of the cloud.

    Attributes:
        id: names the command; repeats of it are answered from the record.
        expires: UTC epoch seconds after which it is not begun.
        sig: Ed25519 over the canonical JSON, base64 or hex, for the commands that need one.
        of, nonce: of `confirm`: the command that is confirmed, and the nonce of its `accepted` reply.
    """

    schema: Literal["opendcu.command/1"]
    id: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_.:-]{1,64}$")]
    do: Literal[
        "read", "ping", "backfill", "park", "unpark", "clock-set", "relay", "image-transfer", "push-setup",
        "key-change", "fleet-sync", "confirm",
    ]  # fmt: skip
    meter: str = ""
    args: dict[str, Any] = {}
    expires: int = 0
    sig: str = ""
    of: str = ""
    nonce: str = ""


_acks = msgspec.json.Decoder(Ack)


def decode_ack(payload: bytes) -> Ack:
    """An acknowledgement.

    Raises:
        ValueError: too long, no JSON, or not what the schema says.
    """
    if len(payload) > MAX_DOWNWARD:
        raise ValueError(f"{len(payload)} octets, at most {MAX_DOWNWARD}")
    return _acks.decode(payload)
