"""A place in the fleet: id, address and keys stay, the device in it may be swapped."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from simulators.dlms.device import Device
from simulators.dlms.suites import SIZES, Pairs, public
from simulators.faults import Faults

if TYPE_CHECKING:
    from edge_core.clock import Clock
    from simulators.dlms.layouts import Layout
    from simulators.dlms.record import Counters, Record

SECURITIES = {
    "none": (0, False),
    "lls": (1, False),
    "hls2": (2, False),
    "hls3": (3, False),
    "hls4": (4, False),
    "hls5": (5, True),
    "hls6": (6, False),
    "hls7": (7, False),
}
"""Authentication mechanism and whether the association must be ciphered, by the word of DESIGN section 3."""

QUIRKS = frozenset(
    (
        "null-data",
        "delta",
        "compact-array",
        "range-open",
        "no-selection",
        "newest-first",
        "service-glo-only",
        "general-block-transfer",
        "block-loss",
    )
)


@dataclass(frozen=True, repr=False)
class Keys:
    """Secrets of one meter, derived from the seed: test keys, worth nothing elsewhere."""

    guek: bytes
    gak: bytes
    password: str
    hls: bytes
    master: bytes = b""
    sign: bytes = b""
    agree: bytes = b""
    client_sign: bytes = b""
    client_agree: bytes = b""

    @classmethod
    def derive(cls, meter: str, seed: int, suite: int = 0) -> Keys:
        """Keys of a meter id under a seed; in suites 1 and 2 with the private keys of both sides."""

        def part(name: str, octets: int = 16) -> bytes:
            text = f"simulated/{seed}/{meter}/{name}".encode()
            return (
                hashlib.shake_256(text).digest(octets)
                if octets > 16
                else (hashlib.sha256(text).digest()[:octets])
            )

        size = 32 if suite == 2 else 16
        keys = cls(part("guek", size), part("gak", size), part("password").hex()[:12], part("hls"))
        if not suite:
            return keys
        curve = SIZES[suite]
        # the first octet is 0, so that the number is below the order of the curve
        private = [
            b"\0" + part(name, curve - 1)
            for name in ("sign", "agree", "client_sign", "client_agree")
        ]
        return replace(
            keys,
            master=part("master", size),
            sign=private[0],
            agree=private[1],
            client_sign=private[2],
            client_agree=private[3],
        )

    def changed(self) -> Keys:
        """The keys after somebody changed them at the meter."""

        def flip(key: bytes) -> bytes:
            return key[:1] + bytes(a ^ 0x5A for a in key[1:])

        return replace(
            self,
            guek=bytes(a ^ 0x5A for a in self.guek),
            password=self.password[::-1],
            hls=bytes(a ^ 0x5A for a in self.hls),
            sign=flip(self.sign),
            client_sign=flip(self.client_sign),
        )

    def pairs(self, suite: int) -> Pairs | None:
        """What the meter itself holds of the key pairs; None in suite 0."""
        return _pairs(self, suite) if suite else None


@lru_cache(maxsize=256)
def _pairs(keys: Keys, suite: int) -> Pairs:
    return Pairs(
        suite,
        keys.master,
        keys.sign,
        keys.agree,
        public(suite, keys.client_sign),
        public(suite, keys.client_agree),
    )


@dataclass
class Meter:
    """One simulated DLMS meter.

    Attributes:
        id: the utility's meter number.
        suite: security suite.
        index: position in the fleet, and which load curve.
        framing: wrapper or hdlc.
        transport: tcp or udp.
        hdlc: logical and physical server address.
        answer_s: how long every answer takes (wrapper over TCP).
        contacts: associations of the management client that were completed.
        sent_gasps: datagrams of last gasps, for replays.
    """

    id: str
    line: str
    layout: Layout
    index: int
    seed: int
    security: str
    keys: Keys
    clock: Clock
    record: Record
    device: Device
    framing: str = "wrapper"
    transport: str = "tcp"
    hdlc: tuple[int, int] = (1, 17)
    max_pdu: int = 1024
    suite: int = 0
    quirks: frozenset[str] = frozenset()
    host: str = "127.0.0.1"
    port: int = 0
    zone_name: str = ""
    answer_s: float = 0.0
    extra: dict[str, str] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    former: list[Device] = field(default_factory=list)
    sent_gasps: list[bytes] = field(default_factory=list)
    contacts: int = 0
    frozen: bool = False
    own_start: int = 0
    relay_closed: bool = True
    _counters: tuple[str, bytes, Counters] | None = None

    @property
    def client(self) -> int:
        """Client SAP of the meter's security."""
        clients = self.layout.clients
        return clients.get(self.security, clients["hls5"])

    @property
    def model(self) -> str:
        return self.layout.name

    @property
    def address(self) -> str:
        """As `[[meters]]` writes it."""
        tail = f"/{self.hdlc[0]}.{self.hdlc[1]}" if self.framing == "hdlc" else ""
        return f"{self.host}:{self.port}{tail}"

    def has(self, fault: str) -> bool:
        return self.faults.has(fault, self.clock.monotonic())

    def keys_now(self) -> Keys:
        """The keys that the meter goes by at the moment."""
        return self.keys.changed() if self.has("wrong-key") else self.keys

    def counters(self) -> Counters:
        """Counters of the present device under its key."""
        serial, key = self.device.serial, self.keys_now().guek
        if self._counters is None or self._counters[:2] != (serial, key):
            start = 1_000 + 37 * (self.device.number % 1000)
            self._counters = (serial, key, self.record.counters(serial, key, self.own_start, start))
        return self._counters[2]

    def capture(self) -> None:
        """Bring the device's buffers up to its clock."""
        if not self.frozen:
            self.device.capture(self.clock.now(), missing=self.has("rows-missing"))

    def freeze(self) -> None:
        """Capture what is due now, and nothing after it."""
        self.capture()
        self.frozen = True

    def swap(self) -> None:
        """Another device of the same model behind the same address and keys, with an empty memory."""
        self.capture()
        self.former.append(self.device)
        self.device = Device(
            self.layout,
            self.device.number + 1_000_000,
            self.index + 17,
            self.seed,
            int(self.clock.now()),
            self.zone_name,
        )
        self.sent_gasps.clear()
