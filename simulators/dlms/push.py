"""Pushes of the simulated meters: IS 15959 alerts (last gasp, first breath) as ciphered DataNotifications.

Shape: general-glo-ciphering around a DataNotification of structure(device id, push setup 0.4.25.9.0.255, clock, event
status word of 128 bits); the bits, not the event ids: 85 = last gasp, 86 = first breath. Sent from the meter's own
address by UDP, one datagram each, or by TCP. IDIS meters push their alarm descriptor instead: structure(push setup,
logical device name, 0.0.97.98.20.255), with the date-time in the notification's header. SMR 5 meters push alarm registers
in the clear, without a time: structure(equipment identifier, push setup, register 1, register 2), or register 3 alone.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from edge_core.domain import alarm_id
from simulators.dlms import codec
from simulators.dlms.layouts import POWER_BACK, POWER_FAILED
from simulators.dlms.lines import wrap

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_core.clock import Clock
    from simulators.dlms.meter import Meter

PUSH_SETUP, PUSH_CLIENT = "0.4.25.9.0.255", 64
LAST_GASP, FIRST_BREATH = 85, 86
CODES = {LAST_GASP: "last-gasp", FIRST_BREATH: "restore"}
HOW = frozenset(("genuine", "retry", "duplicate", "replay", "forged-tag", "forged-key", "plain"))


def notification(meter: Meter, at: int, bit: int, counter: int) -> bytes:
    """The plain DataNotification of an event at `at` on the meter's clock, UTC epoch seconds."""
    device = meter.device
    return (
        b"\x0f"
        + (0xC0000000 | counter & 0xFFFFFF).to_bytes(4, "big")
        + b"\x00"
        + codec.structure(
            codec.octet_string(device.device_id.encode()),
            codec.octet_string(codec.logical_name(PUSH_SETUP)),
            codec.octet_string(codec.date_time(at, device.zone, east=meter.layout.east)),
            codec.bit_string(1 << bit, 128),
        )
    )


def alarm_notification(meter: Meter, at: int, descriptor: int, counter: int) -> bytes:
    """The plain DataNotification of an IDIS alarm descriptor."""
    device = meter.device
    name = str(meter.layout.nameplate["0.0.42.0.0.255"]).format(serial=device.serial)
    stamp = codec.date_time(at, device.zone, east=meter.layout.east)
    return (
        b"\x0f"
        + (0x40000000 | counter & 0xFFFFFF).to_bytes(4, "big")
        + codec.length(len(stamp))  # length-prefixed, without a tag
        + stamp
        + codec.structure(
            codec.octet_string(codec.logical_name(PUSH_SETUP)),
            codec.octet_string(name.encode()),
            codec.u32(descriptor),
        )
    )


REGISTERS = {1: ("0.1.25.9.0.255", 2), 2: ("0.1.25.9.0.255", 2), 3: ("0.3.25.9.0.255", 1)}
"""Push setup of an SMR 5 alarm register, and how many registers stand in it."""


def register_notification(meter: Meter, register: int, value: int, counter: int) -> bytes:
    """The plain DataNotification of an SMR 5 alarm register (1 to 3); it carries no time."""
    setup, count = REGISTERS[register]
    name = str(meter.layout.nameplate["0.0.96.1.1.255"]).format(serial=meter.device.serial)
    words = [value if number == (register - 1) % 2 else 0 for number in range(count)]
    return (
        b"\x0f"
        + (0x40000000 | counter & 0xFFFFFF).to_bytes(4, "big")
        + b"\x00"
        + codec.structure(
            codec.octet_string(name.encode()),
            codec.octet_string(codec.logical_name(setup)),
            *(codec.u32(word) for word in words),
        )
    )


def push_register(meter: Meter, to: str, register: int, value: int, real: Clock) -> dict[str, Any]:
    """Send an SMR 5 alarm register, in the clear as these meters do.

    Returns:
        {"meter", "register", "value", "sent"}.

    Raises:
        ValueError: not an SMR 5 meter, no such register, or no such destination.
    """
    if meter.model != "smr5":
        raise ValueError(f"meter {meter.id}: an {meter.model} meter pushes no alarm register")
    if register not in REGISTERS or not 0 < value < 1 << 32:
        raise ValueError(f"no alarm register {register} with value {value}")
    scheme, host, port = _destination(to)
    body = register_notification(meter, register, value, meter.counters().next_own())
    sent = real.now()
    _send(meter, scheme, (host, port), [wrap(1, PUSH_CLIENT, body)])
    return {"meter": meter.id, "register": register, "value": value, "sent": sent}


def _sealed(meter: Meter, key: bytes, plain: Callable[[int], bytes]) -> bytes:
    """A WPDU with a notification under the meter's next counter, which `plain` may use."""
    counter, title = meter.counters().next_own(), meter.device.title
    body = codec.seal(key, meter.keys.gak, title, counter, plain(counter))
    return wrap(1, PUSH_CLIENT, b"\xdb\x08" + title + codec.length(len(body)) + body)


def push_alarm(meter: Meter, to: str, descriptor: int, real: Clock) -> dict[str, Any]:
    """Send an IDIS alarm descriptor.

    Returns:
        {"meter", "descriptor", "at", "sent"}.

    Raises:
        ValueError: not an IDIS meter, a descriptor that is no 32-bit number, or no such destination.
    """
    if meter.layout.east:
        raise ValueError(f"meter {meter.id}: an {meter.model} meter has no alarm descriptor")
    if not 0 < descriptor < 1 << 32:
        raise ValueError(f"{descriptor} is no alarm descriptor of 32 bits")
    scheme, host, port = _destination(to)
    at = int(meter.clock.now()) + meter.device.offset
    frame = _sealed(meter, meter.keys.guek, lambda n: alarm_notification(meter, at, descriptor, n))
    sent = real.now()
    _send(meter, scheme, (host, port), [frame])
    return {"meter": meter.id, "descriptor": descriptor, "at": at, "sent": sent}


def push(meter: Meter, to: str, how: str, bit: int, real: Clock) -> dict[str, Any]:
    """Send one alert, and say what a listener should make of it.

    Args:
        to: `udp://host:port` or `tcp://host:port`.
        how: `genuine`; `retry` = again with a fresh counter, same event; `duplicate` = one datagram three times;
            `replay` = the last datagram that was sent before; `forged-tag`, `forged-key`, `plain`: not from the meter.
        real: the unscaled clock, for `sent`.

    Returns:
        {"meter", "code", "at", "id", "how", "genuine", "datagrams", "sent"}; `sent` in real epoch seconds.

    Raises:
        ValueError: no such way, no such destination, or nothing to replay.
    """
    if how not in HOW:
        raise ValueError(f"no way {how!r} to push: one of {', '.join(sorted(HOW))}")
    scheme, host, port = _destination(to)
    if meter.device.off_since is None or bit == FIRST_BREATH:
        meter.capture()
    at = int(meter.clock.now()) + meter.device.offset
    genuine = how in ("genuine", "retry", "duplicate")

    def sealed(key: bytes) -> bytes:
        return _sealed(meter, key, lambda n: notification(meter, at, bit, n))

    if how == "replay":
        if not meter.sent_gasps:
            raise ValueError(f"meter {meter.id} has sent nothing yet that could be replayed")
        frames = meter.sent_gasps[-1:]
    elif how == "forged-tag":
        frame = sealed(meter.keys.guek)
        frames = [frame[:-1] + bytes([frame[-1] ^ 1])]
    elif how == "forged-key":
        frames = [sealed(bytes(16))]
    elif how == "plain":
        frames = [wrap(1, PUSH_CLIENT, notification(meter, at, bit, 1))]
    else:
        frames = [sealed(meter.keys.guek)]
        if how == "duplicate":
            frames *= 3
        elif how == "retry":
            frames.append(sealed(meter.keys.guek))
        meter.sent_gasps = (meter.sent_gasps + frames)[-8:]
        log, code = (POWER_FAILED if bit == LAST_GASP else POWER_BACK)[meter.model]
        meter.device.note_event(log, code, at - meter.device.offset)
    sent = real.now()
    _send(meter, scheme, (host, port), frames)
    code_name = CODES[bit]
    return {
        "meter": meter.id,
        "code": code_name,
        "at": at,
        "id": alarm_id(meter.id, code_name, (), at),
        "how": how,
        "genuine": genuine,
        "datagrams": len(frames),
        "sent": sent,
    }


def _destination(to: str) -> tuple[str, str, int]:
    scheme, _, place = to.partition("://")
    host, _, port = place.rpartition(":")
    if scheme not in ("udp", "tcp") or not host or not port.isdigit():
        raise ValueError(f"{to!r} is neither udp://host:port nor tcp://host:port")
    return scheme, host, int(port)


def _send(meter: Meter, scheme: str, place: tuple[str, int], frames: list[bytes]) -> None:
    if scheme == "tcp":
        with socket.create_connection(place, 2, source_address=(meter.host, 0)) as line:
            line.sendall(b"".join(frames))
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        # the meter's own address; made and given back at once, for there are thousands of meters
        line.bind((meter.host, meter.port if meter.transport == "tcp" else 0))
        for frame in frames:
            line.sendto(frame, place)
