"""A place in the fleet: id, address and keys stay, the device in it may be swapped."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from simulators.dlms.device import Device
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
}
"""Authentication mechanism and whether the association is ciphered, by the word of DESIGN section 3."""

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
    )
)


@dataclass(frozen=True, repr=False)
class Keys:
    """Secrets of one meter, derived from the seed: test keys, worth nothing elsewhere."""

    guek: bytes
    gak: bytes
    password: str
    hls: bytes

    @classmethod
    def derive(cls, meter: str, seed: int) -> Keys:
        """Keys of a meter id under a seed."""

        def part(name: str) -> bytes:
            return hashlib.sha256(f"simulated/{seed}/{meter}/{name}".encode()).digest()[:16]

        return cls(part("guek"), part("gak"), part("password").hex()[:12], part("hls"))

    def changed(self) -> Keys:
        """The keys after somebody changed them at the meter."""
        flip = bytes(a ^ 0x5A for a in self.guek)
        return Keys(flip, self.gak, self.password[::-1], bytes(a ^ 0x5A for a in self.hls))


@dataclass
class Meter:
    """One simulated DLMS meter.

    Attributes:
        id: the utility's meter number.
        index: position in the fleet, and which load curve.
        framing: wrapper or hdlc.
        transport: tcp or udp.
        hdlc: logical and physical server address.
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
    quirks: frozenset[str] = frozenset()
    host: str = "127.0.0.1"
    port: int = 0
    zone_name: str = ""
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
