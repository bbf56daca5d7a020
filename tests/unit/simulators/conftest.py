"""A DLMS client of a few lines, made of the simulator's own octets: it asks a `Session`, without sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_core.clock import ManualClock
from simulators.dlms import codec
from simulators.dlms.meter import Meter
from simulators.dlms.session import Session
from simulators.fleet import Fleet
from simulators.spec import DlmsGroup, FleetSpec

NOW = 1_764_000_000.0  # 2025-11-24 16:00 UTC, 21:30 in India
TITLE = b"TSTCLNT1"
HLS5 = b"\x60\x85\x74\x05\x08\x02\x05"


class Client:
    """One client on one session; counters are the caller's."""

    def __init__(self, meter: Meter, sap: int = 48, counter: int = 100_000) -> None:
        self.meter, self.sap, self.counter = meter, sap, counter
        self.keys = meter.keys
        self.session = Session(meter, sap)
        self.meter_title = b""
        self.general = False

    def next(self) -> int:
        self.counter += 1
        return self.counter

    def seal(self, plain: bytes) -> bytes:
        return codec.seal(self.keys.guek, self.keys.gak, TITLE, self.next(), plain)

    def open(self, body: bytes) -> bytes:
        return codec.unseal(self.keys.guek, self.keys.gak, self.meter_title, body)

    def associate(self, *, pdu: int = 1024) -> None:
        self.aarq(pdu=pdu)
        self.reply_to_hls()

    def aarq(self, *, pdu: int = 1024) -> dict[int, bytes]:
        initiate = b"\x01\x00\x00\x00\x06\x5f\x1f\x04\x00\x40\x1e\x5d" + pdu.to_bytes(2, "big")
        sealed = self.seal(initiate)
        body = codec.tlv(0xA1, b"\x06\x07\x60\x85\x74\x05\x08\x01\x03") + codec.tlv(
            0xA6, codec.tlv(4, TITLE)
        )
        body += (
            b"\x8a\x02\x07\x80"
            + codec.tlv(0x8B, HLS5)
            + codec.tlv(0xAC, codec.tlv(0x80, b"challenge-of-16!"))
        )
        body += codec.tlv(0xBE, codec.tlv(4, codec.tlv(0x21, sealed)))
        aare = codec.ber_fields(self.session.handle(codec.tlv(0x60, body)))
        if 0xAA in aare:
            self.meter_title = codec.inner(aare[0xA4])
            self.s_to_c = codec.inner(aare[0xAA])
            self.initiate = self.open(codec.inner(codec.inner(aare[0xBE])))
        return aare

    def reply_to_hls(self, token_counter: int | None = None) -> bytes:
        counter = self.next() if token_counter is None else token_counter
        token = codec.gmac(self.keys.guek, self.keys.gak, TITLE, counter, self.s_to_c)
        request = b"\xc3\x01\xc1\x00\x0f\x00\x00\x28\x00\x00\xff\x01\x01" + codec.octet_string(
            token
        )
        answer = self.open(codec.inner(self.session.handle(codec.tlv(0xCB, self.seal(request)))))
        if answer[3] == 0:
            proof = answer[-17:]
            counter = int.from_bytes(proof[1:5], "big")
            want = codec.gmac(
                self.keys.guek, self.keys.gak, self.meter_title, counter, b"challenge-of-16!"
            )
            assert proof == want
        return answer

    def ask(self, plain: bytes) -> bytes:
        """One confirmed service in the protection of the association."""
        if self.general:
            sealed = self.seal(plain)
            request = b"\xdb\x08" + TITLE + codec.length(len(sealed)) + sealed
            answer = self.session.handle(request)
            assert answer[:2] == b"\xdb\x08"
            count, at = codec.read_length(answer, 10)
            return self.open(codec.take(answer, at, count)[0])
        tags = {0xC0: 0xC8, 0xC1: 0xC9, 0xC3: 0xCB}
        return self.open(
            codec.inner(self.session.handle(codec.tlv(tags[plain[0]], self.seal(plain))))
        )

    def get(
        self, class_id: int, obis: str, attribute: int = 2, selection: bytes = b"\x00"
    ) -> bytes:
        """The encoded attribute, blocks put together; AssertionError on a data-access-result."""
        reference = (
            class_id.to_bytes(2, "big") + codec.logical_name(obis) + bytes([attribute]) + selection
        )
        answer = self.ask(b"\xc0\x01\xc1" + reference)
        if answer[1] == 1:
            assert answer[3] == 0, f"data-access-result {answer[4]}"
            return answer[4:]
        data = b""
        while True:
            last, number = answer[3], answer[4:8]
            count, at = codec.read_length(answer, 9)
            data += codec.take(answer, at, count)[0]
            if last:
                return data
            answer = self.ask(b"\xc0\x02\xc1" + number)

    def value(
        self, class_id: int, obis: str, attribute: int = 2, selection: bytes = b"\x00"
    ) -> codec.Parsed:
        return whole(self.get(class_id, obis, attribute, selection))


def whole(octets: bytes) -> codec.Parsed:
    """Parse everything, arrays of any length: requests are bounded, answers are not."""
    limit, codec.MAX_ELEMENTS = codec.MAX_ELEMENTS, 100_000
    try:
        value, at = codec.parse(octets)
    finally:
        codec.MAX_ELEMENTS = limit
    assert at == len(octets)
    return value


def ranged(first: bytes, last: bytes, columns: bytes = b"\x01\x00") -> bytes:
    """Selective access by range on the clock."""
    clock = codec.structure(
        codec.u16(8),
        codec.octet_string(codec.logical_name("0.0.1.0.0.255")),
        codec.i8(2),
        codec.u16(0),
    )
    return (
        b"\x01\x01\x02\x04" + clock + codec.octet_string(first) + codec.octet_string(last) + columns
    )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def fleet_of(tmp_path: Path, clock: ManualClock) -> Iterator[Callable[..., Fleet]]:
    """Fleets that are not opened: meters to ask through sessions. One state folder, as after restarts."""
    made: list[Fleet] = []

    def make(spec: FleetSpec | None = None, **group: object) -> Fleet:
        spec = spec or FleetSpec(dlms=(DlmsGroup(**group),))  # type: ignore[arg-type]
        made.append(Fleet(spec, tmp_path / "state", clock))
        return made[-1]

    yield make
    for fleet in made:
        fleet.record.close()
