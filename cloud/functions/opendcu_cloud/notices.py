"""Alarms, event-log rows, findings, health, completeness and replies as items of the table."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from opendcu_cloud.rows import DAY_S, Conflict, meter_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opendcu_cloud.envelope import Message


class Document(NamedTuple):
    """One item that holds a JSON text.

    Attributes:
        rank: what a later version is told by: it replaces the stored one when its rank is higher.
              None: the item never changes, its key says what it is.
    """

    pk: str
    sk: str
    ttl: int
    text: str
    rank: int | None = None


MASTER = "META"  # sort key of the meter master
REPLY_RANK = {"accepted": 1, "failed": 2, "done": 3}


def gateway_key(dcu: str) -> str:
    """Partition of everything that belongs to a gateway."""
    return f"G#{dcu}"


def request_key(request: str) -> str:
    """Partition of a command and its reply."""
    return f"R#{request}"


def documents(message: Message, days: int) -> Iterator[Document]:
    """The items of a message that is no reads, kept for `days`."""
    ttl = message.sent + days * DAY_S
    for alarm in message.alarms:
        yield _event(alarm.meter, message.dcu, alarm.at, alarm.id, ttl, msgspec.json.encode(alarm))
    for event in message.events:
        identity = f"{event.meter}|{event.device}|{event.log}|{event.at}|{event.k}|{event.code}"
        id_ = hashlib.sha256(identity.encode()).hexdigest()[:16]
        yield _event(event.meter, message.dcu, event.at, id_, ttl, msgspec.json.encode(event))
    for finding in message.findings:
        sk = f"A#{finding.from_:011d}#{finding.id}"
        yield Document(
            meter_key(finding.meter), sk, ttl, msgspec.json.encode(finding).decode(), finding.rev
        )
    text = message.payload.decode()
    if message.group == "health":
        yield Document(gateway_key(message.dcu), "HEALTH", ttl, text, message.sent)
    elif message.completeness is not None:
        sk = f"C#{message.completeness.day or message.sent}"
        yield Document(gateway_key(message.dcu), sk, ttl, text, message.sent)
    elif message.reply is not None:
        yield Document(
            request_key(message.reply.id),
            "R",
            message.sent + DAY_S,
            text,
            REPLY_RANK[message.reply.state],
        )


def served_by(pk: str, dcu: str, ttl: int) -> Document:
    """Which gateway reads a meter: where its commands go."""
    return Document(pk, "AT", ttl, msgspec.json.encode({"dcu": dcu}).decode())


def alarm_document(alarm: dict[str, Any], dcu: str, ttl: int) -> Document:
    """An alarm of the cloud's own among the meter's events."""
    return _event(alarm["meter"], dcu, alarm["at"], alarm["id"], ttl, msgspec.json.encode(alarm))


def conflict_alarm(
    dcu: str, meter: str, profile: str, conflicts: Iterable[Conflict], heard: int
) -> dict[str, Any]:
    """The alarm `value-conflict` of one meter and item, with the id that its repetition shares."""
    first = min(conflicts)
    return _alarm(
        dcu, meter, "meter", "value-conflict", first.identity.at, heard,
        {
            "device": first.identity.device,
            "profile": profile,
            "obis": first.identity.obis,
            "stored": list(first.stored.says) + [first.stored.read_at],
            "arrived": list(first.arrived.says) + [first.arrived.read_at],
        },
    )  # fmt: skip


def mismatch_alarm(dcu: str, meter: str, carried: int, master: int, heard: int) -> dict[str, Any]:
    """The alarm `multiplier-mismatch`: the gateway carries another CT x PT than the meter master."""
    alarm = _alarm(
        dcu,
        meter,
        "meter",
        "multiplier-mismatch",
        heard,
        heard,
        {"carried": carried, "master": master},
    )
    text = (
        f"{meter}|multiplier-mismatch||{carried}/{master}"  # the same difference is the same alarm
    )
    return alarm | {"id": hashlib.sha256(text.encode()).hexdigest()[:16]}


def multiplier_of(text: str) -> int:
    """The multiplier in the document of a meter master."""
    return int(msgspec.json.decode(text)["multiplier"])


def octets_alarm(message: Message, key: str, beside: str) -> dict[str, Any]:
    """The alarm that two different messages carry one number."""
    detail = {"epoch": message.epoch, "n": message.n, "key": key, "beside": beside}
    return _alarm(
        message.dcu, "", "gateway", "message-conflict", message.sent, message.sent, detail
    )


def alarm_envelope(alarm: dict[str, Any], dcu: str) -> str:
    """The body for an alarm queue: as a gateway's own, but from the cloud and without a number."""
    return msgspec.json.encode(
        {
            "schema": "opendcu.alarms/1",
            "dcu": dcu,
            "source": "cloud",
            "kind": alarm["class"],
            "alarms": [alarm],
        }
    ).decode()


def _alarm(
    dcu: str, meter: str, class_: str, code: str, at: int, heard: int, detail: dict[str, Any]
) -> dict[str, Any]:
    subject = meter or f"{dcu}/{detail.get('epoch')}/{detail.get('n')}"
    return {
        "id": hashlib.sha256(f"{subject}|{code}||{at}".encode()).hexdigest()[:16],
        "meter": meter, "class": class_, "code": code, "phases": [], "at": at, "heard": heard,
        "authenticated": False, "inferred": True, "iec61968": "", "detail": {"dcu": dcu, **detail},
    }  # fmt: skip


def _event(meter: str, dcu: str, at: int, id_: str, ttl: int, body: bytes) -> Document:
    pk = meter_key(meter) if meter else gateway_key(dcu)
    return Document(pk, f"E#{at:011d}#{id_}", ttl, body.decode())
