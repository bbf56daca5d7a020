"""Where a message's octets lie in the lake: `<kind>/day=<d>/dcu=<id>/<epoch>-<n>.json`.

The key is made of the message alone, so a resend finds its own object, on whatever day it arrives.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from opendcu_cloud.envelope import ALARM_CLASSES, READS

if TYPE_CHECKING:
    from opendcu_cloud.envelope import Message

_SAFE = re.compile(r"[^A-Za-z0-9_.:=-]")


def object_key(message: Message) -> str:
    """The key of a numbered message. Kinds: those of reads, the classes of alarms, else the topic's third level."""
    kind = message.sub if message.group in ("reads", "alarms") else message.group
    day = datetime.fromtimestamp(message.sent, UTC).date().isoformat()
    return f"{kind}/day={day}/dcu={_safe(message.dcu)}/{message.epoch}-{message.n}.json"


def topic_of(key: str, payload: bytes, prefix: str = "dcu") -> str:
    """The topic that a stored message came by, for reading it again.

    Raises:
        ValueError: no key of a stored message.
    """
    parts = key.split("/")
    if len(parts) != 4 or not parts[2].startswith("dcu="):
        raise ValueError(f"{key!r} is no key of a stored message")
    kind, dcu = parts[0], unquote(parts[2].removeprefix("dcu="))
    if kind in READS:
        return f"{prefix}/{dcu}/reads/{kind}"
    if kind in ALARM_CLASSES:
        return f"{prefix}/{dcu}/alarms/{kind}"
    if kind == "replies":
        return f"{prefix}/{dcu}/replies/{msgspec.json.decode(payload)['id']}"
    return f"{prefix}/{dcu}/{kind}"


def beside_key(key: str, payload: bytes) -> str:
    """The key for other octets under the same number: they are kept, and found by whoever reads `*.json`."""
    return f"{key.removesuffix('.json')}.{hashlib.sha256(payload).hexdigest()[:16]}.json"


def refused_key(topic: str, payload: bytes, received: int) -> str:
    """The key of a message that was refused, kept for a redrive; `received` in UTC epoch seconds."""
    day = datetime.fromtimestamp(received, UTC).date().isoformat()
    dcu = (topic.split("/") + ["", ""])[1]
    return f"refused/day={day}/dcu={_safe(dcu)}/{hashlib.sha256(topic.encode() + b' ' + payload).hexdigest()[:32]}.bin"


def _safe(text: str) -> str:
    return _SAFE.sub(lambda m: "".join(f"%{octet:02X}" for octet in m[0].encode()), text)
